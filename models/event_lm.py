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
from models import event_history
from models import linear
from models import masks
from models import stacks


class Cache(NamedTuple):
  """Decoding state of a batch, of one size however long the history.

  trunk: of the transformer; length_B: events read; cell_BD: embedding of the
  last cell; state_BD: the transformer's last output; recent_BRC: ids of the
  last `reach` events, oldest first. judge, late_BD: of EventLM.judge, and the
  embeddings of cells of the last event that it has not read.
  """

  trunk: Any
  length_B: jax.Array
  cell_BD: jax.Array
  state_BD: jax.Array
  recent_BRC: jax.Array
  judge: Any = None
  late_BD: jax.Array | None = None


class EventLM(nn.Module):
  """Distribution of every cell given the cells before it.

  trunk: the transformer over groups of cells, whose linear and dtype are set.
  columns: ids of each column, in the order of a row; () takes those of the
    data when training begins. numbers: columns that have numbers, likewise.
  stride: cells of a group, a divisor of the number of columns; None for all.
  cell_width, cell_hidden, cell_layers: of the feed-forward layers between the
    transformer and the softmax of a column.
  waves, reach: as in event_cells.CellEmbedding.
  copies: whether a cell may be copied from one of the last `reach` events, as
    event_cells.Copying does.
  judge: what adds to the logits of the last column, as event_judge.Judge.
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
  copies: bool = False
  judge: nn.Module | None = None
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
    cache = self._nothing(batch_size)
    if self.judge is not None:
      judge = self.judge.copy(parent=None, dtype=self.dtype)
      events = -(-length // len(self.columns))
      cache = cache._replace(judge=judge.init_cache(batch_size, events))
    return cache._replace(trunk=trunk.init_cache(batch_size, positions))

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
    before = self._nothing(batch) if cache is None else cache
    tokens = event_history.tokens(
      documents_BE, None if cache is None else cache.length_B
    )
    # Of every cell, or of every cell of every event.
    rank = np.arange(len(self.columns)) if rank_BEC is None else rank_BEC
    history_BSC = jnp.concatenate([before.recent_BRC, ids_BEC], axis=1)
    x_BECD = self._embed(ids_BEC, value_BEC, tokens, before.recent_BRC)
    x_BECF, after = self._read(x_BECD, rank, tokens, before)
    x_BECF = self._cells(x_BECF)
    laws = self._laws(x_BECF, history_BSC, tokens)
    if self.judge is not None:
      laws[-1], after = self._judge(
        laws, x_BECD, x_BECF[:, :, -1], ids_BEC, rank, tokens, after
      )
    out_BTN = self._said(laws, target_BT)[:, :length]
    if target_BT is not None:
      out_BTN = out_BTN.reshape(target_BT.shape)
    if cache is None:
      return out_BTN, None
    new_B = after.length_B - cache.length_B
    recent_BRC = event_history.latest(history_BSC, new_B, self.reach)
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
      late_BD=None if self.judge is None else zeros_BD,
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
    self,
    x_BECD: jax.Array,
    rank: np.ndarray | jax.Array,
    tokens: masks.Tokens,
    cache: Cache,
  ) -> tuple[jax.Array, Cache]:
    """What is known before each cell, [B, E, C, cell_width]; the new cache.

    rank: when each cell is read, [C] or [B, E, C].
    """
    batch, _, count, width = x_BECD.shape
    size = self._group
    group_P = np.arange(count // size)
    begin_D = self.param(
      'begin', nn.initializers.normal(width**-0.5), (width,), jnp.float32
    )
    fresh_BE1 = (tokens.position_BT == 0)[..., None]
    own, others = rank[..., :, None], rank[..., None, :]
    last_BED = event_cells.sums(others == count - 1, x_BECD)[:, :, 0]
    last_BSD = jnp.concatenate([cache.cell_BD[:, None], last_BED], 1)
    before_BED = jnp.where(
      fresh_BE1, begin_D.astype(x_BECD.dtype)[None, None], last_BSD[:, :-1]
    )

    def read(begin: Any, end: Any) -> jax.Array:
      """Sums over ranks begin - 1 ... end - 1, -1 being the event before's."""
      x_BEXD = event_cells.sums((others >= begin - 1) & (others < end), x_BECD)
      is_first = jnp.asarray(begin == 0, x_BECD.dtype)
      is_first = is_first.reshape((1,) * (4 - begin.ndim) + begin.shape)
      return x_BEXD + is_first * before_BED[:, :, None]

    # What is read at a cell is the cell before it, and those of its group.
    known_BECD = read(own // size * size, own)
    group = group_P.reshape((1,) * (rank.ndim - 1) + (-1, 1))
    x_BEPD = read(group * size, (group + 1) * size - 1)
    state_BPD, trunk = self._run_trunk(
      x_BEPD.reshape(batch, -1, width), tokens, cache.trunk
    )
    known_BSD = jnp.concatenate([cache.state_BD[:, None], state_BPD], axis=1)
    fresh_BEP = fresh_BE1 & (group_P == 0)[None, None]
    known_BPD = jnp.where(
      fresh_BEP.reshape(batch, -1, 1), 0, known_BSD[:, :-1]
    )
    of_group = own // size == group.swapaxes(-1, -2)
    is_last = own % size == size - 1
    x_BECF = self._known(known_BECD, known_BPD, state_BPD, of_group, is_last)
    new_B = tokens.document_BT.astype(bool).sum(axis=1)
    return x_BECF, cache._replace(
      trunk=trunk,
      length_B=cache.length_B + new_B,
      cell_BD=event_history.latest(last_BSD, new_B, 1)[:, 0],
      state_BD=event_history.latest(known_BSD, new_B * len(group_P), 1)[:, 0],
    )

  def _known(
    self,
    x_BECD: jax.Array,
    known_BPD: jax.Array,
    state_BPD: jax.Array,
    of_group: np.ndarray | jax.Array,
    is_last: np.ndarray | jax.Array,
  ) -> jax.Array:
    """Cells [B, E, C, cell_width], with what the transformer says of each.

    of_group: whether cell C is of group P; is_last: whether it is the last of
    its group, which comes after all that the transformer has read.
    """
    batch, events, groups = *x_BECD.shape[:2], of_group.shape[-1]
    norm = attention.RMSNorm(self.norm_epsilon, name='narrow_norm')
    x_BECF = self._narrow('narrow', norm(x_BECD))
    for name, state, there in (
      ('narrow_before', known_BPD, of_group & ~is_last),
      ('narrow_state', state_BPD, of_group & is_last),
    ):
      state = self._narrow(name, state).reshape(batch, events, groups, -1)
      x_BECF += event_cells.sums(there, state)
    return x_BECF

  def _narrow(self, name: str, x: jax.Array) -> jax.Array:
    """From the width of the transformer to that of the cells."""
    role = linear.of_role(self.linear, 'feed_forward')
    return role.copy(name=name, features=self.cell_width, dtype=self.dtype)(x)

  def _run_trunk(
    self, x_BPD: jax.Array, tokens: masks.Tokens, caches: Any
  ) -> tuple[jax.Array, Any]:
    """The normalised outputs for all groups of all events."""
    groups = len(self.columns) // self._group
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

  def _laws(
    self, x_BECF: jax.Array, history_BSC: jax.Array, tokens: masks.Tokens
  ) -> list[event_cells.Law]:
    """The distribution of the cells of each column."""
    head, first = linear.of_role(self.linear, 'head'), 0
    copied = [None] * len(self.columns)
    if self.copies and self.reach:
      gate = event_cells.Copying(self.columns, self.reach, head, name='copying')
      copied = gate(x_BECF, history_BSC, tokens.position_BT)
    laws = []
    for c, size in enumerate(self.columns):
      project = head.copy(name=f'head_{c}', features=size, dtype=self.dtype)
      logits_BEV = project(x_BECF[:, :, c]).astype(jnp.float32)
      laws.append(event_cells.Law(logits_BEV, first, copied[c]))
      first += size
    return laws

  def _said(
    self, laws: list[event_cells.Law], target_BT: jax.Array | None
  ) -> jax.Array:
    """Log-probabilities of the targets, or logits of all ids, [B, T, N]."""
    if target_BT is None:
      out_BECN = event_cells.widen([law.logits() for law in laws])
    else:
      targets_BECN = self._events(target_BT.reshape(*target_BT.shape[:2], -1))
      out_BECN = jnp.stack(
        [law.of(targets_BECN[:, :, c]) for c, law in enumerate(laws)], axis=2
      )
    batch, events, columns, count = out_BECN.shape
    return out_BECN.reshape(batch, events * columns, count)

  def _judge(
    self,
    laws: list[event_cells.Law],
    x_BECD: jax.Array,
    x_BEF: jax.Array,
    ids_BEC: jax.Array,
    rank: np.ndarray | jax.Array,
    tokens: masks.Tokens,
    cache: Cache,
  ) -> tuple[event_cells.Law, Cache]:
    """The last column's distribution, given how likely the others were."""
    log_p = [
      law.of(ids_BEC[:, :, c, None]) for c, law in enumerate(laws[:-1])
    ]
    seen = rank < rank[..., -1:]
    read_BED = event_cells.sums(seen[..., None, :], x_BECD)[:, :, 0]
    unread_BED = event_cells.sums(~seen[..., None, :], x_BECD)[:, :, 0]
    late_BSD = jnp.concatenate([cache.late_BD[:, None], unread_BED], axis=1)
    is_first_BE1 = (tokens.position_BT == 0)[..., None]
    read_BED += jnp.where(is_first_BE1, 0, late_BSD[:, :-1])
    judge = self.judge.copy(
      name='verdict', linear=self.linear, dtype=self.dtype
    )
    logits_BEV, judged = judge(
      jnp.concatenate(log_p, axis=-1),
      jnp.broadcast_to(seen[..., :-1], ids_BEC[..., :-1].shape),
      read_BED,
      x_BEF,
      tokens,
      cache.judge,
      features=self.columns[-1],
    )
    if self.judge.alone:
      law = laws[-1]._replace(logits_BEV=logits_BEV, copies=None)
    else:
      law = laws[-1]._replace(logits_BEV=laws[-1].logits_BEV + logits_BEV)
    new_B = tokens.document_BT.astype(bool).sum(axis=1)
    late_BD = event_history.latest(late_BSD, new_B, 1)[:, 0]
    return law, cache._replace(judge=judged, late_BD=late_BD)
