"""Autoregressive transformer over the events of an entity, cell by cell.

The joint distribution of a table's rows as in STEP (arXiv 2410.10648): events
in the order of time, the columns of an event one after the other, each with
its own softmax. Cells are read in groups of `stride`: with 1 every cell is a
position of the transformer, as published; with all columns of an event one
position is an event, which costs a fraction. Cells of an unfinished group are
summed, as in NADE (Larochelle and Murray, 2011), and added to what the
transformer says of the group before; the last cell of a group is predicted by
the transformer after it has read all others.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import attention
from models import blocks
from models import event_cells
from models import linear
from models import masks
from models import stacks


class Cache(NamedTuple):
  """Decoding state of a batch, of one size however long the history.

  trunk: of the transformer; length_B: events read; cell_BD: embedding of the
  last cell; state_BD: the transformer's last output; recent_BRC: ids of the
  last `reach` events, oldest first.
  """

  trunk: Any
  length_B: jax.Array
  cell_BD: jax.Array
  state_BD: jax.Array
  recent_BRC: jax.Array


class EventLM(nn.Module):
  """Distribution of every cell given the cells before it.

  trunk: the transformer over groups of cells, whose linear and dtype are set.
  columns: ids of each column, in the order of a row; () takes those of the
    data when training begins. numbers: columns that have numbers, likewise.
  stride: cells of a group, a divisor of the number of columns; None for all.
  cell_width, cell_hidden, cell_layers: of the feed-forward layers between the
    transformer and the softmax of a column.
  waves, reach: as in event_cells.CellEmbedding.
  linear: prototype of every projection except the heads, or linear.Roles.
  """

  trunk: stacks.Stack
  columns: tuple[int, ...] = ()
  numbers: tuple[int, ...] = ()
  stride: int | None = None
  cell_width: int = 64
  cell_hidden: int = 128
  cell_layers: int = 1
  waves: int = 8
  reach: int = 16
  linear: Any = linear.Dense()
  feed_forward: nn.Module = blocks.FeedForward()
  norm_epsilon: float = 1e-5
  dtype: str = 'float32'

  @property
  def max_length(self) -> None:
    """Rows and streams may be of any length."""

  @property
  def vocabulary_size(self) -> int:
    """Ids are below it."""
    return sum(self.columns)

  def init_cache(self, batch_size: int, length: int) -> Cache:
    """An empty cache for up to `length` ids per row."""
    positions = -(-length // self._group)
    trunk = self.trunk.copy(parent=None, dtype=self.dtype)
    empty = trunk.init_cache(batch_size, positions)
    return self._nothing(batch_size)._replace(trunk=empty)

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: Cache | None = None,
    *,
    value_BT: jax.Array | None = None,
    rank_BT: jax.Array | None = None,
    target_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """What each cell may be, given those before it, and the extended cache.

    ids_BT: whole events, columns always in the order of `columns`. A cell's
      own id does not count for its own distribution.
    documents_BT: equal ids are one entity, 0 is padding; None means one entity
      per row. With a cache, every row goes on with a single entity, and
      padding may only stand at the row's end.
    value_BT: float32 numbers, NaN where there is none.
    rank_BT: the place of each cell in its event, a permutation of all; None
      reads the columns from first to last.
    target_BT: one id per cell [B, T], or some [B, T, N].

    Returns the log-probabilities of `target_BT`, without it logits [B, T, V],
    which are -inf for ids of other columns.
    """
    batch, length = ids_BT.shape
    if documents_BT is None:
      documents_BT = jnp.ones_like(ids_BT)
    ids_BEC, value_BEC, rank_BEC = (
      self._events(x) for x in (ids_BT, value_BT, rank_BT)
    )
    documents_BE = self._events(documents_BT)[..., 0]
    before, tokens = cache, _next_tokens(documents_BE, cache)
    if before is None:
      before = self._nothing(batch)
    x_BECD = self._embed(ids_BEC, value_BEC, tokens, before.recent_BRC)
    if rank_BEC is None:
      x_BECF, after = self._read(x_BECD, tokens, before)
    else:
      place_C = jnp.arange(len(self.columns))[None, None, None]
      moved_BECQ = (rank_BEC[..., None] == place_C).astype(x_BECD.dtype)
      x_BEQD = _einsum('BECQ,BECD->BEQD', moved_BECQ, x_BECD)
      x_BEQF, after = self._read(x_BEQD, tokens, before)
      x_BECF = _einsum('BECQ,BEQF->BECF', moved_BECQ, x_BEQF)
    targets_BECN = None
    if target_BT is not None:
      targets_BECN = self._events(target_BT.reshape(batch, length, -1))
    out_BTN = self._heads(self._cells(x_BECF), targets_BECN)[:, :length]
    if target_BT is not None:
      out_BTN = out_BTN.reshape(target_BT.shape)
    if cache is None:
      return out_BTN, None
    history_BSC = jnp.concatenate([cache.recent_BRC, ids_BEC], axis=1)
    new_B = after.length_B - cache.length_B
    recent_BRC = _latest(history_BSC, new_B, self.reach)
    return out_BTN, after._replace(recent_BRC=recent_BRC)

  @property
  def _group(self) -> int:
    """Cells of a group."""
    stride = len(self.columns) if self.stride is None else self.stride
    if not self.columns or stride < 1 or len(self.columns) % stride:
      raise ValueError(
        f'model.stride={self.stride} must divide the {len(self.columns)}'
        ' columns of model.columns, which train.py takes from the data; None'
        ' is all of them.'
      )
    return stride

  def _nothing(self, batch_size: int) -> Cache:
    """What is known before the first event, without the transformer's part."""
    zeros_BD = jnp.zeros((batch_size, self.trunk.width), self.dtype)
    return Cache(
      None,
      jnp.zeros((batch_size,), jnp.int32),
      zeros_BD,
      zeros_BD,
      jnp.zeros((batch_size, self.reach, len(self.columns)), jnp.int32),
    )

  def _events(self, x_BT: jax.Array | None) -> jax.Array | None:
    """[B, T, ...] as [B, E, C, ...], the last event filled with zeros."""
    if x_BT is None:
      return None
    count = len(self.columns) or self._group
    batch, length, *rest = x_BT.shape
    pad = [(0, 0), (0, -length % count)] + [(0, 0)] * len(rest)
    return jnp.pad(x_BT, pad).reshape(batch, -1, count, *rest)

  def _embed(
    self,
    ids_BEC: jax.Array,
    value_BEC: jax.Array | None,
    tokens: masks.Tokens,
    recent_BRC: jax.Array,
  ) -> jax.Array:
    """Embeddings of cells [B, E, C, D], in the order of `columns`."""
    embed = event_cells.CellEmbedding(
      self.columns,
      self.numbers,
      self.trunk.width,
      self.waves,
      self.reach,
      name='embed',
    )
    since_BEC = event_cells.since(ids_BEC, tokens.position_BT, recent_BRC)
    return embed(ids_BEC, value_BEC, since_BEC).astype(self.dtype)

  def _read(
    self, x_BECD: jax.Array, tokens: masks.Tokens, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """What is known before each cell, [B, E, C, cell_width]; the new cache.

    x_BECD: cells in the order in which they are read.
    """
    batch, events, count, width = x_BECD.shape
    size = self._group
    groups = count // size
    begin_D = self.param(
      'begin', nn.initializers.normal(width**-0.5), (width,), jnp.float32
    )
    first_BE1 = (tokens.position_BT == 0)[..., None]
    last_BSD = jnp.concatenate([cache.cell_BD[:, None], x_BECD[:, :, -1]], 1)
    before_BED = jnp.where(
      first_BE1, begin_D.astype(x_BECD.dtype)[None, None], last_BSD[:, :-1]
    )
    # What is read at a cell is the cell before it, and those of its group.
    x_BECD = jnp.concatenate([before_BED[:, :, None], x_BECD[:, :, :-1]], 2)
    x_BPQD = x_BECD.reshape(batch, -1, size, width)
    earlier_QR = np.tri(size, dtype=x_BECD.dtype)
    x_BPQD = jnp.einsum('QR,BPRD->BPQD', earlier_QR, x_BPQD)
    state_BPD, trunk = self._run_trunk(
      x_BPQD[:, :, -1], tokens, groups, cache.trunk
    )
    known_BSD = jnp.concatenate([cache.state_BD[:, None], state_BPD], axis=1)
    fresh_BEP = (tokens.position_BT == 0)[..., None] & (
      np.arange(groups) == 0
    )[None, None]
    known_BPD = jnp.where(
      fresh_BEP.reshape(batch, -1, 1), 0, known_BSD[:, :-1]
    )
    # The last cell of a group comes after all that the transformer has read.
    context_BPQF = jnp.concatenate(
      [
        jnp.broadcast_to(
          self._narrow('narrow_before', known_BPD)[:, :, None],
          (*x_BPQD.shape[:2], size - 1, self.cell_width),
        ),
        self._narrow('narrow_state', state_BPD)[:, :, None],
      ],
      axis=2,
    )
    norm = attention.RMSNorm(self.norm_epsilon, name='narrow_norm')
    x_BPQF = self._narrow('narrow', norm(x_BPQD)) + context_BPQF
    new_B = tokens.document_BT.astype(bool).sum(axis=1)
    return x_BPQF.reshape(batch, events, count, -1), cache._replace(
      trunk=trunk,
      length_B=cache.length_B + new_B,
      cell_BD=_latest(last_BSD, new_B, 1)[:, 0],
      state_BD=_latest(known_BSD, new_B * groups, 1)[:, 0],
    )

  def _narrow(self, name: str, x: jax.Array) -> jax.Array:
    """From the width of the transformer to that of the cells."""
    role = linear.of_role(self.linear, 'feed_forward')
    return role.copy(name=name, features=self.cell_width, dtype=self.dtype)(x)

  def _run_trunk(
    self, x_BPD: jax.Array, tokens: masks.Tokens, groups: int, caches: Any
  ) -> tuple[jax.Array, Any]:
    """The normalised outputs for all groups, `groups` per event."""
    place_P = np.arange(x_BPD.shape[1], dtype=np.int32) % groups
    position_BP = jnp.repeat(tokens.position_BT * groups, groups, axis=1)
    tokens = masks.Tokens(
      position_BP + place_P[None],
      jnp.repeat(tokens.document_BT, groups, axis=1),
    )
    trunk = self.trunk.copy(
      name='history', linear=self.linear, dtype=self.dtype
    )
    x_BPD, caches = trunk(x_BPD, tokens, caches)
    return attention.RMSNorm(self.norm_epsilon, name='history_norm')(
      x_BPD
    ), caches

  def _cells(self, x_BECF: jax.Array) -> jax.Array:
    """What the softmax of each column reads; `x_BECF` by column."""
    query_CF = self.param(
      'query',
      nn.initializers.normal(self.cell_width**-0.5),
      x_BECF.shape[2:],
      jnp.float32,
    )
    x_BECF += query_CF.astype(self.dtype)[None, None]
    for i in range(self.cell_layers):
      norm = attention.RMSNorm(self.norm_epsilon, name=f'cell_norm_{i}')
      feed = self.feed_forward.copy(
        name=f'cell_{i}',
        hidden=self.cell_hidden,
        dtype=self.dtype,
        linear=linear.of_role(self.linear, 'feed_forward'),
      )
      x_BECF += feed(norm(x_BECF))
    return attention.RMSNorm(self.norm_epsilon, name='final_norm')(x_BECF)

  def _heads(
    self, x_BECF: jax.Array, target_BECN: jax.Array | None
  ) -> jax.Array:
    """Log-probabilities of the targets, or logits of all ids, by cell."""
    head = linear.of_role(self.linear, 'head')
    columns, first = [], 0
    for c, size in enumerate(self.columns):
      project = head.copy(name=f'head_{c}', features=size, dtype=self.dtype)
      logits_BEV = project(x_BECF[:, :, c]).astype(jnp.float32)
      if target_BECN is not None:
        logits_BEV = event_cells.pick(logits_BEV, target_BECN[:, :, c], first)
      columns.append(logits_BEV)
      first += size
    if target_BECN is None:
      out_BECN = event_cells.widen(columns)
    else:
      out_BECN = jnp.stack(columns, axis=2)
    return out_BECN.reshape(x_BECF.shape[0], -1, out_BECN.shape[-1])


def _next_tokens(documents_BE: jax.Array, cache: Cache | None) -> masks.Tokens:
  """Where events stand: those of whole rows, or those after the cached ones."""
  if cache is None:
    return masks.row_tokens(documents_BE)
  place_1E = jnp.arange(documents_BE.shape[1], dtype=jnp.int32)[None]
  return masks.Tokens(
    cache.length_B[:, None] + place_1E, (documents_BE > 0).astype(jnp.int32)
  )


def _einsum(axes: str, *arrays: jax.Array) -> jax.Array:
  """Exact where one factor picks entries of the other."""
  return jnp.einsum(axes, *arrays, precision='highest')


def _latest(x_BSX: jax.Array, new_B: jax.Array, count: int) -> jax.Array:
  """`count` entries along S after the first new_B, as the new ones follow."""
  index_BC = new_B[:, None] + jnp.arange(count)[None]
  rest = (1,) * (x_BSX.ndim - 2)
  return jnp.take_along_axis(
    x_BSX, index_BC.reshape(*index_BC.shape, *rest), axis=1
  )
