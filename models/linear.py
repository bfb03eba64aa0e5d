"""Linear layers: every projection of every model is a copy of a prototype.

A model takes a prototype (`linear=Dense()`) and makes its projections with
`prototype.copy(name=..., features=...)`; any module with these fields fits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dense(nn.Module):
  """y = x W, W ~ N(0, gain^2 / fan_in), truncated at three deviations.

  features: output width, set by the model that copies the prototype.
  gain: multiplies the initial deviation; 0 starts a residual branch silent.
  dtype: of the computation; parameters are float32.
  """

  features: int = 0
  gain: float = 1.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    deviation = self.gain * x.shape[-1] ** -0.5
    kernel = self.param(
      'kernel',
      nn.initializers.truncated_normal(deviation, lower=-3.0, upper=3.0),
      (x.shape[-1], self.features),
      jnp.float32,
    )
    # Contracting one token axis instead of two halves the CPU time of the
    # weight gradient.
    tokens = x.reshape(-1, x.shape[-1]).astype(self.dtype)
    out = tokens @ kernel.astype(self.dtype)
    return out.reshape(*x.shape[:-1], self.features)
