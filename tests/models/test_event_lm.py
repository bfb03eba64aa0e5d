"""The transformer over events: who sees whom, packing, stepping, softmaxes."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import event_cells
from models import event_judge
from models import event_lm
from models import forward
from models import linear
from models import masks
from models import positions
from models import stacks
from models import structured
from tests.models import small_lm

COLUMNS = (5, 6, 4, 3)
COUNT, EVENTS = len(COLUMNS), 5
LENGTH = COUNT * EVENTS
FIRST_C = np.cumsum((0, *COLUMNS[:-1]))
# Every event that there can be; all tests share the compiled programs.
ROWS = math.prod(COLUMNS)

# Fewer groups are seen than a row has, so that their cache is a ring.
TRUNK = stacks.Stack(
  width=16,
  layers=1,
  heads=2,
  hidden=16,
  masks=(masks.Lambda(n_global=1, n_local=3),),
  position=positions.Alibi(),
)
MODEL = event_lm.EventLM(
  trunk=TRUNK,
  columns=COLUMNS,
  numbers=(1, 2),
  stride=2,
  cell_width=8,
  cell_hidden=8,
  waves=2,
  reach=2,
  copies=True,
  judge=event_judge.Judge(stack=TRUNK.clone(width=8, hidden=8), hidden=8),
)


def draw_rows(count, seed=0):
  """Ids, numbers and ranks of random events."""
  rng = np.random.default_rng(seed)
  local = rng.integers(0, COLUMNS, (count, EVENTS, COUNT))
  value = rng.normal(size=(count, EVENTS, COUNT))
  value[rng.random(value.shape) < 0.3] = np.nan
  rank = np.argsort(rng.random((count, EVENTS, COUNT)), axis=-1)
  return [
    np.asarray(x.reshape(count, LENGTH), dtype)
    for x, dtype in (
      (local + FIRST_C, np.int32),
      (value, np.float32),
      (rank, np.int32),
    )
  ]


@functools.cache
def apply(model=MODEL):
  return jax.jit(forward.pure(model))


@pytest.fixture(scope='module')
def params():
  return small_lm.draw(MODEL)


# One position of the transformer for two cells, an event, or every cell.
@pytest.mark.parametrize(
  'stride', [2, None, pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_cell_changes_no_distribution_before_it_nor_its_own(stride):
  model = MODEL.clone(stride=stride)
  params = small_lm.draw(model)
  ids, value, rank = draw_rows(1)
  changed = np.repeat(ids, ROWS, axis=0)
  column = np.arange(LENGTH) % COUNT
  for i in range(LENGTH):
    local = changed[i, i] - FIRST_C[column[i]]
    local = (local + 1) % COLUMNS[column[i]]
    changed[i, i] = FIRST_C[column[i]] + local
  values = np.repeat(value, ROWS, axis=0)
  values[np.arange(LENGTH), np.arange(LENGTH)] = 3.0
  logits = apply(model)(
    params,
    changed,
    np.ones_like(changed),
    value=values,
    rank=np.repeat(rank, ROWS, axis=0),
  )
  logits = np.where(np.isfinite(logits), logits, 0)
  moved = np.abs(logits[:LENGTH] - logits[-1]).max(axis=-1)
  # When a cell is read: event by event, in the event by its rank.
  time = np.arange(LENGTH) // COUNT * COUNT + rank[0]
  later = time[None] > time[:, None]
  assert moved[~later].max() == 0
  # What is read last has nobody after it; all others are seen by the next.
  following = time[None] == time[:, None] + 1
  assert moved[following].min() > 1e-4


@pytest.mark.parametrize('stride', [None, 2])
def test_the_transformer_reads_every_cell_in_whatever_order(stride):
  # Nothing but the transformer tells an event of what is two events back.
  model = MODEL.clone(stride=stride, copies=False, reach=0, judge=None)
  size = COUNT if stride is None else stride
  params = small_lm.draw(model)
  ids, value, _ = (np.repeat(x, ROWS, axis=0) for x in draw_rows(1, seed=5))
  rank = np.tile(np.arange(COUNT), (ROWS, EVENTS))
  # A group's last cell is read with the next group; the others are a set.
  last = range(size - 1, COUNT, size)
  orders = [
    order
    for order in itertools.permutations(range(COUNT))
    if all(order[place] == place for place in last)
    and all(i // size == place // size for place, i in enumerate(order))
  ]
  rank[: len(orders), :COUNT] = np.argsort(orders, axis=-1)
  for c in range(COUNT):
    ids[-1 - c, c] = FIRST_C[c] + (ids[0, c] - FIRST_C[c] + 1) % COLUMNS[c]
  logits = apply(model)(
    params, ids, np.ones_like(ids), value=value, rank=rank.astype(np.int32)
  )
  logits = np.where(np.isfinite(logits), logits, 0)[:, 2 * COUNT : 3 * COUNT]
  moved = np.abs(logits - logits[len(orders)]).max(axis=(1, 2))
  assert moved[: len(orders)].max() < 1e-5
  assert moved[-COUNT:].min() > 1e-3


def test_packed_entities_are_as_alone(params):
  ids, value, rank = draw_rows(1, seed=1)
  documents = np.repeat([3, 3, 5, 5, 0], COUNT)[None]
  rows = np.arange(LENGTH)
  given = (ids, value, rank, documents)
  alone = [np.zeros_like(x) for x in given]
  for whole, part in zip(alone, given, strict=True):
    whole[0, : 2 * COUNT] = part[0, 2 * COUNT : 4 * COUNT]
  alone[2][:, 2 * COUNT :] = rows[2 * COUNT :] % COUNT
  repeat = [np.zeros((ROWS - 2, LENGTH), x.dtype) for x in alone]
  batch = [
    np.concatenate([a, b, c])
    for a, b, c in zip(given, alone, repeat, strict=True)
  ]
  logits = apply()(
    params, batch[0], batch[3], value=batch[1], rank=batch[2]
  )
  packed, single = logits[0, 2 * COUNT : 4 * COUNT], logits[1, : 2 * COUNT]
  np.testing.assert_allclose(packed, single, rtol=1e-5, atol=1e-5)


def test_stepping_event_by_event_is_the_whole_row(params):
  ids, value, rank = draw_rows(ROWS, seed=2)
  whole = apply()(params, ids, np.ones_like(ids), value=value, rank=rank)
  count = 3
  step = jax.jit(forward.step(MODEL))
  cache = MODEL.init_cache(count, LENGTH)
  assert cache.trunk[0].recent.position_BS.shape == (count, 3)
  found = [[] for _ in range(count)]
  # Row i waits before its event i, as rows of several entities do.
  for turn in range(EVENTS + 1):
    turns = [min(turn - (turn > i), EVENTS - 1) for i in range(count)]
    reads = [turn != i for i in range(count)]
    there = [slice(t * COUNT, (t + 1) * COUNT) for t in turns]
    part = [
      np.stack([x[i, there[i]] for i in range(count)])
      for x in (ids, value, rank)
    ]
    documents = np.repeat(np.array(reads, np.int32)[:, None], COUNT, axis=1)
    logits, cache = step(
      params, part[0], documents, cache, value=part[1], rank=part[2]
    )
    for i in np.flatnonzero(reads):
      found[i].append(logits[i])
  stepped = np.stack([np.concatenate(x) for x in found])
  np.testing.assert_allclose(stepped, whole[:count], rtol=2e-5, atol=2e-5)


def test_every_cell_has_the_softmax_of_its_column(params):
  ids, value, rank = draw_rows(ROWS, seed=3)
  documents = np.ones_like(ids)
  logits = np.asarray(
    apply()(params, ids, documents, value=value, rank=rank), np.float64
  )
  columns = np.repeat(np.arange(COUNT), COLUMNS)
  own = columns[None] == (np.arange(LENGTH) % COUNT)[:, None]
  assert np.isneginf(logits[:, ~own]).all()
  assert np.isfinite(logits[:, own]).all()
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  other = np.where(ids > 0, ids - 1, ids)
  targets = np.stack([ids, other], axis=-1)
  log_p = apply()(
    params, ids, documents, value=value, rank=rank, target=targets
  )
  expected = np.take_along_axis(p, targets, axis=-1)
  np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-4, atol=1e-7)


def test_the_probabilities_of_all_events_after_a_history_sum_to_one(params):
  ids, value, rank = (
    np.repeat(x, ROWS, axis=0) for x in draw_rows(1, seed=4)
  )
  events = np.array(list(itertools.product(*map(range, COLUMNS))))
  ids[:, -COUNT:] = events + FIRST_C
  value[:, -COUNT:] = np.sin(events)
  targets = np.stack([ids, ids], axis=-1)
  log_p = apply()(
    params, ids, np.ones_like(ids), value=value, rank=rank, target=targets
  )
  p = np.exp(np.asarray(log_p[:, -COUNT:, 0], np.float64).sum(axis=-1))
  np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
  assert p.min() < 0.2 * p.max()


def test_since_is_the_nearest_equal_value_of_the_entity():
  rng = np.random.default_rng(4)
  ids = rng.integers(0, 3, (2, 9, 2)).astype(np.int32)
  before = rng.integers(0, 3, (2, 3, 2)).astype(np.int32)
  age = np.array([[0, 1, 2, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
  found = jax.jit(event_cells.since)(ids, age, before)
  found = np.asarray(found)
  history = np.concatenate([before, ids], axis=1)
  for b, e, c in np.ndindex(ids.shape):
    back = [
      k
      for k in range(1, min(3, age[b, e]) + 1)
      if history[b, 3 + e - k, c] == ids[b, e, c]
    ]
    assert found[b, e, c] == min(back, default=0)


def test_copies_are_a_mixture():
  rng = np.random.default_rng(5)
  shape, size, reach, first = (2, 3), 4, 5, 7
  logits = rng.normal(size=(*shape, size)).astype(np.float32)
  gate = rng.normal(size=(*shape, reach + 1)).astype(np.float32)
  gate -= np.log(np.exp(gate).sum(-1, keepdims=True))
  earlier = rng.integers(first, first + size, (*shape, reach))
  found, p_of = jax.jit(mixed, static_argnums=3)(
    logits, gate, earlier.astype(np.int32), first
  )
  for b, e in np.ndindex(shape):
    p = np.exp(logits[b, e]) / np.exp(logits[b, e]).sum()
    p = p * np.exp(gate[b, e, 0])
    for r in range(reach):
      p[earlier[b, e, r] - first] += np.exp(gate[b, e, r + 1])
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found[b, e]), p, rtol=1e-5)
    np.testing.assert_allclose(np.exp(p_of[b, e, :-1]), p, rtol=1e-5)
    assert p_of[b, e, -1] == -np.inf


def test_what_is_missing_is_not_copied():
  """Every other earlier cell may be, in the proportions of the gate."""
  columns, reach = (3, 2), 2
  gate = event_cells.Copying(columns, reach)
  rng = np.random.default_rng(6)
  x = rng.normal(size=(1, 3, 2, 4)).astype(np.float32)
  # No events before; of the first two a cell each is missing: ids 0 and 3.
  history = np.array([[[0, 0], [0, 0], [0, 4], [2, 3], [1, 4]]], np.int32)
  age = np.arange(3)[None]
  params = gate.init(jax.random.key(0), x, history, age)
  kernel = params['params']['gate']['kernel']
  logits = np.add(x @ kernel, [4.0, 0.0, 0.0])
  for c, copies in enumerate(gate.apply(params, x, history, age)):
    for e in range(3):
      back = [e - 1, e - 2]
      there = [b >= 0 and history[0, b + 2, c] not in (0, 3) for b in back]
      weights = np.exp(logits[0, e, c]) * [True, *there]
      expected = weights / weights.sum()
      np.testing.assert_allclose(
        np.exp(copies.log_p_BER[0, e]), expected[1:], rtol=1e-5
      )
      np.testing.assert_allclose(
        np.exp(copies.log_new_BE[0, e]), expected[0], rtol=1e-5
      )


def test_the_judge_reads_how_likely_other_cells_were():
  rng = np.random.default_rng(6)
  judge, events, cells = MODEL.judge, 3, COUNT - 1
  log_p = np.log(rng.uniform(0.1, 1, (1, events, cells)).astype(np.float32))
  seen = np.ones((1, events, cells), bool)
  seen[0, 1, 2] = False
  tokens = masks.row_tokens(jnp.ones((1, events), jnp.int32))
  read = rng.normal(size=(1, events, 16)).astype(np.float32)
  known = rng.normal(size=(1, events, 8)).astype(np.float32)
  given = (seen, read, known, tokens, None)
  shapes = jax.eval_shape(
    functools.partial(judge.init, features=2), jax.random.key(0), log_p, *given
  )
  weights = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )

  @jax.jit
  def logits_and_gradient(log_p):
    def run(log_p):
      logits, _ = judge.apply(weights, log_p, *given, features=2)
      return logits.sum(), logits

    gradient, logits = jax.grad(run, has_aux=True)(log_p)
    return logits, gradient

  before, gradient = logits_and_gradient(log_p)
  # What is read is not to be learned from labels.
  assert not np.any(gradient)
  for event, cell in np.ndindex(events, cells):
    other = log_p.copy()
    other[0, event, cell] -= 1
    moved = np.abs(logits_and_gradient(other)[0] - before).max(axis=(0, 2))
    expected = seen[0, event, cell] & (np.arange(events) >= event)
    np.testing.assert_array_equal(moved > 1e-6, expected)


def test_nothing_but_a_judge_alone_learns_from_the_last_column(params):
  alone = MODEL.clone(judge=MODEL.judge.clone(alone=True))
  ids, value, rank = draw_rows(2)
  last = (np.arange(LENGTH) % COUNT == COUNT - 1)[None]

  @jax.jit
  def of_last(params):
    log_p = forward.pure(alone)(
      params, ids, np.ones_like(ids), value=value, rank=rank, target=ids
    )
    return jnp.sum(log_p * last), jnp.sum(log_p * ~last)

  gradient = jax.jit(jax.jacrev(of_last))(params)
  for is_last, found in zip((True, False), gradient, strict=True):
    flat = traverse_util.flatten_dict(found)
    moved = {path[0] for path, x in flat.items() if x.any()}
    assert ('verdict' in moved) == is_last
    assert (moved == {'verdict'}) == is_last


def mixed(logits, gate, earlier, first):
  copies = event_cells.Copies(gate[..., 1:], gate[..., 0], earlier)
  law = event_cells.Law(logits, first, copies)
  # Every id of the column and one of the next.
  ids = jnp.arange(first, first + logits.shape[-1] + 1, dtype=jnp.int32)
  ids = jnp.broadcast_to(ids, (*logits.shape[:-1], ids.shape[0]))
  return law.logits(), law.of(ids)


def test_every_projection_follows_its_prototype():
  roles = linear.Roles(structured.LowRank(rank=1), head=linear.Dense())
  model = MODEL.clone(linear=roles)
  ids = jnp.zeros((1, LENGTH), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
  names = traverse_util.flatten_dict(shapes, sep='/')
  dense = {name for name in names if name.endswith('/kernel')}
  heads = {f'head_{c}' for c in range(COUNT)} | {'verdict/head', 'copying/gate'}
  assert dense == {f'{name}/kernel' for name in heads}
  assert any(name.startswith('history/block_0/attention/') for name in names)


def test_bad_stride_and_missing_columns_are_named():
  ids = jnp.zeros((1, 8), jnp.int32)
  for model in (MODEL.clone(stride=3), MODEL.clone(columns=())):
    with pytest.raises(ValueError, match=r'model\.stride=. must divide'):
      jax.eval_shape(model.init, jax.random.key(0), ids)
