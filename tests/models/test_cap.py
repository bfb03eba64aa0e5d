"""The cap on a core's size, and the gains that undo it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import structured

BTT = structured.BlockTensorTrain


@pytest.mark.parametrize('name', ['btt', 'kronecker'])
def test_a_cap_holds_against_large_steps(name):
  layer = {'btt': BTT(rank=2), 'kronecker': structured.Kronecker()}[name]
  layer = layer.copy(features=24, cap=True)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)))
  params = layer.init(jax.random.key(0), x)['params']

  @jax.jit
  def step(params):
    # Growth without bound is what this loss asks for.
    gradient = jax.grad(
      lambda p: -jnp.mean(jnp.square(layer.apply({'params': p}, x)))
    )(params)
    return jax.tree.map(lambda p, g: p - jnp.sign(g), params, gradient)

  for _ in range(100):
    params = step(params)
  chain = layer.chain(16, 24)
  for i, shape in enumerate(chain.shapes):
    kernel = np.asarray(params[structured.kernel_name(i)], np.float64)
    gain = float(params[structured.gain_name(i)])
    found = structured.capped(kernel, gain, shape)
    rms = np.sqrt(np.mean(kernel**2))
    assert rms > 1.5 and gain > 50
    size = structured.deviation(shape)
    assert 0.99 * size < np.sqrt(np.mean(found**2)) / gain <= size * 1.00001
  matrix = structured.to_dense(layer, params, d_in=16, d_out=24)
  found = layer.apply({'params': params}, x)
  np.testing.assert_allclose(
    found, x @ matrix, atol=1e-5 * jnp.abs(found).max()
  )


def test_a_cap_leaves_small_cores_alone_and_gains_undo_it():
  layer = BTT(rank=2, features=24)
  capped = layer.copy(cap=True)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((3, 16)), jnp.float32)
  params = {
    structured.kernel_name(i): jnp.full(s, 0.5 * structured.deviation(s))
    for i, s in enumerate(layer.chain(16, 24).shapes)
  }
  ones = {structured.gain_name(i): jnp.ones(()) for i in range(2)}
  np.testing.assert_allclose(
    capped.apply({'params': params | ones}, x),
    layer.apply({'params': params}, x),
  )
  larger = {
    name: 3 * rng.standard_normal(p.shape) for name, p in params.items()
  }
  matrix = np.asarray(structured.to_dense(layer, larger, d_in=16, d_out=24))
  found = structured.from_dense(capped, matrix)
  assert found[structured.gain_name(0)] > 2
  np.testing.assert_allclose(
    structured.to_dense(capped, found, d_in=16, d_out=24),
    matrix,
    atol=1e-5 * np.abs(matrix).max(),
  )
