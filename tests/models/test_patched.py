"""A patched model: its entropies decide, alone and while decoding."""

import functools

import jax
import numpy as np
import pytest

from models import forward
from models import lm
from models import masks
from models import ngram_entropy
from models import patched
from models import patching
from samplers import chain
from samplers import loop
from samplers import speculative
from tests.models import test_byte_latent as latent

NGRAMS = ngram_entropy.NgramEntropy(sizes=(1, 2), rows=256)
LM = patched.LMEntropy(
  lm.ByteLM(
    width=16,
    layers=1,
    heads=2,
    key_value_heads=1,
    hidden=16,
    masks=(masks.Causal(window=6),),
  )
)


# One layer of each kind: how several share a cache is test_byte_latent's.
INNER = latent.MODEL.clone(
  latent=latent.LATENT.copy(layers=1), decoder=latent.ENCODER
)
ROWS, LENGTH = latent.BATCH, latent.LENGTH


def with_entropy(scorer, threshold):
  return patched.Patched(
    scorer,
    INNER.clone(
      patching=patching.Patching(patching.Entropy(threshold), max_length=6)
    ),
  )


@functools.cache
def whole(model):
  """Its jitted forward pass with counts; equal models share one."""
  return jax.jit(forward.counted(model))


@functools.cache
def jitted_step(model):
  return jax.jit(forward.step(model))


def logits_of(model, params, ids, **stored):
  return np.asarray(whole(model)(params, ids, np.ones_like(ids), **stored)[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(model, rows, length):
  """An empty cache, in one program."""
  return model.init_cache(rows, length)


@functools.cache
def drawn(scorer):
  """Parameters, and a threshold between two entropies, so none is on it."""
  rng = np.random.default_rng(0)
  model = with_entropy(scorer, 0.0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), latent.text_ids(0))
  params = shapes['params'] | {'model': latent.parameters(INNER)}
  params['entropy'] = jax.tree.map(
    lambda x: rng.uniform(0, 1, x.shape).astype(np.float32), params['entropy']
  )
  nats = np.sort(entropies(scorer, params, latent.text_ids(0)).ravel())
  gap = np.argmax(np.diff(nats)[len(nats) // 3 : -len(nats) // 3])
  place = len(nats) // 3 + gap
  return params, float(nats[place : place + 2].mean())


@functools.partial(jax.jit, static_argnums=0)
def score(scorer, params, ids):
  return scorer.apply({'params': params}, ids)[0]


def entropies(scorer, params, ids):
  return np.asarray(score(scorer, params['entropy'], ids))


@pytest.mark.parametrize('scorer', [NGRAMS, LM], ids=['ngrams', 'lm'])
def test_its_entropies_are_those_given_to_the_model(scorer):
  params, threshold = drawn(scorer)
  model = with_entropy(scorer, threshold)
  ids = latent.text_ids(0)
  nats = entropies(scorer, params, ids)
  found = logits_of(model, params, ids)
  expected = logits_of(model.model, params['model'], ids, entropy=nats)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_stored_entropies_replace_its_own():
  params, threshold = drawn(NGRAMS)
  model = with_entropy(NGRAMS, threshold)
  ids = latent.text_ids(0)
  nats = np.full(ids.shape, 9.0, np.float32)
  found = logits_of(model, params, ids, entropy=nats)
  expected = logits_of(model.model, params['model'], ids, entropy=nats)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  # All high ones close every patch.
  assert np.abs(found - logits_of(model, params, ids)).max() > 1e-3


@pytest.mark.parametrize('scorer', [NGRAMS, LM], ids=['ngrams', 'lm'])
def test_decoding_is_the_full_forward(scorer):
  params, threshold = drawn(scorer)
  model = with_entropy(scorer, threshold)
  ids = latent.text_ids(0)
  full = logits_of(model, params, ids)
  apply = functools.partial(jitted_step(model), params)
  lengths = np.array([9, 5, 1, 7])
  prompt = np.arange(9)[None] < lengths[:, None]
  out, cache = apply(
    np.where(prompt, ids[:, :9], 0),
    prompt.astype(np.int32),
    empty(model, ROWS, LENGTH),
  )
  out = np.asarray(out)
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(
      out[row, :length], full[row, :length], rtol=1e-4, atol=1e-4
    )
  ones, rows = np.ones((ROWS, 1), np.int32), np.arange(ROWS)
  for i in range(LENGTH - 9):
    place = lengths + i
    out, cache = apply(ids[rows, place][:, None], ones, cache)
    np.testing.assert_allclose(
      np.asarray(out)[:, 0], full[rows, place], rtol=1e-4, atol=1e-4
    )


def ragged(rows):
  lengths = np.arange(rows) * 3 % 7 + 1
  ids = np.asarray(latent.text_ids(0, (rows, 8)))
  return np.where(np.arange(8)[None] < lengths[:, None], ids, 0), lengths


@pytest.mark.parametrize(
  ('scorer', 'wait'),
  [
    pytest.param(NGRAMS, 3, id='ngrams-3'),
    pytest.param(LM, 9, id='lm-9', marks=pytest.mark.slow),
    pytest.param(LM, 2, id='lm-2', marks=pytest.mark.slow),
  ],
)
def test_rows_that_wait_say_what_they_would_have_said(scorer, wait):
  """Ragged prompts, several calls, rows that end at different times."""
  params, threshold = drawn(scorer)
  rows = 5
  ids, lengths = ragged(rows)
  found = []
  for model in (
    with_entropy(scorer, threshold),
    with_entropy(scorer, threshold).clone(wait=wait),
  ):
    step = forward.step(model)
    sampler = chain.parse('repetition(1.2)|temperature(0.9)')
    state = loop.prefill(
      step, params, empty(model, rows, 8 + 24), ids, lengths,
      jax.random.split(jax.random.key(3), rows),
      capacity=24, sampler=sampler,
    )  # fmt: skip
    for _ in range(7):
      state = loop.decode(
        step, params, state, sampler, num_steps=5,
        stop_ids=tuple(range(4, 16)),
      )  # fmt: skip
    assert np.asarray(state.done_B).all()
    loop.check(state)
    found.append(state)
  np.testing.assert_array_equal(found[0].ids_BN, found[1].ids_BN)
  np.testing.assert_array_equal(found[0].length_B, found[1].length_B)
  assert len(set(np.asarray(found[0].length_B).tolist())) > 2


def test_the_latent_transformer_runs_for_as_many_rows_as_wait():
  params, threshold = drawn(NGRAMS)
  wait = 3
  model = with_entropy(NGRAMS, threshold).clone(wait=wait)
  ids = latent.text_ids(0)
  cache = empty(model, ROWS, LENGTH)
  read, runs = np.zeros(ROWS, int), []
  while read.min() < LENGTH:
    waited = np.asarray(cache.waiting_B)
    feeds = ~waited & (read < LENGTH)
    before = np.asarray(cache.model.patches_B)
    token = ids[np.arange(ROWS), np.minimum(read, LENGTH - 1)]
    _, cache = jitted_step(model)(
      params, token[:, None], feeds[:, None].astype(np.int32), cache
    )
    read += feeds
    closed = np.asarray(cache.model.patches_B) - before
    reading = np.sum(feeds | waited)
    if closed.any():
      runs.append(closed.sum())
      assert closed.sum() >= min(wait, reading)
      assert not np.asarray(cache.waiting_B).any()
  assert max(runs) >= wait


def test_several_bytes_are_read_after_those_that_wait():
  params, threshold = drawn(NGRAMS)
  plain = with_entropy(NGRAMS, threshold)
  ids = latent.text_ids(0)
  expected = logits_of(plain, params, ids)
  model = plain.clone(wait=3)
  step, cache = jitted_step(model), empty(model, ROWS, LENGTH)
  # The first byte of every row ends a patch, so all go on at once.
  for read in range(2):
    part = ids[:, read : read + 1]
    _, cache = step(params, part, np.ones_like(part), cache)
  assert 0 < np.asarray(cache.waiting_B).sum() < 3
  rest = ids[:, 2:6]
  found, cache = step(params, rest, np.ones_like(rest), cache)
  assert not np.asarray(cache.waiting_B).any()
  np.testing.assert_allclose(found, expected[:, 2:6], rtol=1e-4, atol=1e-4)


def test_wait_below_one_is_refused():
  model = with_entropy(NGRAMS, 1.0).clone(wait=0)
  with pytest.raises(ValueError, match='wait=0 must be at least 1'):
    model.init_cache(1, 4)


def test_a_hundred_batches_compile_once():
  """However many patches and documents they have; so do decoding steps."""
  params, threshold = drawn(NGRAMS)
  model = with_entropy(NGRAMS, threshold)
  rng = np.random.default_rng(0)
  forward_pass, step = whole(model), jitted_step(model)
  cache, patches, sizes = empty(model, ROWS, LENGTH), set(), set()
  for number in range(100):
    ids = rng.choice([97, 98, 99, 4 + number % 50], (ROWS, LENGTH))
    ids = ids.astype(np.int32)
    documents = 1 + np.cumsum(rng.random(ids.shape) < 0.1, 1, dtype=np.int32)
    documents[:, LENGTH - number % 7 :] = 0
    logits, counts = forward_pass(params, ids, documents)
    patches.add(int(counts['patches']))
    if number < LENGTH:
      _, cache = step(params, ids[:, :1], documents[:, :1], cache)
    assert np.isfinite(np.asarray(logits)).all()
    sizes.add((forward_pass._cache_size(), step._cache_size()))
  assert len(sizes) == 1
  assert len(patches) > 5


def test_nothing_flows_into_the_entropy_model():
  params, threshold = drawn(LM)
  model = with_entropy(LM, threshold)
  ids = latent.text_ids(1)
  grads = jax.jit(
    jax.grad(lambda p: (model.apply({'params': p}, ids)[0] ** 2).mean())
  )(params)
  grads = jax.device_get(grads)
  assert all(not np.any(x) for x in jax.tree.leaves(grads['entropy']))
  assert all(np.any(x) for x in jax.tree.leaves(grads['model']))


def test_cache_and_stored_entropies_exclude_each_other():
  params, threshold = drawn(NGRAMS)
  model = with_entropy(NGRAMS, threshold)
  ids = latent.text_ids(0, (1, 4))
  with pytest.raises(ValueError, match='has to read the bytes itself'):
    model.apply(
      {'params': params}, ids, None, empty(model, 1, 8),
      entropy_BT=np.zeros((1, 4), np.float32),
    )  # fmt: skip


def brute_force(text, sizes):
  """Nats after each prefix of a text, by counting its n-grams directly."""
  found = []
  for end in range(1, len(text)):
    nats = np.log(256)
    for size in sizes:
      # n-grams at the start of a document are filled up with id 0.
      padded = [0] * size + list(text)
      context = padded[size + end - size : size + end]
      after = [
        padded[i + size]
        for i in range(1, len(padded) - size)
        if padded[i : i + size] == context and i + size > size
      ]
      if not after:
        break
      _, counts = np.unique(after, return_counts=True)
      escape = len(counts) / (counts.sum() + len(counts))
      share = counts / counts.sum()
      own = -(share * np.log(share)).sum()
      choice = -escape * np.log(escape) - (1 - escape) * np.log(1 - escape)
      nats = choice + (1 - escape) * own + escape * nats
    found.append(nats)
  return np.array(found)


def test_fit_counts_n_grams():
  """Of one document; every occurrence of a context has the same suffix."""
  model = ngram_entropy.NgramEntropy(sizes=(1, 2), rows=2**16)
  text = np.random.default_rng(3).integers(4, 9, 60).astype(np.int32)
  row = {
    'ids': text[:-1],
    'targets': text[1:],
    'documents': np.ones(59, np.int32),
    'mask': np.ones(59, np.float32),
  }
  params = ngram_entropy.fit(model, [row])
  found = score(model, params, text[None, :-1])
  np.testing.assert_allclose(
    found[0], brute_force(text, (1, 2)), rtol=1e-5, atol=1e-5
  )


def test_unseen_contexts_fall_back_to_shorter_ones():
  model = ngram_entropy.NgramEntropy(sizes=(1, 2), rows=2**16)
  row = {
    'ids': np.array([5, 6, 5, 6], np.int32),
    'targets': np.array([6, 5, 6, 7], np.int32),
    'documents': np.ones(4, np.int32),
    'mask': np.ones(4, np.float32),
  }
  params = ngram_entropy.fit(model, [row])
  shorter = model.clone(sizes=(1,))
  ids = np.array([[6, 6]], np.int32)
  found = np.asarray(score(model, params, ids))
  expected = score(shorter, {'table_1': params['table_1']}, ids)
  assert found[0, 1] == np.asarray(expected)[0, 1]
  unknown = score(model, params, np.array([[9, 9]], np.int32))
  np.testing.assert_allclose(unknown, np.log(256), rtol=1e-6)


def test_drafts_without_the_latent_transformer_change_nothing_but_the_time():
  """Of ragged prompts and over patches, most of which end within a draft."""
  params, threshold = drawn(NGRAMS)
  model = with_entropy(NGRAMS, threshold)
  step, sampler = forward.step(model), chain.parse('greedy')
  ids, lengths = ragged(3)
  keys = jax.random.split(jax.random.key(0), 3)
  sides = (
    speculative.Model(step, params),
    speculative.Model(patched.ahead(model), params),
  )
  state = speculative.prefill(
    *sides, (empty(model, 3, 32), None), (ids, lengths, keys),
    capacity=18, draft_tokens=5,
  )  # fmt: skip
  state = speculative.decode(
    *sides, state, sampler, num_rounds=18, draft_tokens=5
  )
  made = np.asarray(state.target.ids_BN)
  text = np.zeros((ROWS, LENGTH), np.int32)
  for row, length in enumerate(lengths):
    text[row, :length] = ids[row, :length]
    text[row, length : length + 18] = made[row]
  best = np.argmax(logits_of(model, params, text), axis=-1)
  for row, length in enumerate(lengths):
    np.testing.assert_array_equal(
      made[row], best[row, length - 1 : length + 17]
    )
  assert np.asarray(state.target.done_B).all()
  # The first of a draft is the model's own; others are not always right.
  drafted, accepted = int(state.drafted_B.sum()), int(state.accepted_B.sum())
  assert drafted / 5 <= accepted < drafted


def test_a_model_without_patches_cannot_draft_for_itself():
  with pytest.raises(ValueError, match='ByteLM has no patches to draft'):
    patched.ahead(LM.lm)
