"""Where parameters come from that a run does not begin at random.

Each is a frozen dataclass, called once with the config, its freshly drawn
parameters and the train split; it returns the parameters to begin with.
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from configs import base
from configs import restore
from data import packing
from data import text
from models import ngram_entropy
from training import sharding
from training import transfer


@dataclasses.dataclass(frozen=True)
class FromRun:
  """The parameters below `path` are those of another run.

  path: as 'entropy/lm'; '' takes all.
  directory: run directory; source: path there, '' for all it has.
  """

  path: str
  directory: str
  source: str = ''

  def __call__(
    self, config: base.Config, params: Any, corpus: text.Corpus
  ) -> Any:
    del config, corpus
    theirs = restore.restore(os.path.expanduser(self.directory)).params
    found = _flat(_below(theirs, self.source, self.directory))
    wanted = _flat(_below(params, self.path, 'this config'))
    for name in [*wanted, *found]:
      here, there = (_spelled(x.get(name)) for x in (wanted, found))
      if here != there:
        raise ValueError(
          f'initial: {self.path}/{name} is {here} in this config but {there} in'
          f' {self.directory}; give both runs the same sizes and vocabulary, or'
          ' name another run.'
        )
    return _replaced(params, self.path, found)


@dataclasses.dataclass(frozen=True)
class FitNgramEntropy:
  """The tables of the models.ngram_entropy at `path`, from the train split.

  max_bytes: only the first so many bytes of it are read.
  """

  path: str = 'entropy'
  max_bytes: int = 50_000_000

  def __call__(
    self, config: base.Config, params: Any, corpus: text.Corpus
  ) -> Any:
    model = config.model
    for name in self.path.split('/'):
      model = getattr(model, name)
    rows = packing.Rows(corpus, 4096)
    count = min(len(rows), -(-self.max_bytes // rows.row_length))
    tables = ngram_entropy.fit(model, (rows[i] for i in range(count)))
    return _replaced(params, self.path, _flat(tables))


@dataclasses.dataclass(frozen=True)
class LikeBase:
  """Embeddings and outputs have initial sizes that hold at every width.

  What the optimizer's rates of other widths go with (training.transfer).

  model: that the sizes are taken from; None for `optimizer.base`.
  """

  model: Any = None

  def __call__(
    self, config: base.Config, params: Any, corpus: text.Corpus | None
  ) -> Any:
    del corpus
    model = config.optimizer.base if self.model is None else self.model
    if model is None:
      raise ValueError(
        'initial: LikeBase needs optimizer.base, the model for which the'
        ' learning rate was chosen.'
      )
    factors = transfer.deviations(params, transfer.base_shapes(model))
    return jax.tree_util.tree_map_with_path(
      lambda path, x: x * factors[sharding.name(path)], params
    )


def _flat(tree: Any) -> dict[str, np.ndarray]:
  return traverse_util.flatten_dict(tree, sep='/')


def _below(params: Any, path: str, where: str) -> Any:
  """The parameters under a path; ValueError if there are none."""
  for name in filter(None, path.split('/')):
    if not isinstance(params, dict) or name not in params:
      known = ', '.join(params) if isinstance(params, dict) else 'none'
      raise ValueError(
        f'initial: {where} has no parameters {path!r} ({name!r} is not among'
        f' {known}).'
      )
    params = params[name]
  return params


def _replaced(params: Any, path: str, leaves: dict[str, Any]) -> Any:
  """`params` with leaves below a path exchanged."""
  prefix = f'{path}/' if path else ''
  flat = _flat(params) | {f'{prefix}{k}': v for k, v in leaves.items()}
  return traverse_util.unflatten_dict(flat, sep='/')


def _spelled(leaf: Any) -> str:
  return 'absent' if leaf is None else str(np.shape(leaf))
