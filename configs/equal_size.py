"""Networks of several structures whose files have one size.

All have the layers of a given network. Its structure decides how many numbers
a width takes, so the width is what differs, and the certificate is trained at
one number of bytes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bounds import header as headers
from bounds import quantise
from bounds import structure as structures
from configs import base
from configs import compress
from configs import predictor
from configs import sweep
from models import linear
from models import structured

# Widths are multiples of it, which all structures and heads of even width fit.
_GRAIN = 8
# Widths tried are up to so many times the one given.
_MOST = 8


class Kind(NamedTuple):
  """A structure: that of layers in the network, or of its weights in the file.

  scale: of its file's size, 1 to be compared at equal size.
  """

  name: str
  layer: nn.Module
  structure: structures.Structure = structures.PLAIN
  scale: float = 1.0


_DENSE = linear.Dense()
KINDS = (
  Kind('dense', _DENSE),
  Kind('Monarch, 4 blocks', structured.Monarch(blocks=4)),
  Kind('low rank, 1/4', structured.LowRank(fraction=0.25)),
  Kind('Kronecker', structured.Kronecker()),
  Kind('shared blocks', _DENSE, structures.Shared(1)),
  Kind('LoRA on random, rank 8', _DENSE, structures.LowRankOnRandom(8)),
  Kind('SubLoRA, rank 8', _DENSE, structures.Subspace(8)),
  Kind('dense, half', _DENSE, scale=0.5),
  Kind('dense, twice', _DENSE, scale=2.0),
)


def jobs(
  config: base.Config,
  method: compress.OnCertificate,
  header: headers.Header,
  target: compress.Target,
) -> list[sweep.Job]:
  """A file of every kind, each trained from fresh parameters.

  method: how; its bits per weight times the weights of the config's network is
    the size of the files.
  """
  if not hasattr(config.model, 'hidden') or not hasattr(config.model, 'linear'):
    raise ValueError(
      f'{type(config.model).__name__} has no width, hidden and linear to vary;'
      ' sweep a config with a models.lm.ByteLM'
    )
  weights = count(config.model, structures.PLAIN)

  def job(kind: Kind) -> sweep.Job:
    def make() -> tuple[dict[str, quantise.Coded], headers.Header]:
      model = sized(config.model, kind, round(kind.scale * weights))
      size = round(kind.scale * method.bits * weights / 8)
      chosen = dataclasses.replace(config, model=model)
      aim = dataclasses.replace(
        target, structure=kind.structure, file_bytes=size
      )
      coded = method(chosen, fresh(chosen), aim)
      plain = kind.structure == structures.PLAIN
      return coded, dataclasses.replace(
        header,
        model=base.to_json(model),
        structure=None if plain else base.to_json(kind.structure),
      )

    return sweep.Job(kind.name, sweep.slug(kind.name), make)

  return [job(kind) for kind in KINDS]


def fresh(config: base.Config) -> Any:
  """Parameters as a run of the config begins with them."""
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  return config.model.init(jax.random.key(config.seed), ids_BT)['params']


def sized(model: nn.Module, kind: Kind, weights: int) -> nn.Module:
  """The network of a kind whose file holds about `weights` numbers.

  Of the widest that does not exceed it, `hidden` is then widened. Raises
  ValueError if not even the narrowest is small enough.
  """
  ratio = model.hidden / model.width
  structure = kind.structure

  def of_width(width: int, hidden: int) -> nn.Module:
    changed = model.clone(width=width, hidden=hidden, linear=kind.layer)
    return changed.clone(parent=None)

  def fits(width: int, hidden: int) -> bool:
    return count(of_width(width, hidden), structure) <= weights

  def hidden_of(width: int) -> int:
    return max(_GRAIN, round(ratio * width / _GRAIN) * _GRAIN)

  grain = math.lcm(_GRAIN, 4 * model.heads)
  widths = range(grain, _MOST * model.width + 1, grain)
  best = _last(widths, lambda width: fits(width, hidden_of(width)))
  if best is None:
    raise ValueError(
      f'no network of structure {kind.name} has at most {weights} weights; give'
      ' the config a wider one'
    )
  most = hidden_of(best) + 4 * hidden_of(grain)
  hiddens = range(hidden_of(best), most + 1, _GRAIN)
  return of_width(best, _last(hiddens, lambda hidden: fits(best, hidden)))


def count(model: nn.Module, structure: structures.Structure) -> int:
  """How many numbers the file of a network holds."""
  shapes = structure.shapes(_shapes_of(model))
  return sum(math.prod(shape) for shape in shapes.values())


@functools.lru_cache
def _shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
  return predictor.shapes_of(model)


def _last(numbers: range, fits: Callable[[int], bool]) -> int | None:
  """The last number that fits, of those where all that fit come first."""
  low, high = 0, len(numbers)
  while low < high:
    middle = (low + high) // 2
    if fits(numbers[middle]):
      low = middle + 1
    else:
      high = middle
  return numbers[low - 1] if low else None
