"""Up to which threshold basis-aware truncation keeps an id (samplers.bat)."""

import jax
import jax.numpy as jnp
import numpy as np

from evals import diversity
from samplers import support


def rules(
  basis_VC: np.ndarray, laws: diversity.Sorted, *, ids: int, steps: int = 8
) -> dict[str, diversity.Rule]:
  """BAT at the thresholds of epsilon and of eta, as evals.diversity has rules.

  basis_VC: from samplers.support.columns.
  ids: so many of the most probable ids are looked at; beyond them the
    threshold alone decides, which keeps fewer.
  steps: halvings of log t, from p of the id to 1.
  """
  t_NV = np.exp(laws.log_p_NV)
  count = min(ids, t_NV.shape[1])
  for row, (log_p_V, order_V) in enumerate(
    zip(laws.log_p_NV, laws.order_NV, strict=True)
  ):
    p_V = np.zeros_like(log_p_V)
    p_V[order_V] = np.exp(log_p_V)
    t_NV[row, :count] = _bisect(
      jnp.asarray(basis_VC),
      jnp.asarray(p_V, jnp.float32),
      jnp.asarray(order_V[:count], jnp.int32),
      jnp.int32(steps),
    )
  return {
    'bat(epsilon)': diversity.Rule(t_NV, True),
    'bat(eta)': diversity.Rule(diversity.as_eta(t_NV, laws.entropy_N1), True),
  }


@jax.jit
def _bisect(
  basis_VC: jax.Array, p_V: jax.Array, id_M: jax.Array, steps: jax.Array
) -> jax.Array:
  """The largest threshold at which each id is certified."""
  one = support.whiten(basis_VC, p_V[None])
  count = len(id_M)
  geometry = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), one
  )

  def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple:
    low_M, high_M = bounds
    middle_M = jnp.sqrt(low_M * high_M)
    status_M = support.decide(
      geometry, id_M, middle_M[:, None], jnp.ones(count, bool)
    )
    stays_M = status_M != support.REJECTED
    return (
      jnp.where(stays_M, middle_M, low_M),
      jnp.where(stays_M, high_M, middle_M),
    )

  own_M = p_V[id_M]
  # What underflowed is never certified.
  low_M = jnp.maximum(own_M, 1e-30)
  bounds = jax.lax.fori_loop(0, steps, halve, (low_M, jnp.ones(count)))
  return jnp.where(own_M > 0, bounds[0], 0.0)
