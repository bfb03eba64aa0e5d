"""Linear layers: every projection of every model is a copy of a prototype.

A model takes a prototype (`linear=Dense()`) and makes its projections with
`prototype.copy(name=..., features=...)`; any module with these fields fits.
`Roles` in its place holds a prototype for every kind of projection.
"""

import dataclasses
import difflib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import pinning


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
    tokens = x.astype(self.dtype)
    if not pinning.splits_tokens():
      # Contracting one token axis instead of two halves the CPU time of the
      # weight gradient.
      tokens = tokens.reshape(-1, x.shape[-1])
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

  def __new__(cls, *prototypes: nn.Module, **by_role: nn.Module) -> 'Roles':
    """Raises ValueError for a role that there is not."""
    known = [field.name for field in dataclasses.fields(cls)]
    for role, layer in by_role.items():
      if role not in known:
        near = difflib.get_close_matches(role, known, n=1)
        raise ValueError(
          f'linear.Roles: unknown role {role!r} for {type(layer).__name__};'
          f' the roles are {", ".join(known)}, as {[*near, known[0]][0]}.'
        )
    if len(prototypes) > len(known):
      raise ValueError(
        f'linear.Roles: {len(prototypes)} prototypes for the roles'
        f' {", ".join(known)}; give each by its name.'
      )
    return super().__new__(cls)

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      layer = getattr(self, field.name)
      if not isinstance(layer, nn.Module | None) or (
        layer is None and field.name == 'default'
      ):
        raise ValueError(
          f'linear.Roles: {field.name}={layer!r} must be a prototype, as'
          ' linear.Dense() or structured.BlockTensorTrain().'
        )


ROLES = tuple(field.name for field in dataclasses.fields(Roles))[1:]


def with_linear(model: nn.Module, layer: nn.Module | Roles) -> nn.Module:
  """The model with these projections, also one around another."""
  if isinstance(getattr(model, 'model', None), nn.Module):
    inner = with_linear(model.model, layer)
    return model.clone(parent=None, model=inner)
  if not hasattr(model, 'linear'):
    raise ValueError(
      f'{type(model).__name__} has no field linear, the prototype of its'
      ' projections; use models.lm.ByteLM or models.byte_latent.ByteLatent.'
    )
  return model.clone(parent=None, linear=layer)


def mapped(
  linear: nn.Module | Roles, change: Callable[[nn.Module], nn.Module]
) -> nn.Module | Roles:
  """Every prototype changed, those that are None left."""
  if not isinstance(linear, Roles):
    return change(linear)
  given = {f.name: getattr(linear, f.name) for f in dataclasses.fields(linear)}
  return Roles(
    **{
      name: None if layer is None else change(layer)
      for name, layer in given.items()
    }
  )


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
