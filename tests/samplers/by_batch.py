"""Says which rows of a sampler differ from themselves in other batches.

python -m tests.samplers.by_batch rules:6000 chain:32000 bat:6000

With the compiler as a user has it, which sums a row in an order of its own
choice: `test_invariance` runs it in a process of its own.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import bat
from samplers import chain
from samplers import draw
from samplers import entropy
from samplers import truncation

ROWS = 8
# Alone, among three, and turned round.
BATCHES = (*([row] for row in range(ROWS)), [5, 0, 7], list(range(ROWS))[::-1])
# A rule per row, the others of the row being off; the last two rows are the
# whole chain, and nothing at all.
RULES = {
  truncation.Temperature: (1, 1, 1, 1, 1, 0.8, 0.8, 1),
  truncation.TopK: (0, 0, 0, 0, 0, 40, 50, 0),
  truncation.TopP: (0.9, 1, 1, 1, 1, 1, 0.95, 1),
  truncation.MinP: (0, 0.05, 0, 0, 0, 0, 0.05, 0),
  entropy.Typical: (1, 1, 0.9, 1, 1, 1, 1, 1),
  entropy.Eta: (0, 0, 0, 3e-4, 0, 0, 0, 0),
  entropy.TopH: (1, 1, 1, 1, 0.4, 1, 1, 1),
}
CHAIN = tuple(RULES)[:4]


def logits(num_ids: int) -> dict[str, np.ndarray]:
  """As bench.samplers has them."""
  rng = np.random.default_rng(num_ids)
  noise_BV = rng.normal(size=(ROWS, num_ids))
  rank_BV = rng.permuted(np.tile(np.arange(num_ids), (ROWS, 1)), axis=1)
  text_BV = -1.3 * np.log1p(rank_BV) + 0.5 * noise_BV
  return {
    'text': text_BV.astype(np.float32),
    'flat': (3 * noise_BV).astype(np.float32),
  }


def sampler(name: str, num_ids: int, rows: list[int]) -> chain.Chain:
  """What some rows go through, each with its own knobs."""
  if name == 'bat':
    output_VD = np.random.default_rng(1).normal(size=(num_ids, 12))
    return chain.Chain(bat.attach((bat.Bat(eta=3e-4),), lambda: output_VD))
  kinds = CHAIN if name == 'chain' else RULES
  return chain.Chain(tuple(kind(np.array(RULES[kind])[rows]) for kind in kinds))


@jax.jit
def run(sampler: chain.Chain, keys_B: jax.Array, logits_BV: jax.Array) -> Any:
  """What the rules decide with, what they leave, and what is drawn."""
  kept_BV = sampler.transform(keys_B, logits_BV, ())
  return entropy.law(logits_BV), kept_BV, draw.draw(keys_B, kept_BV)


def bits(tree: Any) -> list[np.ndarray]:
  return [np.asarray(x).view(np.int32) for x in jax.tree.leaves(tree)]


def differing(name: str, num_ids: int) -> Iterator[str]:
  """A line per row that is not the same in another batch."""
  keys_B = jax.random.split(jax.random.key(0), ROWS)
  for kind, logits_BV in logits(num_ids).items():

    def get(rows: list[int], x_BV: np.ndarray = logits_BV) -> list[np.ndarray]:
      chosen = sampler(name, num_ids, rows)
      return bits(run(chosen, keys_B[np.array(rows)], jnp.array(x_BV[rows])))

    case = f'{name} of V={num_ids}, {kind}'
    whole = get(list(range(ROWS)))
    for rows in BATCHES if name == 'rules' else BATCHES[:-2] + BATCHES[-1:]:
      found = get(rows)
      for place, row in enumerate(rows):
        pairs = zip(found, whole, strict=True)
        if any(np.any(one[place] != all_[row]) for one, all_ in pairs):
          yield f'{case}: row {row} of batch {rows} differs'
    are_same_B = np.all(whole[-2] == bits(logits_BV)[0], axis=1)
    if name != 'bat' and not are_same_B[-1]:
      yield f'{case}: rules that are off change something'
    if name == 'rules' and are_same_B[:-1].any():
      yield f'{case}: a rule changes nothing'


def at_edges(num_ids: int) -> Iterator[str]:
  """A line per p, between two kept sets, at which the batch decides."""
  logits_BV = logits(num_ids)['flat']
  tail_BV = np.cumsum(np.sort(np.asarray(entropy.law(logits_BV).p_BV)), axis=1)
  keep = jax.jit(lambda rule, x_BV: rule(x_BV) > -jnp.inf)
  for place in np.linspace(0.4, 0.95, 20):
    p_B = 1 - tail_BV[:, int(place * num_ids)]
    alone_BV, few_BV, many_BV = (
      np.concatenate(
        [
          keep(truncation.TopP(np.tile(p, times)), np.tile(x, (times, 1)))
          for p, x in zip(
            np.split(p_B, parts), np.split(logits_BV, parts), strict=True
          )
        ]
      )
      for parts, times in ((ROWS, 1), (1, 1), (1, 8))
    )
    if np.any(alone_BV != few_BV) or np.any(few_BV != many_BV[:ROWS]):
      yield f'edges of V={num_ids}: top_p at {place:.2f} of the ids'


def main() -> None:
  lines = []
  for case in sys.argv[1:]:
    name, size = case.split(':')
    found = at_edges if name == 'edges' else functools.partial(differing, name)
    lines += found(int(size))
  print('\n'.join(lines) or 'all rows are the same in every batch')


if __name__ == '__main__':
  main()
