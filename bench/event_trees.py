"""Peers that see features: a prior, logistic regression, boosted trees."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from absl import logging

from bench import event_features
from data import event_corpus

try:
  import lightgbm
except (ImportError, OSError):  # Not installed, or without its OpenMP.
  lightgbm = None

_ROUNDS, _PATIENCE = 2000, 60
_HASHED = 2**12


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Events of a split that count: features, labels, and all their offsets.

  used_E picks, of all events of the corpus, the scored ones with a label.
  """

  corpus: event_corpus.EventCorpus
  label_E: np.ndarray
  used_E: np.ndarray
  _made: dict[tuple[bool, bool], event_features.Features] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  @classmethod
  def of(
    cls, corpus: event_corpus.EventCorpus, positive: Sequence[str] = ()
  ) -> 'Split':
    """All scored events of a corpus that have a label."""
    label_E = event_features.labels(corpus, positive)
    used_E = np.asarray(corpus.scored_E) & ~np.isnan(label_E)
    return cls(corpus, label_E, used_E)

  def features(self, *, lags: bool, revealed: bool) -> event_features.Features:
    """Features of all events; revealed: the past includes its labels.

    They are made once for all peers.
    """
    if (lags, revealed) not in self._made:
      self._made[lags, revealed] = event_features.features(
        self.corpus, lags=lags, label_E=self.label_E if revealed else None
      )
    return self._made[lags, revealed]


@dataclasses.dataclass(frozen=True)
class Prior:
  """The share of the label in training, for everything."""

  def fit(
    self, train: Split, validation: Split, *, revealed: bool
  ) -> Callable[[Split], np.ndarray]:
    del validation, revealed
    rate = train.label_E[train.used_E].mean()
    return lambda split: np.full(len(split.label_E), rate)


@dataclasses.dataclass(frozen=True)
class Logistic:
  """Logistic regression on hashed words and standardised numbers."""

  def fit(
    self, train: Split, validation: Split, *, revealed: bool
  ) -> Callable[[Split], np.ndarray]:
    from sklearn import linear_model

    del validation
    found = train.features(lags=True, revealed=revealed)
    numbers_EF = found.x_EF[train.used_E][:, ~found.is_code_F]
    mean_F = np.nanmean(numbers_EF, 0)
    spread_F = np.nanstd(numbers_EF, 0) + 1e-6
    model = linear_model.LogisticRegression(max_iter=200)

    def design(found: event_features.Features, used_E: np.ndarray) -> Any:
      numbers_EF = found.x_EF[used_E][:, ~found.is_code_F]
      numbers_EF = (numbers_EF - mean_F) / spread_F
      missing_EF = np.isnan(numbers_EF).astype(np.float32)
      parts = [np.nan_to_num(numbers_EF).clip(-5, 5), missing_EF]
      parts = [scipy.sparse.csr_matrix(part) for part in parts]
      codes_EF = found.x_EF[used_E][:, found.is_code_F].astype(np.int64)
      # Odd multipliers spread the words of every column over the buckets.
      place_F = 2 * np.arange(codes_EF.shape[1]) + 1
      bucket_EF = (codes_EF * 2_654_435_761 + place_F * 40_503) % _HASHED
      rows = np.repeat(np.arange(len(codes_EF)), codes_EF.shape[1])
      ones = np.ones(len(rows), np.float32)
      shape = len(codes_EF), _HASHED
      parts.append(
        scipy.sparse.csr_matrix((ones, (rows, bucket_EF.ravel())), shape)
      )
      return scipy.sparse.hstack(parts).tocsr()

    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Not converged to the last digit.
      model.fit(design(found, train.used_E), train.label_E[train.used_E])

    def predict(split: Split) -> np.ndarray:
      found = split.features(lags=True, revealed=revealed)
      every_E = np.ones(len(split.label_E), bool)
      return model.predict_proba(design(found, every_E))[:, 1]

    return predict


@dataclasses.dataclass(frozen=True)
class Trees:
  """Gradient-boosted trees: LightGBM, or scikit-learn's without it.

  lags: features of the past beside the row.
  rounds: trees at most; patience: how many without a lower validation loss end
    them, never if it is `rounds`.
  """

  lags: bool = True
  rounds: int = _ROUNDS
  patience: int = _PATIENCE

  def fit(
    self, train: Split, validation: Split, *, revealed: bool
  ) -> Callable[[Split], np.ndarray]:
    model = self.boosted(train, validation, revealed=revealed)
    return lambda split: model(
      split.features(lags=self.lags, revealed=revealed)
    )

  def boosted(
    self, train: Split, validation: Split, *, revealed: bool
  ) -> Callable[[event_features.Features], np.ndarray]:
    """As `fit`, but what is returned reads features."""
    found = [
      split.features(lags=self.lags, revealed=revealed)
      for split in (train, validation)
    ]
    return boost(
      found[0], train, found[1], validation, self.rounds, self.patience
    )


@dataclasses.dataclass(frozen=True)
class Stacked:
  """Trees that also see the past of the scores of trees.

  The scores of the training events come from trees of the other half of the
  entities; other events get the mean of both halves' trees.
  """

  rounds: int = _ROUNDS

  def fit(
    self, train: Split, validation: Split, *, revealed: bool
  ) -> Callable[[Split], np.ndarray]:
    def features(split: Split) -> event_features.Features:
      return split.features(lags=True, revealed=revealed)

    of_train, of_validation = features(train), features(validation)
    offsets_N1 = np.asarray(train.corpus.offsets_N1)
    half_N = np.arange(len(offsets_N1) - 1) % 2
    half_E = np.repeat(half_N, np.diff(offsets_N1))
    models = []
    for half in (0, 1):
      used_E = train.used_E & (half_E == half)
      part = dataclasses.replace(train, used_E=used_E)
      models.append(
        boost(of_train, part, of_validation, validation, self.rounds)
      )

    def extended(
      found: event_features.Features, split: Split, score_E: np.ndarray
    ) -> event_features.Features:
      offsets_N1 = split.corpus.offsets_N1
      more = event_features.score_features(score_E, offsets_N1)
      x_EF = np.stack(list(more.values()), 1).astype(np.float32)
      return event_features.Features(
        np.concatenate([found.x_EF, x_EF], 1),
        (*found.names, *more),
        np.append(found.is_code_F, np.zeros(len(more), bool)),
      )

    def both(found: event_features.Features) -> np.ndarray:
      return (models[0](found) + models[1](found)) / 2

    other_E = np.empty(len(half_E))
    for half in (0, 1):
      x_EF = of_train.x_EF[half_E == half]
      found = models[1 - half](of_train._replace(x_EF=x_EF))
      other_E[half_E == half] = found
    model = boost(
      extended(of_train, train, other_E),
      train,
      extended(of_validation, validation, both(of_validation)),
      validation,
      self.rounds,
    )

    def predict(split: Split) -> np.ndarray:
      found = features(split)
      return model(extended(found, split, both(found)))

    return predict


def boost(
  features: event_features.Features,
  train: Split,
  of_validation: event_features.Features,
  validation: Split,
  rounds: int,
  patience: int = _PATIENCE,
) -> Callable[[event_features.Features], np.ndarray]:
  """Trees that stop when the validation log loss no longer falls."""
  y_E, x_EF = train.label_E[train.used_E], features.x_EF
  if not train.used_E.all():  # No copy of what may be gigabytes.
    x_EF = x_EF[train.used_E]
  other_EF = of_validation.x_EF[validation.used_E]
  other_E = validation.label_E[validation.used_E]
  if lightgbm is None:
    return _boost_sklearn(x_EF, y_E, other_EF, other_E, rounds, patience)
  parameters = {
    'objective': 'binary',
    'learning_rate': 0.05,
    'num_leaves': 63,
    'min_child_samples': 100,
    'bagging_fraction': 0.8,
    'bagging_freq': 1,
    'feature_fraction': 0.5,
    'lambda_l2': 5.0,
    'verbose': -1,
    'seed': 0,
    'deterministic': True,
  }
  data = lightgbm.Dataset(x_EF, y_E)
  held_out = lightgbm.Dataset(other_EF, other_E, reference=data)
  calls = [_show]
  if patience < rounds:
    calls.append(lightgbm.early_stopping(patience, verbose=False))
  model = lightgbm.train(
    parameters, data, rounds, valid_sets=[held_out], callbacks=calls
  )
  logging.info('%d trees', model.best_iteration or rounds)
  return lambda found: model.predict(found.x_EF)


def _show(env: Any) -> None:
  """Called after each tree: of many events a hundred take minutes."""
  count = env.iteration + 1
  if count % 100 == 0:
    _, _, loss, _ = env.evaluation_result_list[0]
    logging.info('%d trees: validation log loss %.5f', count, loss)


def _boost_sklearn(
  x_EF: np.ndarray,
  y_E: np.ndarray,
  other_EF: np.ndarray,
  other_E: np.ndarray,
  rounds: int,
  patience: int,
) -> Callable[[event_features.Features], np.ndarray]:
  from sklearn import ensemble

  model = ensemble.HistGradientBoostingClassifier(
    learning_rate=0.05,
    max_iter=rounds,
    max_leaf_nodes=63,
    min_samples_leaf=100,
    l2_regularization=5.0,
    max_features=0.5,
    early_stopping=True,
    n_iter_no_change=patience,
    random_state=0,
  )
  model.fit(x_EF, y_E, X_val=other_EF, y_val=other_E)
  return lambda found: model.predict_proba(found.x_EF)[:, 1]
