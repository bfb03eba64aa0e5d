"""The train step: gradients of summed losses, one optimizer update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from training import objectives


class TrainState(NamedTuple):
  """Everything that training changes; a plain pytree, saved as a whole."""

  step: jax.Array
  params: Any
  optimizer: optax.OptState
  key: jax.Array


class Metrics(NamedTuple):
  """Of one step, on device: means per target and global norms."""

  loss: jax.Array
  means: dict[str, jax.Array]
  targets: jax.Array
  gradient_norm: jax.Array
  finite: jax.Array


def create(
  params: Any, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    jnp.zeros((), jnp.int32), params, optimizer.init(params), key
  )


def gradients(
  objective: objectives.NextToken,
  apply: objectives.Apply,
  params: Any,
  batch: objectives.Batch,
  accumulate: int,
) -> tuple[objectives.Sums, Any]:
  """Sums of the batch and the gradient of its mean loss.

  With `accumulate` > 1 the rows are processed in that many equal parts; sums
  and gradients of sums are added and divided once, so the result is that of
  the whole batch however targets are spread over the parts.
  """

  def loss(params: Any, part: objectives.Batch) -> tuple[jax.Array, Any]:
    sums = objective(apply, params, part)
    return sums.loss, sums

  gradient = jax.grad(loss, has_aux=True)
  if accumulate == 1:
    grads, sums = gradient(params, batch)
  else:
    # Part j takes rows j, j + accumulate, ...: each device keeps its rows.
    parts = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0),
      batch,
    )

    def add(total: Any, part: objectives.Batch) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, gradient(params, part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient, params, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (grads, sums), _ = jax.lax.scan(add, zeros, parts)
  scale = 1.0 / jnp.maximum(sums.count, 1.0)
  return sums, jax.tree.map(lambda g: g * scale, grads)


def train_step(
  state: TrainState,
  batch: objectives.Batch,
  *,
  objective: objectives.NextToken,
  apply: objectives.Apply,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
  """One update. A non-finite loss or gradient leaves the parameters alone.

  Then `metrics.finite` is False and only the step counter moves: the caller
  stops, and the state it holds is still the last good one.
  """
  sums, grads = gradients(objective, apply, state.params, batch, accumulate)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
  updates, moments = optimizer.update(grads, state.optimizer, state.params)
  params = optax.apply_updates(state.params, updates)
  params, moments = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, moments),
    (state.params, state.optimizer),
  )
  new = TrainState(state.step + 1, params, moments, state.key)
  count = jnp.maximum(sums.count, 1.0)
  return new, Metrics(
    loss=sums.loss / count,
    means={name: total / count for name, total in sums.metrics.items()},
    targets=sums.count,
    gradient_norm=norm,
    finite=finite,
  )
