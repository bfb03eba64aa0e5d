"""Scores of probabilities of a rare label, with intervals over entities.

Events of one entity depend on each other, so intervals come from drawing whole
entities with replacement. Letters: E events, N entities, G groups of events of
equal probability, R replicates.
"""

import dataclasses
import functools

import numpy as np

_CALIBRATION_BINS = 15
_LEAST = 1e-15


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """Probabilities of the label, the labels (0 or 1), and whose events they are.

  threshold: of F1, chosen on other data by `best_threshold`.
  ceiling_E: the best probabilities that there are, for the regret.
  """

  probability_E: np.ndarray
  label_E: np.ndarray
  entity_E: np.ndarray
  threshold: float = 0.5
  ceiling_E: np.ndarray | None = None

  def __post_init__(self) -> None:
    for name in ('label_E', 'entity_E'):
      if len(getattr(self, name)) != len(self.probability_E):
        raise ValueError(
          f'{name} has {len(getattr(self, name))} events and probability_E'
          f' {len(self.probability_E)}; give one of each per event.'
        )
    if not np.isfinite(self.probability_E).all():
      raise ValueError(
        'probability_E has values that are not finite; leave events without a'
        ' prediction out.'
      )
    if len(np.unique(self.label_E)) != 2:
      raise ValueError(
        f'The labels of {len(self.label_E)} events are all of one class;'
        ' score a split that has both.'
      )

  def metrics(self, weight_E: np.ndarray | None = None) -> dict[str, float]:
    """Every score; weights count events several times or not at all.

    auc, average_precision, recall_at_fpr_0.1% and _1%: of the order alone.
    f1: at the threshold. log_loss: nats. brier, ece (15 bins of equal mass):
    of the probabilities. regret: log loss above the ceiling's.
    """
    if weight_E is None:
      weight_E = np.ones(len(self.label_E))
    total = weight_E.sum()
    scores = self._ranking(weight_E)
    scores['f1'] = self._f1(weight_E)
    scores['log_loss'] = float(weight_E @ self._losses_E / total)
    error_E = (self.probability_E - self.label_E) ** 2
    scores['brier'] = float(weight_E @ error_E / total)
    scores['ece'] = self._calibration(weight_E)
    if self.ceiling_E is not None:
      best_E = losses(self.ceiling_E, self.label_E)
      regret_E = self._losses_E - best_E
      scores['regret'] = float(weight_E @ regret_E / total)
    return scores

  def report(self, replicates: int = 200, seed: int = 0) -> dict[str, float]:
    """The scores, each with its standard error and 95% interval."""
    scores = self.metrics()
    drawn = self.replicates(replicates, seed)
    for name in list(scores):
      values_R = np.array([replicate[name] for replicate in drawn])
      scores[f'{name}_stderr'] = float(values_R.std(ddof=1))
      low, high = np.quantile(values_R, [0.025, 0.975])
      scores[f'{name}_low'], scores[f'{name}_high'] = float(low), float(high)
    return scores

  def replicates(self, number: int, seed: int) -> list[dict[str, float]]:
    """The scores of entities drawn with replacement.

    Replicate i has the same entities whatever the probabilities, so that two
    models are compared by pairs.
    """
    if (number, seed) not in self._drawn:
      self._drawn[number, seed] = self._draw(number, seed)
    return self._drawn[number, seed]

  @functools.cached_property
  def _drawn(self) -> dict[tuple[int, int], list[dict[str, float]]]:
    """What `replicates` has found."""
    return {}

  def _draw(self, number: int, seed: int) -> list[dict[str, float]]:
    _, index_E = np.unique(self.entity_E, return_inverse=True)
    entities = int(index_E.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < number:
      chosen = rng.integers(entities, size=entities)
      weight_E = np.bincount(chosen, minlength=entities)[index_E].astype(float)
      # Without one of the classes there is nothing to rank.
      if 0 < weight_E @ self.label_E < weight_E.sum():
        drawn.append(self.metrics(weight_E))
    return drawn

  def _ranking(self, weight_E: np.ndarray) -> dict[str, float]:
    group_E, groups = self._groups
    positive_G = np.bincount(group_E, weight_E * self.label_E, groups)[::-1]
    negative_G = np.bincount(group_E, weight_E * (1 - self.label_E), groups)
    negative_G = negative_G[::-1]
    hits_G, alarms_G = np.cumsum(positive_G), np.cumsum(negative_G)
    positives, negatives = hits_G[-1], alarms_G[-1]
    beaten_G = negatives - alarms_G + negative_G / 2
    precision_G = hits_G / np.maximum(hits_G + alarms_G, _LEAST)
    scores = {
      'auc': float(positive_G @ beaten_G / (positives * negatives)),
      'average_precision': float(positive_G @ precision_G / positives),
    }
    for name, rate in (('0.1%', 0.001), ('1%', 0.01)):
      within_G = alarms_G <= rate * negatives
      recall = (hits_G / positives)[within_G].max(initial=0.0)
      scores[f'recall_at_fpr_{name}'] = float(recall)
    return scores

  def _f1(self, weight_E: np.ndarray) -> float:
    chosen_E = weight_E * (self.probability_E >= self.threshold)
    both = chosen_E.sum() + weight_E @ self.label_E
    return float(2 * (chosen_E @ self.label_E) / both)

  def _calibration(self, weight_E: np.ndarray) -> float:
    excess_E = self.probability_E - self.label_E
    sums = np.bincount(
      self._bin_E, weight_E * excess_E, minlength=_CALIBRATION_BINS
    )
    return float(np.abs(sums).sum() / weight_E.sum())

  @functools.cached_property
  def _losses_E(self) -> np.ndarray:
    return losses(self.probability_E, self.label_E)

  @functools.cached_property
  def _groups(self) -> tuple[np.ndarray, int]:
    """The group of every event, by rising probability, and their number."""
    values_G, group_E = np.unique(self.probability_E, return_inverse=True)
    return group_E, len(values_G)

  @functools.cached_property
  def _bin_E(self) -> np.ndarray:
    """The bin of equal mass; events of equal probability share one."""
    group_E, groups = self._groups
    counts_G = np.bincount(group_E, minlength=groups)
    middle_G = (np.cumsum(counts_G) - counts_G / 2) / len(group_E)
    return (middle_G * _CALIBRATION_BINS).astype(int)[group_E]


def losses(probability_E: np.ndarray, label_E: np.ndarray) -> np.ndarray:
  """Nats of every label."""
  right_E = np.where(label_E == 1, probability_E, 1 - probability_E)
  return -np.log(np.maximum(right_E, _LEAST))


def best_threshold(probability_E: np.ndarray, label_E: np.ndarray) -> float:
  """The probability from which on calling the label 1 has the highest F1."""
  values_G, group_E = np.unique(probability_E, return_inverse=True)
  hits_G = np.bincount(group_E, label_E, len(values_G))[::-1].cumsum()[::-1]
  called_G = np.bincount(group_E, minlength=len(values_G))
  called_G = called_G[::-1].cumsum()[::-1]
  f1_G = 2 * hits_G / (called_G + label_E.sum())
  return float(values_G[np.argmax(f1_G)])


def compare(
  ours: Scores, theirs: Scores, replicates: int = 200, seed: int = 0
) -> dict[str, float]:
  """Ours less theirs for every score, with paired standard errors.

  Both score the same events; an entity is drawn for both or for neither.
  """
  if not np.array_equal(ours.label_E, theirs.label_E) or not np.array_equal(
    ours.entity_E, theirs.entity_E
  ):
    raise ValueError(
      'The two models score different events; give them the same ones in the'
      ' same order.'
    )
  mine, other = ours.metrics(), theirs.metrics()
  pairs = list(
    zip(
      ours.replicates(replicates, seed),
      theirs.replicates(replicates, seed),
      strict=True,
    )
  )
  result = {}
  for name in mine:
    if name in other:
      result[name] = mine[name] - other[name]
      drawn_R = [first[name] - second[name] for first, second in pairs]
      result[f'{name}_stderr'] = float(np.std(drawn_R, ddof=1))
  return result
