"""The dense projection against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import linear
from models import structured


@pytest.mark.parametrize('shape', [(5,), (3, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_dense_is_a_product_over_the_last_axis(shape):
  rng = np.random.default_rng(len(shape))
  x, kernel = rng.normal(size=shape), rng.normal(size=(5, 7))
  found = linear.Dense(features=7).apply(
    {'params': {'kernel': jnp.asarray(kernel, jnp.float32)}},
    jnp.asarray(x, jnp.float32),
  )
  assert found.shape == (*shape[:-1], 7)
  np.testing.assert_allclose(found, x @ kernel, atol=1e-5)


@pytest.mark.parametrize('gain', [1.0, 0.5, 0.0])
def test_initial_weights_have_the_stated_deviation(gain):
  layer = linear.Dense(features=500, gain=gain)
  params = layer.init(jax.random.key(0), jnp.zeros((1, 200)))['params']
  kernel = np.asarray(params['kernel'], np.float64)
  deviation = gain * 200**-0.5
  # Cut at three deviations, a normal loses 1.35 % of its own.
  np.testing.assert_allclose(kernel.std(), 0.98658 * deviation, rtol=0.01)
  assert np.abs(kernel).max() <= 3 * deviation * 1.001
  assert abs(kernel.mean()) <= 0.02 * deviation


def test_dtype_is_that_of_the_product_not_of_the_weights():
  layer = linear.Dense(features=4, dtype='bfloat16')
  x = jnp.ones((2, 3))
  variables = layer.init(jax.random.key(0), x)
  assert variables['params']['kernel'].dtype == jnp.float32
  assert layer.apply(variables, x).dtype == jnp.bfloat16


def test_a_single_prototype_is_that_of_all_but_the_head():
  layer = structured.Kronecker()
  found = {role: linear.of_role(layer, role) for role in linear.ROLES}
  assert found.pop('head') == linear.Dense()
  assert found == dict.fromkeys(('attention', 'feed_forward', 'patches'), layer)


def test_roles_are_their_own_prototypes_or_the_default():
  head, rest = structured.LowRank(rank=2), structured.Kronecker()
  roles = linear.Roles(rest, head=head)
  found = [linear.of_role(roles, role) for role in linear.ROLES]
  assert found == [rest, rest, rest, head]


def test_an_unknown_role_is_named():
  with pytest.raises(ValueError, match=r"'mlp'; the roles are attention, feed"):
    linear.of_role(linear.Dense(), 'mlp')
