"""What the ways to decode demand of a model; test_sample runs them all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from samplers import chain
from samplers import engines


class Waiting(NamedTuple):
  """A cache of rows whose logits may come later."""

  waiting_B: jax.Array


SOURCE = engines.Source(
  step=None,
  params=None,
  init_cache=lambda rows, length: Waiting(jnp.zeros(rows, bool)),
)
ROWS = (
  jnp.ones((2, 3), jnp.int32),
  jnp.array([3, 1]),
  jax.random.split(jax.random.key(0), 2),
)
PLAN = engines.Plan(ROWS, capacity=5, chunk=2)


def test_room_is_for_the_longest_prompt_and_what_is_made():
  assert PLAN.length == 8


@pytest.mark.parametrize(
  'start',
  [
    lambda: engines.beams(SOURCE, PLAN, count=2, shown=1, length_power=1.0),
    lambda: engines.contrasts(SOURCE, PLAN, alpha=0.5, candidates=3),
    lambda: engines.drafts(SOURCE, SOURCE, PLAN, chain.Chain(), draft_tokens=2),
  ],
  ids=['beams', 'contrasts', 'drafts'],
)
def test_models_whose_rows_wait_are_refused(start):
  with pytest.raises(ValueError, match='at once; set wait=1 of the model'):
    start()
