"""What a model and a sampler thought of every token of texts that were made."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import chain
from samplers import entropy
from samplers import history
from samplers import loop


class Trace(NamedTuple):
  """One value per generated token, 0 beyond the length of a row."""

  entropy_BN: jax.Array  # nats, of the law of the model
  kept_BN: jax.Array  # ids that the sampler left to choose from
  p_BN: jax.Array  # of the token in the law of the model
  q_BN: jax.Array  # of the token in the law it was drawn from


@functools.partial(jax.jit, static_argnames=('step',))
def replay(
  step: loop.Step,
  params: Any,
  cache: Any,
  rows: tuple[jax.Array, jax.Array, jax.Array],
  ids_BN: jax.Array,
  length_B: jax.Array,
  sampler: chain.Chain,
) -> Trace:
  """Reads texts again, one token after the other, as they were made.

  Args:
    step, params: As for samplers.loop.
    cache: Empty, with the room that samplers.loop.prefill needs.
    rows: ids_BT, lengths_B and keys_B that samplers.loop.prefill was given.
    ids_BN: What was generated.
    length_B: How much of it there is.
    sampler: What it was drawn with. Of a rule that leaves something to chance
      the keys repeat what it did.
  """
  state = loop.prefill(
    step, params, cache, *rows, capacity=ids_BN.shape[1], sampler=sampler
  )

  def advance(state: loop.State, place: jax.Array) -> tuple[loop.State, Trace]:
    active_B = place < length_B
    token_B = jax.lax.dynamic_index_in_dim(ids_BN, place, 1, keepdims=False)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(state.keys_B, place)
    changed_BV = sampler.transform(keys_B, state.logits_BV, state.memory)
    found = _describe(state.logits_BV, changed_BV, token_B)
    drawn = history.Drawn(token_B, active_B, changed_BV)
    logits_B1V, cache = step(
      params, token_B[:, None], active_B[:, None].astype(jnp.int32), state.cache
    )
    following = state._replace(
      cache=cache,
      logits_BV=logits_B1V[:, 0].astype(jnp.float32),
      memory=sampler.remember(state.memory, drawn),
    )
    return following, jax.tree.map(lambda x: jnp.where(active_B, x, 0), found)

  _, found = jax.lax.scan(advance, state, jnp.arange(ids_BN.shape[1]))
  return jax.tree.map(lambda x_NB: x_NB.T, found)


def _describe(
  logits_BV: jax.Array, changed_BV: jax.Array, token_B: jax.Array
) -> Trace:
  law, left = entropy.law(logits_BV), entropy.law(changed_BV)
  own = functools.partial(jnp.take_along_axis, indices=token_B[:, None], axis=1)
  return Trace(
    law.entropy_B1[:, 0],
    jnp.sum(changed_BV > -jnp.inf, axis=1),
    own(law.p_BV)[:, 0],
    own(left.p_BV)[:, 0],
  )
