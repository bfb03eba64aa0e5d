"""Which ids a softmax bottleneck proves to be possible.

The output layer W[V, D] leaves a law over V ids only D degrees of freedom. At
the optimum of the cross-entropy W^T p = W^T p*, so if no law q with q_i = 0,
W^T q = W^T p and q_j <= p_j / (1 - t) exists, id i has p*_i > 0 wherever no
log-probability is off by more than log 1 / (1 - t). Finlayson et al. 2024,
Closing the Curious Case of Neural Text Degeneration (arXiv 2310.01693).

No solver of linear programs: with r = (q - p) / p_i the q that come nearest to
the equations, over all bounds on r, are found by Newton steps on the dual of
min |r|^2. Such a q that meets them proves that i may be impossible; a
direction in which no q reaches as far as it must proves the contrary.

C is the number of columns of the basis, E = C + 1 with the column of ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import sums

# What `decide` found of an id.
OPEN, REJECTED, CERTIFIED = 0, 1, 2

_RIDGE = 1e-6  # of the largest variance, and of the Newton matrix
_REACHED = 3e-6  # of the right side: float32 does not resolve less
_ROUNDS = 64
_HALVINGS = 16
_DAMPING = 1e-3
_LARGEST = 1 - 1e-6  # threshold above which 1 / (1 - t) has no digits


class Geometry(NamedTuple):
  """The law of every row, and its basis with a column of ones.

  The other columns have mean 0 and about unit variance under the law.
  """

  p_BV: jax.Array
  basis_BVE: jax.Array


class _Task(NamedTuple):
  """sum_j p_j r_j x_j = x_i over j != i, low <= r <= high, for one i a row."""

  p_BV: jax.Array  # 0 at i
  basis_BVE: jax.Array
  wanted_BE: jax.Array
  low_B1: jax.Array
  high_B1: jax.Array


class _Search(NamedTuple):
  dual_BE: jax.Array
  status_B: jax.Array
  round: jax.Array


def columns(output_VD: np.ndarray | jax.Array, count: int) -> np.ndarray:
  """[V, C] float32: an output layer on its C main right singular vectors.

  The mean row is taken out, which changes no answer: q and p sum to one.

  Args:
    output_VD: logits = output_VD @ hidden, finite.
    count: C; D is taken where that is less.
  """
  output_VD = np.asarray(output_VD, np.float64)
  if output_VD.ndim != 2 or not np.isfinite(output_VD).all():
    raise ValueError(
      f'output layer of shape {output_VD.shape} must be finite numbers [V, D];'
      ' check the checkpoint'
    )
  _, _, right_DD = np.linalg.svd(
    output_VD.T @ output_VD, hermitian=True, full_matrices=False
  )
  basis_VC = output_VD @ right_DD[:count].T
  basis_VC -= basis_VC.mean(axis=0)
  scale = np.sqrt(np.mean(np.square(basis_VC))) or 1.0
  return (basis_VC / scale).astype(np.float32)


def whiten(basis_VC: jax.Array, p_BV: jax.Array) -> Geometry:
  """The geometry of each law, for `decide`."""
  basis_BVC = jnp.broadcast_to(basis_VC[None], (*p_BV.shape, basis_VC.shape[1]))
  # As many products as rows: one for all would depend on how many they are.
  mean_BC = jnp.einsum('BV,BVC->BC', p_BV, basis_BVC, precision='highest')
  basis_BVC -= mean_BC[:, None]
  variance_BCC = jnp.einsum(
    'BVC,BVE->BCE', p_BV[:, :, None] * basis_BVC, basis_BVC, precision='highest'
  )
  size = basis_VC.shape[1]
  diagonal_BC = jnp.diagonal(variance_BCC, axis1=1, axis2=2)
  most_B11 = jnp.max(diagonal_BC, axis=1, initial=0)[:, None, None]
  ridge_B11 = jnp.maximum(_RIDGE * most_B11, 1e-30)
  factor_BCC = jnp.linalg.cholesky(
    variance_BCC + ridge_B11 * jnp.eye(size)[None]
  )
  # Only the order of magnitude matters, so nothing is lost by an inverse.
  eye_BCC = jnp.broadcast_to(jnp.eye(size), factor_BCC.shape)
  inverse_BCC = jax.scipy.linalg.solve_triangular(
    factor_BCC, eye_BCC, lower=True
  )
  basis_BVC = jnp.einsum(
    'BVC,BEC->BVE', basis_BVC, inverse_BCC, precision='highest'
  )
  ones_BV1 = jnp.ones((*p_BV.shape, 1), jnp.float32)
  return Geometry(p_BV, jnp.concatenate([ones_BV1, basis_BVC], axis=2))


def decide(
  geometry: Geometry,
  id_B: jax.Array,
  threshold_B1: jax.Array,
  active_B: jax.Array,
) -> jax.Array:
  """[B]: CERTIFIED, REJECTED, or OPEN where float32 could not tell.

  What is not OPEN was proved, up to rounding: by a q, or by a direction.

  Args:
    geometry: From `whiten`.
    id_B: The id to decide on, one per row.
    threshold_B1: t, the largest p that may belong to an impossible id.
    active_B: Rows that are not are left OPEN and cost no round.
  """
  task, is_simple_B, status_B = _begin(geometry, id_B, threshold_B1)
  status_B = jnp.where(active_B, status_B, OPEN)
  searched_B = active_B & ~is_simple_B

  def is_open(search: _Search) -> jax.Array:
    open_B = searched_B & (search.status_B == OPEN)
    return jnp.any(open_B) & (search.round < _ROUNDS)

  # Where every p_j counts the same, this is the answer without bounds.
  start = _Search(task.wanted_BE, status_B, jnp.int32(0))
  return jax.lax.while_loop(
    is_open, lambda search: _improve(task, search), start
  ).status_B


def _begin(
  geometry: Geometry, id_B: jax.Array, threshold_B1: jax.Array
) -> tuple[_Task, jax.Array, jax.Array]:
  """The task, where the threshold alone decides, and what it decides."""
  p_BV, basis_BVE = geometry
  rows_B = jnp.arange(len(id_B))
  own_B1 = p_BV[rows_B, id_B][:, None]
  is_zero_B = own_B1[:, 0] <= 0
  is_above_B = (own_B1 >= threshold_B1)[:, 0] & ~is_zero_B
  status_B = jnp.where(is_above_B, CERTIFIED, OPEN)
  status_B = jnp.where(is_zero_B, REJECTED, status_B)
  own_B1 = jnp.where(is_zero_B[:, None], 1.0, own_B1)
  threshold_B1 = jnp.minimum(threshold_B1, _LARGEST)
  task = _Task(
    p_BV=p_BV.at[rows_B, id_B].set(0.0),
    basis_BVE=basis_BVE,
    wanted_BE=basis_BVE[rows_B, id_B],
    low_B1=-1 / own_B1,
    high_B1=threshold_B1 / (1 - threshold_B1) / own_B1,
  )
  return task, is_above_B | is_zero_B, status_B


def _improve(task: _Task, search: _Search) -> _Search:
  """One damped Newton step of every open row, and what it proves."""
  score_BV = _scores(task, search.dual_BE)
  r_BV = jnp.clip(score_BV, task.low_B1, task.high_B1)
  missing_BE = task.wanted_BE - _moments(task, r_BV)
  is_free_BV = (score_BV > task.low_B1) & (score_BV < task.high_B1)
  weights_BV = jnp.where(is_free_BV, task.p_BV, 0.0)
  matrix_BEE = jnp.einsum(
    'BVE,BVF->BEF',
    weights_BV[:, :, None] * task.basis_BVE,
    task.basis_BVE,
    precision='highest',
  )
  # Far from a solution few ids are free, whose matrix is no good guide.
  share_B1 = _norm(missing_BE) / _norm(task.wanted_BE)
  damping_B1 = jnp.maximum(_RIDGE, _DAMPING * share_B1)
  size = task.basis_BVE.shape[2]
  factor = jax.scipy.linalg.cho_factor(
    matrix_BEE + damping_B1[:, :, None] * jnp.eye(size)[None]
  )
  step_BE = _solve(factor, missing_BE)
  step_BV = _scores(task, step_BE)
  # The r of the free ids, moved on their own: clipping the scores would not
  # give more digits than the scores have.
  for _ in range(2):
    left_BE = task.wanted_BE - _moments(task, r_BV)
    r_BV += jnp.where(is_free_BV, _scores(task, _solve(factor, left_BE)), 0.0)
    r_BV = jnp.clip(r_BV, task.low_B1, task.high_B1)
  left_BE = task.wanted_BE - _moments(task, r_BV)
  is_rejected_B = (_norm(left_BE) <= _REACHED * _norm(task.wanted_BE))[:, 0]
  is_certified_B = _separates(task, search.dual_BE, score_BV)
  is_certified_B |= _separates(task, step_BE, step_BV)
  is_certified_B |= _separates(task, missing_BE, _scores(task, missing_BE))
  found_B = jnp.where(
    is_certified_B, CERTIFIED, jnp.where(is_rejected_B, REJECTED, OPEN)
  )
  length_B1 = _line_search(task, score_BV, step_BV, step_BE)
  is_open_B = search.status_B == OPEN
  return _Search(
    jnp.where(
      is_open_B[:, None],
      search.dual_BE + length_B1 * step_BE,
      search.dual_BE,
    ),
    jnp.where(is_open_B, found_B, search.status_B),
    search.round + 1,
  )


def _norm(x_BE: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x_BE, axis=1, keepdims=True)


def _solve(factor: tuple[jax.Array, bool], right_BE: jax.Array) -> jax.Array:
  return jax.scipy.linalg.cho_solve(factor, right_BE[:, :, None])[:, :, 0]


def _scores(task: _Task, dual_BE: jax.Array) -> jax.Array:
  return jnp.einsum('BVE,BE->BV', task.basis_BVE, dual_BE, precision='highest')


def _moments(task: _Task, r_BV: jax.Array) -> jax.Array:
  return jnp.einsum(
    'BV,BVE->BE', task.p_BV * r_BV, task.basis_BVE, precision='highest'
  )


def _along(task: _Task, dual_BE: jax.Array) -> jax.Array:
  return jnp.einsum('BE,BE->B', task.wanted_BE, dual_BE, precision='highest')


def _separates(
  task: _Task, dual_BE: jax.Array, score_BV: jax.Array
) -> jax.Array:
  """Is what r must reach in this direction more than any r can?"""
  wanted_B = _along(task, dual_BE)
  most_BV = jnp.maximum(task.low_B1 * score_BV, task.high_B1 * score_BV)
  most_B = sums.last(task.p_BV * most_BV)
  return most_B < (1 - _REACHED) * wanted_B


def _line_search(
  task: _Task, score_BV: jax.Array, step_BV: jax.Array, step_BE: jax.Array
) -> jax.Array:
  """[B, 1]: how far to go, until the slope is at most half of what it was."""
  wanted_B1 = _along(task, step_BE)[:, None]

  def slope(length_B1: jax.Array) -> jax.Array:
    r_BV = jnp.clip(score_BV + length_B1 * step_BV, task.low_B1, task.high_B1)
    return (
      sums.column(task.p_BV * r_BV * step_BV) - wanted_B1
    )

  zero_B1 = jnp.zeros_like(wanted_B1)
  enough_B1 = 0.5 * jnp.abs(slope(zero_B1))

  def halve(_: jax.Array, bounds: tuple[jax.Array, ...]) -> tuple:
    low_B1, high_B1, at_B1 = bounds
    slope_B1 = slope(at_B1)
    is_low_B1 = slope_B1 < 0
    low_B1 = jnp.where(is_low_B1, at_B1, low_B1)
    high_B1 = jnp.where(is_low_B1, high_B1, at_B1)
    middle_B1 = jnp.where(
      high_B1 == jnp.inf, 4 * low_B1, 0.5 * (low_B1 + high_B1)
    )
    is_found_B1 = jnp.abs(slope_B1) <= enough_B1
    return low_B1, high_B1, jnp.where(is_found_B1, at_B1, middle_B1)

  one_B1 = jnp.ones_like(wanted_B1)
  bounds = zero_B1, jnp.full_like(one_B1, jnp.inf), one_B1
  low_B1, _, at_B1 = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
  # Up to the low bound it is all downhill.
  is_found_B1 = jnp.abs(slope(at_B1)) <= enough_B1
  return jnp.where(is_found_B1 | (low_B1 == 0), at_B1, low_B1)
