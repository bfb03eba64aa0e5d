"""How well the label of every event is foreseen, and every other column."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data import event_batches
from evals import event_calibration
from evals import event_ceilings
from evals import event_metrics
from evals import shares


class Found(NamedTuple):
  """What a model says of every event given all before it.

  log_p_EK: of each class of the label. nats_EC: -log p of what each column is,
  NaN where nothing is scored.
  """

  log_p_EK: np.ndarray
  nats_EC: np.ndarray


class Learned(NamedTuple):
  """What the validation split tells: of F1 the threshold; a calibration."""

  threshold: float
  calibration: event_calibration.Calibration


@dataclasses.dataclass(frozen=True)
class EventScores:
  """Scores of the label's probability, with intervals over entities.

  Every event is scored once, after the whole history of its entity or, where
  that is longer than `window`, after at least `context` events of it.

  labels: 'hidden' as in service, or 'revealed', those of earlier events.
  positive: values of the label whose probabilities are added up; () is the
    last value in the order of the tokenizer: of two the yes, or the rarer one.
  window, context: events; batch_size: rows of `window` events.
  replicates: draws of entities for the standard errors.
  """

  labels: str = 'hidden'
  positive: tuple[str, ...] = ()
  window: int = 128
  context: int = 96
  batch_size: int = 8
  replicates: int = 200

  def __post_init__(self) -> None:
    if self.labels not in ('hidden', 'revealed'):
      raise ValueError(
        f"evals: labels={self.labels!r} must be 'hidden' or 'revealed'."
      )
    if not 0 <= self.context < self.window or self.batch_size < 1:
      raise ValueError(
        f'evals: context={self.context} must be in 0..window={self.window} - 1,'
        f' and batch_size={self.batch_size} at least 1.'
      )

  def run(
    self,
    apply: Callable[..., jax.Array],
    params: Any,
    corpus: Any,
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float]:
    """Scores a data.event_corpus.EventCorpus.

    max_bytes: only the first entities, of so many cells in all.

    Returns nats per event and of each column, and of a label the scores of
    event_metrics.Scores, whose F1 is at the threshold that is best on the
    validation split if there is one, which also gives `calibrated_...`, scores
    after event_calibration; of synthetic data what is best possible, as
    `ceiling_...`. Names begin with `labels`. Of a part of a corpus scores have
    no intervals; of labels that are all alike there is the log-loss only.
    """
    count = _entities(corpus, max_bytes)
    found = self.score(apply, params, corpus, entities=count)
    report = _nats(corpus, found.nats_EC)
    if corpus.tokenizer.label is not None:
      whole = count == len(corpus)
      report |= self._label_scores(apply, params, corpus, found, whole)
    return {f'{self.labels}/{name}': value for name, value in report.items()}

  def score(
    self,
    apply: Callable[..., jax.Array],
    params: Any,
    corpus: Any,
    *,
    entities: int,
    rank_C: np.ndarray | None = None,
  ) -> Found:
    """What the model says of the events of the first entities.

    rank_C: the place of each column in every event; None is their own order.
    """
    tokenizer = corpus.tokenizer
    how = event_batches.EventRows(
      mask_all=float(self.labels == 'hidden'), context=self.context
    )
    columns = len(tokenizer.columns)
    rows = event_batches.Rows(
      corpus, self.window * columns, how, entities=entities
    )
    classes_K = class_ids(tokenizer)
    events = int(corpus.offsets_N1[entities])
    found = Found(
      np.full((events, len(classes_K)), np.nan, np.float32),
      np.full((events, columns), np.nan, np.float32),
    )

    def log_p(batch: dict[int, Any]) -> tuple[np.ndarray]:
      chosen = list(batch.values())
      # The last batch is filled up with its last row: all are of one shape.
      chosen += chosen[-1:] * (self.batch_size - len(chosen))
      return (_log_p(apply, params, chosen, classes_K, rank_C),)

    batches = (
      {i: rows[i] for i in range(len(rows))[first : first + self.batch_size]}
      for first in range(0, len(rows), self.batch_size)
    )
    said = time.monotonic()
    for batch, (log_p_BTN,) in shares.shared(log_p, batches, params):
      for (number, row), log_p_TN in zip(
        batch.items(), log_p_BTN, strict=False
      ):
        event_R, _, fresh_R = rows.places(number)
        log_p_RCN = log_p_TN.reshape(len(event_R), columns, -1)
        mask_RC = row['mask'].reshape(len(event_R), columns) > 0
        there = event_R[fresh_R]
        nats_RC = np.where(mask_RC, -log_p_RCN[..., 0], np.nan)
        found.nats_EC[there] = nats_RC[fresh_R]
        found.log_p_EK[there] = log_p_RCN[fresh_R, -1, 1:]
      if time.monotonic() - said > 10:
        said = time.monotonic()
        logging.getLogger('absl').info(
          'scored %d of %d rows', max(batch) + 1, len(rows)
        )
    return found

  def labelled(
    self, corpus: Any, found: Found
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, truth and number of all events whose label counts."""
    label = corpus.tokenizer.label
    members_K = self._members(label)
    (event_E,) = np.nonzero(np.isfinite(found.nats_EC[:, -1]))
    probability_E = consolidate(found.log_p_EK[event_E], members_K)
    truth_E = members_K[_classes(corpus, event_E)].astype(int)
    return probability_E, truth_E, event_E

  def learned(self, apply: Any, params: Any, data: Any) -> Learned | None:
    """From the validation split; None where that has no label."""
    corpus = data.open('validation')
    found = self.score(apply, params, corpus, entities=len(corpus))
    probability_E, truth_E, event_E = self.labelled(corpus, found)
    if not len(event_E):
      return None
    return Learned(
      event_metrics.best_threshold(probability_E, truth_E),
      event_calibration.fit(found.log_p_EK[event_E], _classes(corpus, event_E)),
    )

  def _label_scores(
    self, apply: Any, params: Any, corpus: Any, found: Found, whole: bool
  ) -> dict[str, float]:
    probability_E, truth_E, event_E = self.labelled(corpus, found)
    if not len(event_E):
      return {}
    report = {'label_rate': float(truth_E.mean())}
    if report['label_rate'] in (0, 1):
      logging.getLogger('absl').warning(
        'All %d labels of the events scored in split %r are alike; only their'
        ' log-loss is reported.', len(truth_E), corpus.split,
      )  # fmt: skip
      nats_E = event_metrics.losses(probability_E, truth_E)
      return report | {'log_loss': float(nats_E.mean())}
    entity_E = np.searchsorted(corpus.offsets_N1, event_E, side='right') - 1
    learned, stream = None, getattr(corpus, 'stream', None)
    if whole and stream is not None and corpus.split == 'test':
      learned = self.learned(apply, params, stream)
    threshold = event_metrics.best_threshold(probability_E, truth_E)
    if learned is not None:
      threshold = learned.threshold
    best = event_ceilings.exact(
      corpus, len(found.nats_EC), revealed=self.labels == 'revealed'
    )
    ceiling_E = None
    if best is not None:
      members_K = self._members(corpus.tokenizer.label)
      ceiling_E = best.p_EK[event_E][:, members_K].sum(1)
    scores = event_metrics.Scores(
      probability_E,
      truth_E,
      entity_E,
      threshold,
      ceiling_E,
    )
    report['threshold'] = threshold
    if whole:
      label = corpus.tokenizer.label
      logging.getLogger('absl').info(
        'scores of %s are those of %s', label.name,
        ' or '.join(self.positive or label.code.words[-1:]),
      )  # fmt: skip
    report |= scores.report(self.replicates) if whole else scores.metrics()
    if learned is not None:
      log_p_EK = learned.calibration(found.log_p_EK[event_E])
      members_K = self._members(corpus.tokenizer.label)
      corrected = dataclasses.replace(
        scores, probability_E=consolidate(log_p_EK, members_K), ceiling_E=None
      ).report(self.replicates)
      for name in ('log_loss', 'brier', 'ece'):
        for key in (name, f'{name}_stderr'):
          report[f'calibrated_{key}'] = corrected[key]
    if best is not None:
      replicates = self.replicates if whole else 0
      report |= _ceiling(corpus, found, scores, best, replicates)
    return report

  def _members(self, label: Any) -> np.ndarray:
    """Which values of the label count as positive."""
    positive = self.positive or label.code.words[-1:]
    unknown = set(positive) - set(label.code.words)
    if unknown:
      raise ValueError(
        f'evals: positive={sorted(unknown)} is no value of the label'
        f' {label.name!r}; its values are {label.code.words}.'
      )
    return np.isin(label.code.words, positive)


def _ceiling(
  corpus: Any,
  found: Found,
  scores: event_metrics.Scores,
  best: event_ceilings.Ceiling,
  replicates: int,
) -> dict[str, float]:
  """The best scores that there are, and what the model's columns lack."""
  exact = dataclasses.replace(
    scores, probability_E=scores.ceiling_E, ceiling_E=None
  )
  best_scores = exact.report(replicates) if replicates else exact.metrics()
  report = {
    f'ceiling_{name}': value
    for name, value in best_scores.items()
    if not name.startswith('f1')
  }
  names = [column.name for column in corpus.tokenizer.columns]
  for name, nats_E in best.nats.items():
    excess_E = found.nats_EC[:, names.index(name)] - nats_E
    report |= mean(f'regret_of_{name}', corpus, excess_E)
  return report


def _classes(corpus: Any, event_E: np.ndarray) -> np.ndarray:
  """Which value of the label each event has, from 0."""
  ids_E = np.asarray(corpus.ids_EC[event_E, -1]).astype(int)
  return ids_E - corpus.tokenizer.label.code.first


def consolidate(log_p_EK: np.ndarray, members_K: np.ndarray) -> np.ndarray:
  """The probability of a set of classes among all, after the softmax."""
  p_EK = np.exp(np.asarray(log_p_EK, np.float64))
  return p_EK[:, members_K].sum(1) / p_EK.sum(1)


def class_ids(tokenizer: Any) -> np.ndarray:
  """Global ids of the values of the label; none without a label."""
  label = tokenizer.label
  if label is None:
    return np.zeros(0, np.int32)
  first = tokenizer.offsets_C[-1] + label.code.first
  return np.arange(first, first + len(label.code.words), dtype=np.int32)


def _log_p(
  apply: Callable[..., jax.Array],
  params: Any,
  rows: list[dict[str, np.ndarray]],
  classes_K: np.ndarray,
  rank_C: np.ndarray | None,
) -> np.ndarray:
  """Log-probabilities [B, T, 1 + K] of what is there and of the classes."""
  names = ('ids', 'documents', 'targets', 'value')
  batch = {name: np.stack([row[name] for row in rows]) for name in names}
  shape = (*batch['targets'].shape, len(classes_K))
  target_BTN = np.concatenate(
    [batch['targets'][..., None], np.broadcast_to(classes_K, shape)], axis=-1
  )
  if rank_C is not None:
    events = shape[1] // len(rank_C)
    batch['rank'] = np.tile(rank_C.astype(np.int32), (shape[0], events))
  batch['target'] = target_BTN.astype(np.int32)
  del batch['targets']
  ids_BT, documents_BT = batch.pop('ids'), batch.pop('documents')
  return np.asarray(score(apply, params, ids_BT, documents_BT, batch))


@functools.partial(jax.jit, static_argnames=('apply',))
def score(
  apply: Callable[..., jax.Array],
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
  stored: dict[str, jax.Array],
) -> jax.Array:
  """Log-probabilities of the ids `target`, known to every process."""
  log_p_BTN = apply(params, ids_BT, documents_BT, **stored)
  if jax.sharding.get_abstract_mesh().empty:
    return log_p_BTN.astype(jnp.float32)
  return jax.lax.with_sharding_constraint(
    log_p_BTN.astype(jnp.float32), jax.sharding.PartitionSpec()
  )


def _entities(corpus: Any, max_bytes: int | None) -> int:
  """Entities whose cells are at most `max_bytes`, at least one."""
  if max_bytes is None:
    return len(corpus)
  events = max_bytes // len(corpus.tokenizer.columns)
  fit = np.searchsorted(corpus.offsets_N1, events, side='right') - 1
  return int(np.clip(fit, 1, len(corpus)))


def _nats(corpus: Any, nats_EC: np.ndarray) -> dict[str, float]:
  """Nats per event, in all and by column, with an error over entities."""
  scored_E = np.isfinite(nats_EC).any(1)
  if not scored_E.any():
    raise ValueError(
      f'split {corpus.split!r} has no event to score; choose another one.'
    )
  every = {'per_event': np.nansum(nats_EC, 1, dtype=np.float64)}
  for c, column in enumerate(corpus.tokenizer.columns):
    every[f'of_{column.name}'] = np.nan_to_num(nats_EC[:, c].astype(float))
  report = {}
  for name, nats_E in every.items():
    nats_E = np.where(scored_E, nats_E, np.nan)
    report |= mean(f'nats_{name}', corpus, nats_E)
  entities = int((np.diff(_offsets(corpus, nats_EC)) > 0).sum())
  return report | {'events': int(scored_E.sum()), 'entities': entities}


def _offsets(corpus: Any, x_E: np.ndarray) -> np.ndarray:
  """Where entities begin among the first events of a corpus."""
  return np.minimum(corpus.offsets_N1, len(x_E))


def mean(name: str, corpus: Any, x_E: np.ndarray) -> dict[str, float]:
  """The mean of what is no NaN, with its standard error over entities."""
  known_E, offsets_N1 = np.isfinite(x_E), _offsets(corpus, x_E)
  sums_E = np.append(0.0, np.cumsum(np.where(known_E, x_E, 0.0)))
  sums_N = np.diff(sums_E[offsets_N1])
  counts_N = np.diff(np.append(0, np.cumsum(known_E))[offsets_N1])
  value = float(sums_N.sum() / counts_N.sum())
  found, entities = {name: value}, int((counts_N > 0).sum())
  if entities > 1:
    spread = np.sum((sums_N - value * counts_N) ** 2) / (entities - 1)
    error = np.sqrt(entities * spread) / counts_N.sum()
    found[f'{name}_stderr'] = float(error)
  return found
