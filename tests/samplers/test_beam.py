"""Beam search against all texts, and against a plain loop."""

import itertools

import numpy as np
import pytest
from scipy import special

from samplers import beam
from samplers import loop
from samplers import rows
from tests.samplers import test_loop as toy

AXES = rows.cache_axes(toy.empty)
LOG_P = special.log_softmax(toy.TABLE.astype(np.float64), axis=1)


def search(prompts, beams, capacity, table=toy.TABLE, **fields):
  state = loop.prefill(
    toy.step,
    table,
    toy.empty(len(prompts)),
    *toy.padded(prompts),
    toy.keys_for(len(prompts)),
    capacity=capacity,
  )
  return beam.search(toy.step, table, state, AXES, beams=beams, **fields)


def score(prompt, ids, power):
  total = sum(
    LOG_P[toy.hash_of(prompt + ids[:n]), i] for n, i in enumerate(ids)
  )
  return total / len(ids) ** power


def shown(found, row):
  return [
    ids[:length].tolist()
    for ids, length in zip(
      np.asarray(found.ids_BMN[row]),
      np.asarray(found.length_BM[row]),
      strict=True,
    )
  ]


def test_enough_beams_find_the_best_of_all_texts():
  stop, power = 6, 1.0
  found = search(toy.PROMPTS[:2], 121, 3, length_power=power, stop_ids=(stop,))
  for row, prompt in enumerate(toy.PROMPTS[:2]):
    texts = set()
    for ids in itertools.product(range(toy.VOCABULARY), repeat=3):
      end = ids.index(stop) + 1 if stop in ids else 3
      texts.add(ids[:end])
    ranked = sorted(texts, key=lambda ids: -score(prompt, list(ids), power))
    assert shown(found, row)[:20] == [list(ids) for ids in ranked[:20]]
    np.testing.assert_allclose(
      found.score_BM[row, :20],
      [score(prompt, list(ids), power) for ids in ranked[:20]],
      rtol=1e-5,
    )


def reference(prompt, beams, capacity, power, stop_ids):
  alive, finished = [((), 0.0)], []
  for _ in range(capacity):
    options = [
      ((*ids, i), log_p + LOG_P[toy.hash_of([*prompt, *ids]), i])
      for ids, log_p in alive
      for i in range(toy.VOCABULARY)
    ]
    options.sort(key=lambda option: -option[1])
    best = options[: beams * (1 + len(stop_ids))]
    finished += [o for o in best if o[0][-1] in stop_ids]
    alive = [o for o in best if o[0][-1] not in stop_ids][:beams]
  finished += alive
  finished = [(log_p / len(ids) ** power, ids) for ids, log_p in finished]
  return sorted(finished, reverse=True)[:beams]


@pytest.mark.parametrize('power', [0.0, 1.0, 2.0])
def test_search_is_that_of_a_plain_loop(power):
  """Which goes on to the end, where ours stops once nothing can change."""
  stop_ids = (1, 6)
  found = search(
    toy.PROMPTS, 3, toy.CAPACITY, length_power=power, stop_ids=stop_ids
  )
  lengths = set()
  for row, prompt in enumerate(toy.PROMPTS):
    expected = reference(prompt, 3, toy.CAPACITY, power, stop_ids)
    assert shown(found, row) == [list(ids) for _, ids in expected]
    np.testing.assert_allclose(
      found.score_BM[row], [value for value, _ in expected], rtol=1e-5
    )
    lengths |= {len(ids) for _, ids in expected}
  # The square of the length rewards the longest whatever they say.
  assert (len(lengths) > 1) == (power < 2)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='beams=0 must be at least 1'):
    search([[1]], 0, 3)
  with pytest.raises(ValueError, match=r'row 0: the logits after 0 .* are NaN'):
    search([[1]], 2, 3, table=np.full_like(toy.TABLE, np.nan))
  for power in (np.nan, np.inf):
    with pytest.raises(ValueError, match=f'length_power={power} of beams must'):
      search([[1]], 2, 3, length_power=power)


@pytest.mark.parametrize(
  'value, words', [(np.nan, 'are NaN'), (-np.inf, 'are all -inf')]
)
def test_logits_that_become_no_law_are_named(value, words):
  prompts, stops = [[2], [1, 4]], (6,)
  ids = shown(search(prompts, 1, 6, stop_ids=stops), 1)[0]
  assert len(ids) > 3
  table = toy.TABLE.copy()
  table[toy.hash_of([1, 4, *ids[:3]])] = value
  with pytest.raises(ValueError, match=f'row 1: the logits after 3 .* {words}'):
    search(prompts, 1, 6, table=table, stop_ids=stops)


def test_bad_logits_are_named_only_where_a_row_alone_asks_for_them():
  """The rows of a batch go on until all are done."""
  prompts, fields = [[2], [1, 4]], {'length_power': 0.0, 'stop_ids': (6,)}
  harmless = 0
  for place in range(toy.STATES):
    table = toy.TABLE.copy()
    table[place] = np.nan

    def found(prompts, table=table):
      try:
        made = search(prompts, 2, 8, table=table, **fields)
      except ValueError:
        return ['bad']
      return [shown(made, row)[0] for row in range(len(prompts))]

    alone = [found([prompt])[0] for prompt in prompts]
    together = found(prompts)
    assert together == (['bad'] if 'bad' in alone else alone)
    harmless += 'bad' not in alone
  assert 0 < harmless < toy.STATES
