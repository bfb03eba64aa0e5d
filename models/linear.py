"""Linear layers: every projection of every model is a copy of a prototype.

A model takes a prototype (`linear=Dense()`) and makes its projections with
`prototype.copy(name=..., features=...)`; any module with these fields fits.
`Roles` in its place holds a prototype for every kind of projection.
"""

import dataclasses

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


_DENSE = Dense()


@dataclasses.dataclass(frozen=True)
class Roles:
  """A prototype for every kind of projection; None stands for `default`.

  attention: query, key, value and output, also between bytes and patches.
  feed_forward: gate, up and down.
  patches: between bytes and patches, besides attention.
  head: the output layer of the model.
  """

  default: nn.Module = _DENSE
  attention: nn.Module | None = None
  feed_forward: nn.Module | None = None
  patches: nn.Module | None = None
  head: nn.Module | None = None


ROLES = tuple(field.name for field in dataclasses.fields(Roles))[1:]


def of_role(linear: nn.Module | Roles, role: str) -> nn.Module:
  """The prototype of a role; a single prototype is that of all but the head.

  Raises ValueError for a role that is no field of `Roles`.
  """
  if role not in ROLES:
    raise ValueError(
      f'linear: unknown role {role!r}; the roles are {", ".join(ROLES)}.'
    )
  if isinstance(linear, Roles):
    found = getattr(linear, role)
    return linear.default if found is None else found
  return _DENSE if role == 'head' else linear
