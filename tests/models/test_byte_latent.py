"""The byte latent transformer: who sees what, and decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from models import byte_latent
from models import cross_attention
from models import masks
from models import ngrams
from models import patching
from models import recall
from models import stacks

WINDOW = masks.Causal(window=8)
ENCODER = stacks.Stack(
  width=16, layers=1, heads=2, hidden=32, masks=(WINDOW,), residual_gain=1.0
)
LATENT = stacks.Stack(width=24, layers=2, heads=2, hidden=40, residual_gain=1.0)
MODEL = byte_latent.ByteLatent(
  encoder=ENCODER,
  latent=LATENT,
  decoder=ENCODER.copy(layers=2),
  patching=patching.Patching(patching.Space(), max_length=6),
  reserve=1.0,
  ngrams=ngrams.NgramEmbedding(sizes=(3, 4), rows=97),
)
BATCH, LENGTH = 4, 32


def text_ids(seed, shape=(BATCH, LENGTH)):
  """Ids of a text with separators, so that patches vary in length."""
  letters = np.frombuffer(b'abcde fg,\n\xc3\xa9', np.uint8).astype(np.int32) + 4
  return np.random.default_rng(seed).choice(letters, shape)


@functools.cache
def parameters(model=MODEL):
  """Random parameters, without compiling the model's own ones."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    deviation = leaf.shape[-1 if 'embed' in path[0].key else 0] ** -0.5
    return rng.normal(0, deviation, leaf.shape).astype(np.float32)

  shapes = jax.eval_shape(model.init, jax.random.key(0), text_ids(0))
  return jax.tree_util.tree_map_with_path(draw, shapes['params'])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, ids, documents, **extra):
  (logits, _), sown = model.apply(
    {'params': params}, ids, documents, mutable=['counts'], **extra
  )
  sown = sown['counts']
  return logits, {k: sown[k][0] for k in ('overflow', 'patches')}


def forward(model, params, ids, documents=None, **extra):
  documents = np.ones_like(ids) if documents is None else documents
  return jax.device_get(apply(model, params, ids, documents, **extra))


@functools.partial(jax.jit, static_argnums=0)
def extend(model, params, ids, documents, cache, entropy_BT):
  return model.apply(
    {'params': params}, ids, documents, cache, entropy_BT=entropy_BT
  )


@functools.partial(jax.jit, static_argnums=0)
def layout_of(model, ids, entropy=None):
  """Where patches end, and what is read where."""
  closes = model.patching.closes(ids, jnp.ones_like(ids), entropy)
  return closes, patching.layout(closes, jnp.ones_like(ids))


def closes_of(model, ids, entropy=None):
  return np.asarray(layout_of(model, ids, entropy)[0])


# Patches of at most two bytes: more than the 16 that a half has room for.
DENSE = MODEL.copy(patching=patching.Patching(max_length=2))
STALE = DENSE.copy(reserve=0.5, overflow='stale')


@pytest.mark.parametrize('model', [MODEL, STALE], ids=['room', 'overflow'])
def test_no_logit_sees_a_later_byte(model):
  ids = text_ids(3)
  before, _ = forward(model, parameters(), ids)
  for place in (0, 1, 2, 11, 30, 31):
    changed = ids.copy()
    # Another word byte, and a separator: the patches move as well.
    for other in (ord('k') + 4, ord(';') + 4):
      changed[0, place] = other
      after, _ = forward(model, parameters(), changed)
      np.testing.assert_allclose(after[0, :place], before[0, :place], atol=1e-5)
      assert np.abs(after[0, place] - before[0, place]).max() > 1e-3


def with_masks(model, local, latent):
  """The model with other patterns in its local and latent layers."""
  return model.copy(
    encoder=model.encoder.copy(masks=(local,)),
    latent=model.latent.copy(masks=(latent,)),
    decoder=model.decoder.copy(masks=(local,)),
  )


def with_lambdas(model):
  """One layer of each kind, all of them with sinks."""
  model = model.copy(
    latent=model.latent.copy(layers=1), decoder=model.decoder.copy(layers=1)
  )
  return with_masks(
    model, masks.Lambda(n_global=2, n_local=6), masks.Lambda(1, 2)
  )


@pytest.mark.parametrize(
  'base', [MODEL, with_lambdas(MODEL)], ids=['window', 'lambda']
)
def test_packed_documents_are_separate_ones(base):
  lengths = [[7, 1, 12, 12], [32], [3, 2, 20], [15, 17]]
  ids = text_ids(4)
  documents = np.zeros_like(ids)
  alone = []
  for row, parts in enumerate(lengths):
    start = 0
    for number, length in enumerate(parts, 1):
      documents[row, start : start + length] = number
      alone.append((row, slice(start, start + length)))
      start += length
  model = base.copy(rows=4, reserve=0.75)
  packed, counts = forward(model, parameters(base), ids, documents)
  assert counts['overflow'] == 0
  # Padding must not matter, so it holds other bytes.
  rows_ids = text_ids(5, (12, LENGTH))
  rows_documents = np.zeros_like(rows_ids)
  for i, (row, span) in enumerate(alone):
    length = span.stop - span.start
    rows_ids[i, :length] = ids[row, span]
    rows_documents[i, :length] = 1
  separate = np.concatenate(
    [
      forward(
        base,
        parameters(base),
        rows_ids[i : i + BATCH],
        rows_documents[i : i + BATCH],
      )[0]
      for i in range(0, 12, BATCH)
    ]
  )
  for i, (row, span) in enumerate(alone):
    np.testing.assert_allclose(
      packed[row, span], separate[i, : span.stop - span.start], atol=2e-5
    )


def test_bytes_without_room_are_counted():
  ids = text_ids(6)
  full, counts = forward(DENSE, parameters(), ids)
  assert counts['overflow'] == 0
  layout = jax.device_get(layout_of(DENSE, ids)[1])
  assert counts['patches'] == layout.count_B.sum()
  small = DENSE.copy(reserve=0.5)
  assert small.budget(LENGTH) == 16
  fits = layout.encoder_BT < 16
  assert not fits.all()
  logits, counts = forward(small, parameters(), ids)
  assert counts['overflow'] == (~fits).sum()
  np.testing.assert_allclose(logits[fits], full[fits], atol=1e-5)
  assert not np.any(logits[~fits])
  logits, counts = forward(STALE, parameters(), ids)
  assert counts['overflow'] == (~fits).sum()
  np.testing.assert_allclose(logits[fits], full[fits], atol=1e-5)
  assert np.all(np.std(logits[~fits], axis=-1) > 0.1)


def test_gradients_are_finite_with_empty_and_missing_patches():
  ids = text_ids(7)
  documents = np.ones_like(ids)
  documents[1, 3:] = 0  # nearly no patches
  documents[2] = 0  # none
  documents[3, 20:] = 2  # a document beyond the budget

  def loss(params):
    logits, _ = STALE.apply({'params': params}, ids, documents)
    return jnp.sum(jnp.square(logits))

  grads = jax.device_get(jax.jit(jax.grad(loss))(parameters()))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(grad).all(), path
    assert np.any(grad), path


def test_stored_decisions_replace_the_rule():
  ids = text_ids(8)
  expected, _ = forward(MODEL, parameters(), ids)
  other = MODEL.copy(patching=patching.Patching(patching.Entropy(0.5), None))
  logits, _ = forward(other, parameters(), ids, closes_BT=closes_of(MODEL, ids))
  np.testing.assert_allclose(logits, expected, atol=1e-6)
  with pytest.raises(ValueError, match='need the entropy of every byte'):
    forward(other, parameters(), ids)


DECODER = MODEL.copy(
  patching=patching.Patching(patching.Entropy(1.5), max_length=6),
  recall=recall.RecallEmbedding(sizes=(2,), reach=16),
  reserve=0.9,
)


@pytest.mark.parametrize(
  'model', [DECODER, with_lambdas(DECODER)], ids=['window', 'lambda']
)
def test_decoding_is_the_full_forward(model):
  params = parameters(model)
  ids = text_ids(9)
  entropy = np.random.default_rng(0).uniform(0, 3, ids.shape)
  entropy = entropy.astype(np.float32)
  full, _ = forward(model, params, ids, entropy_BT=entropy)
  lengths = np.array([9, 1, 4, 8])
  cache = jax.jit(lambda: model.init_cache(BATCH, LENGTH))()

  def read(cache, start_B, width, count_B):
    """Reads the next count_B bytes of each row; checks their logits."""
    index = np.minimum(start_B[:, None] + np.arange(width), LENGTH - 1)
    real = np.arange(width)[None] < count_B[:, None]
    part_ids, part_entropy = (
      np.take_along_axis(x, index, axis=1) for x in (ids, entropy)
    )
    logits, cache = extend(
      model,
      params,
      part_ids,
      real.astype(np.int32),
      cache,
      part_entropy,
    )
    logits = np.asarray(logits)
    expected = np.take_along_axis(full, index[:, :, None], axis=1)
    np.testing.assert_allclose(logits[real], expected[real], atol=2e-5)
    np.testing.assert_array_equal(cache.length_B, start_B + count_B)
    return cache

  cache = read(cache, np.zeros(BATCH, np.int32), 9, lengths)
  # A second prompt, then single bytes; some rows rest now and then.
  cache = read(cache, lengths, 9, np.array([2, 9, 0, 1]))
  lengths += np.array([2, 9, 0, 1])
  for step in range(20):
    active = np.array([1, 1, step % 2, step % 3 > 0])
    active = np.where(lengths < LENGTH, active, 0)
    cache = read(cache, lengths, 1, active)
    lengths += active
  closes = closes_of(model, ids, entropy)
  read_BT = np.arange(LENGTH)[None] < lengths[:, None]
  np.testing.assert_array_equal(cache.patches_B, (closes & read_BT).sum(1))


def test_pooling_is_masked_attention():
  rng = np.random.default_rng(0)
  patch = np.sort(rng.integers(0, 6, (2, 11)), axis=1)
  real = rng.random((2, 11)) < 0.8
  shapes = (2, 7, 3, 2, 4), (2, 11, 2, 4), (2, 11, 2, 4), (2, 7, 3, 2, 4)
  arrays = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
  mask = (patch[:, None] == np.arange(7)[None, :, None]) & real[:, None]

  def dense(query, key, value, weight):
    logits = jnp.einsum('BPMHK,BTHK->BPMHT', query, key) / 2
    some = mask.any(-1)[:, :, None, None, None]
    seen = jnp.where(some, mask[:, :, None, None], True)
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
    weights = jnp.where(some, weights, 0.0)
    out = jnp.einsum('BPMHT,BTHK->BPMHK', weights, value)
    return jnp.sum(out * weight), out

  def ours(query, key, value, weight):
    out = cross_attention.pool_bytes(query, key, value, patch, real)
    return jnp.sum(out * weight), out

  results = [
    jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(*arrays)
    for f in (ours, dense)
  ]
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5), *results
  )


def sizes(jaxpr):
  """Elements of every array that a computation makes, nested ones too."""
  for equation in jaxpr.eqns:
    yield from (v.aval.size for v in equation.outvars)
    for value in jax.tree.leaves(
      equation.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
    ):
      if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        yield from sizes(getattr(value, 'jaxpr', value))


def test_no_array_has_bytes_times_patches():
  length = 1024
  model = MODEL.copy(reserve=0.25, vocabulary_size=64)
  patches = model.budget(length)
  ids = jnp.asarray(text_ids(0, (1, length)) % 64)

  def loss(params):
    return jnp.sum(model.apply({'params': params}, ids)[0])

  shapes = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
  largest = max(sizes(jax.make_jaxpr(jax.grad(loss))(shapes).jaxpr))
  # The latent transformer's own scores are the largest array there is.
  assert largest == patches**2 * LATENT.heads
  assert largest < length * patches


def test_bad_sizes_are_named():
  for change, message in (
    ({'decoder': ENCODER.copy(width=32)}, r'encoder.width=16 and'),
    ({'overflow': 'drop'}, "overflow='drop'"),
    ({'reserve': 0.0}, r'reserve=0.0 must be in'),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(MODEL.copy(**change).init, jax.random.key(0), text_ids(0))
