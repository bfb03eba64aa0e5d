"""Whether the patches of a config are of a sensible length on its text.

Lengths, thresholds and budgets are those of the model's own functions:
models.patching decides where patches end, models.patch_rows which of them
find room.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from configs import base
from configs import stored
from data import codec
from data import pipeline
from data import text
from evals import patch_lengths
from models import byte_latent
from models import forward
from models import patch_rows
from models import patched
from models import patching as patching_lib

_SAMPLE = 2**16  # Ids of training rows that are looked at.
_SHORTEST = 1.5  # Bytes in the mean, below which patches save next to nothing.
_ENDLESS = 64  # Bytes in the mean, where nothing else limits patches.
_WANTED = 4.5  # Bytes in the mean, of the published models.


class Rows(NamedTuple):
  """Rows of ids, their documents (0 is padding), and nats after each id."""

  ids_BT: np.ndarray
  documents_BT: np.ndarray
  nats_BT: np.ndarray | None


class Room(NamedTuple):
  """Bytes, marks included, and those without a latent token; what they need.

  reserve: smallest one, in hundredths, with which all have room.
  """

  ids: int
  overflow: int
  reserve: float


def byte_latent_of(model: Any) -> byte_latent.ByteLatent:
  """The part of a model that makes patches; ValueError if it has none."""
  inner = model.model if isinstance(model, patched.Patched) else model
  if not isinstance(inner, byte_latent.ByteLatent):
    raise ValueError(
      f'model={type(model).__name__} makes no patches; give a run of a'
      ' Byte Latent Transformer, as one of configs/blt.py.'
    )
  return inner


def field(model: Any, name: str) -> str:
  """Where --set finds a field of the part that makes patches."""
  wrapped = isinstance(model, patched.Patched)
  return f'model.model.{name}' if wrapped else f'model.{name}'


def knob(rule: Any) -> str | None:
  """The field of a rule that decides how long patches are, if there is one.

  Of a Combined rule it is the threshold, while its rise stays.
  """
  return next((k for k in ('threshold', 'rise') if hasattr(rule, k)), None)


def closes(patching: patching_lib.Patching, rows: Rows) -> np.ndarray:
  """Whether a patch ends after each id (bool [B, T])."""
  return np.asarray(_closes(patching, None, None, rows))


def lengths(patching: patching_lib.Patching, rows: Rows) -> np.ndarray:
  """Bytes of every patch that holds any."""
  return _lengths(rows, closes(patching, rows))


def statistics(
  patching: patching_lib.Patching, rows: Rows
) -> patch_lengths.Statistics:
  """Of the patches of the rows; a patch is cut if the rule alone went on."""
  closes_BT = closes(patching, rows)
  alone = dataclasses.replace(patching, max_length=None)
  cut_BT = closes_BT & ~closes(alone, rows)
  cut_BT &= rows.ids_BT >= codec.OFFSET
  return patch_lengths.statistics(
    _lengths(rows, closes_BT), int(np.sum(cut_BT))
  )


def choose(
  patching: patching_lib.Patching,
  rows: Rows,
  wanted: Sequence[float] = patch_lengths.WANTED,
) -> list[patch_lengths.Choice]:
  """Thresholds (or rises) of the rule for mean lengths on these rows.

  None of them for a rule that has no such field.
  """
  name = knob(patching.rule)
  if name is None:
    return []
  scores_BT = np.asarray(rows.nats_BT, np.float32)
  if name == 'rise':
    # At a document's first bytes no rise is asked for, so any will do.
    scores_BT = np.diff(scores_BT, axis=1)
  place = jax.device_put(rows)

  def mean_at(value: float) -> float:
    closes_BT = _closes(patching, name, np.float32(value), place)
    return patch_lengths.mean(_lengths(rows, np.asarray(closes_BT)))

  return patch_lengths.choose(wanted, scores_BT, mean_at)


def room(model: byte_latent.ByteLatent, rows: Rows) -> Room:
  """What does not fit into the latent rows, `model.rows` of ours in each."""
  closes_BT = closes(model.patching, rows)
  sharing = math.gcd(len(rows.ids_BT), model.rows)
  length = sharing * rows.ids_BT.shape[1]

  def plan(budget: int) -> tuple[int, int]:
    used, overflow = _plan(rows.documents_BT, closes_BT, sharing, budget)
    return int(used), int(overflow)

  patches, _ = plan(length)
  reserve = max(math.ceil(100 * patches / length) / 100, 0.01)
  return Room(
    ids=int(np.sum(rows.documents_BT > 0)),
    overflow=plan(model.budget(length))[1],
    reserve=min(reserve, 1.0),
  )


def check(config: base.Config, params: Any, corpus: text.Corpus) -> None:
  """Warns, in one sentence, of patches that defeat the model's purpose.

  Looked at are rows of the first training steps, with the entropies that
  those read. Models without patches pass, and so do rules that say
  themselves how long patches are to be short.
  """
  model = config.model
  if not isinstance(model, patched.Patched | byte_latent.ByteLatent):
    return
  inner = byte_latent_of(model)
  # Of the whole job, on a device of each process: rows need no mesh.
  entropy_params = (params or {}).get('entropy')
  if entropy_params is not None and jax.process_count() > 1:
    entropy_params = multihost_utils.process_allgather(
      entropy_params, tiled=True
    )
  entropy_params = jax.device_get(entropy_params)
  kept = stored.entropies(config, params, corpus)
  with jax.set_mesh(jax.sharding.Mesh(jax.local_devices()[:1], ('data',))):
    rows = _sample(config, entropy_params, corpus, kept)
    warning = _warning(model, inner, rows)
  if warning and jax.process_index() == 0:
    logging.getLogger('absl').warning('%s', warning)


def _sample(
  config: base.Config, entropy_params: Any, corpus: text.Corpus, kept: Any
) -> Rows:
  """The rows that training reads first, about _SAMPLE ids of them."""
  sharing = math.gcd(
    config.batch_size // config.accumulate, byte_latent_of(config.model).rows
  )
  count = min(_SAMPLE, len(corpus.bytes)) // config.row_length
  batches = pipeline.batches(
    corpus,
    row_length=config.row_length,
    batch_size=sharing * max(count // sharing, 1),
    seed=config.seed,
    stored=kept,
  )
  batch = batches[0]
  nats_BT = batch.get('entropy')
  scorer = getattr(config.model, 'entropy', None)
  if nats_BT is None and scorer is not None:
    nats_BT = jax.jit(forward.pure(scorer))(
      entropy_params, batch['ids'], batch['documents']
    )
  return Rows(batch['ids'], batch['documents'], nats_BT)


def _warning(
  model: Any, inner: byte_latent.ByteLatent, rows: Rows
) -> str | None:
  """What is wrong with the patches of these rows, and what would help."""
  patching = inner.patching
  found = statistics(patching, rows)
  if not found.patches:
    return None
  name = knob(patching.rule)
  value = getattr(patching.rule, name) if name else repr(patching.rule)
  subject = f'{_decider(model, patching)}={value}'
  way_out = functools.partial(_way_out, model, patching, rows)
  means = f'patches of {found.mean:.2f} bytes in the mean'
  if found.mean < _SHORTEST and _may_be_longer(patching):
    return f'{subject} gives {means}, hardly longer than bytes; {way_out()}.'
  if found.cut > 0.5 and patching.max_length > 1:
    return (
      f'{subject} gives {means}, {found.cut:.0%} of which end only because of'
      f' max_length={patching.max_length}; {way_out()}.'
    )
  if patching.max_length is None and found.mean > _ENDLESS:
    return f'{subject} gives {means}, which nothing limits; {way_out()}.'
  needs = room(inner, rows)
  if not needs.overflow:
    return None
  usual = math.ceil(115 / found.mean) / 100
  return (
    f'{field(model, "reserve")}={inner.reserve} leaves'
    f' {needs.overflow / needs.ids:.2%} of the bytes without a latent token'
    f' (overflow={inner.overflow!r}): {means}; set it to'
    f' {min(max(needs.reserve, usual), 1.0):g}, or to'
    f' {math.ceil(115 / _WANTED) / 100:g} and make patches longer: {way_out()}.'
  )


def _decider(model: Any, patching: patching_lib.Patching) -> str:
  """The path of what decides how long patches are."""
  name = knob(patching.rule)
  return field(model, 'patching.rule' + (f'.{name}' if name else ''))


def _may_be_longer(patching: patching_lib.Patching) -> bool:
  """False for rules and limits that ask for short patches in so many words."""
  asked = patching_lib.EveryByte | patching_lib.Stride
  return not isinstance(patching.rule, asked) and patching.max_length != 1


def _way_out(model: Any, patching: patching_lib.Patching, rows: Rows) -> str:
  """A value that gives patches of the usual length, or what to do instead."""
  place = _decider(model, patching)
  limit = field(model, 'patching.max_length')
  found = choose(patching, rows, (_WANTED,))
  if not found:
    return f'choose another {place}, or change {limit}={patching.max_length}'
  if found[0].value is None:
    return (
      f'no value of {place} gives {_WANTED} bytes ({found[0].mean:.2f} is the'
      f' nearest), so change the rule or {limit}={patching.max_length} too'
    )
  return f'{place}={found[0].value} gives {found[0].mean:.2f} bytes'


def _lengths(rows: Rows, closes_BT: np.ndarray) -> np.ndarray:
  is_byte_BT = rows.ids_BT >= codec.OFFSET
  return patch_lengths.lengths(closes_BT, rows.documents_BT, is_byte_BT)


@functools.partial(jax.jit, static_argnames=('patching', 'name'))
def _closes(
  patching: patching_lib.Patching,
  name: str | None,
  value: jax.Array | None,
  rows: Rows,
) -> jax.Array:
  """Where patches end, with another threshold or rise if `name` says which."""
  if name is not None:
    rule = dataclasses.replace(patching.rule, **{name: value})
    patching = dataclasses.replace(patching, rule=rule)
  return patching.closes(*rows)


@functools.partial(jax.jit, static_argnames=('sharing', 'budget'))
def _plan(
  documents_BT: jax.Array, closes_BT: jax.Array, sharing: int, budget: int
) -> tuple[jax.Array, jax.Array]:
  """Latent tokens of the fullest latent row, and bytes without any."""
  plan = patch_rows.plan(
    documents_BT, closes_BT, rows=sharing, budget=lambda length: budget
  )
  used_W = jnp.sum(plan.tokens.document_BT > 0, axis=1)
  return jnp.max(used_W, initial=0), plan.overflow
