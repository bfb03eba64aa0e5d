"""The byte latent transformer: ours against transformers' on equal weights.

transformers' cache does not reproduce its own forward pass, so there a byte
costs a forward pass over all bytes so far.
"""

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench import decoding
from bench import timing
from data import codec
from models import flops
from models import forward
from models import patched
from models import patching
from released import blt
from released import fields
from released import layouts
from released import tensor_files
from samplers import chain
from samplers import parallel
from training import host

_PATCH_BYTES = 4.5
_EVERY = 64  # Of the lengths that a generation recomputes, those measured.


class Pair(NamedTuple):
  """The same model in both libraries, and a text that it is run on."""

  model: patched.Patched
  params: Any
  theirs: Any
  ids_N: np.ndarray


class Case(NamedTuple):
  """What is generated: rows, and bytes of prompt and of continuation."""

  batch: int
  prompt: int
  new: int

  def __str__(self) -> str:
    return f'{self.batch} x ({self.prompt} + {self.new}) bytes'


TRAINING = ((4, 512), (1, 4096))
DECODING = (Case(1, 64, 128), Case(8, 64, 128), Case(1, 64, 1024))
QUICK_TRAINING = ((2, 32),)
QUICK_DECODING = (Case(2, 8, 4),)


def pair(model: patched.Patched) -> Pair:
  """Random weights, and the threshold that gives patches of 4.5 bytes."""
  import torch
  import transformers

  text = pathlib.Path(argparse.__file__).read_bytes()
  ids_N = codec.encode(np.frombuffer(text, np.uint8))[: 1 << 15]
  init = jax.jit(model.init)
  zeros_BT = jnp.zeros((1, 8), jnp.int32)
  params = init(jax.random.key(0), zeros_BT)['params']
  params = jax.tree_util.tree_map_with_path(_loud, params)
  nats_BT, _ = jax.jit(model.entropy.apply)(
    {'params': params['entropy']}, ids_N[: 1 << 12].reshape(4, -1)
  )
  nats_N = np.sort(np.asarray(nats_BT).ravel())
  # In the widest gap near the quantile, so that rounding decides nothing.
  place = int(len(nats_N) * (1 - 1 / _PATCH_BYTES))
  place += int(np.argmax(np.diff(nats_N[place - 20 : place + 20]))) - 20
  threshold = float(nats_N[place : place + 2].mean())
  inner = model.model
  rule = patching.Patching(
    patching.Entropy(threshold), inner.patching.max_length
  )
  model = model.clone(model=inner.clone(patching=rule))
  with tempfile.TemporaryDirectory() as folder:
    plan = layouts.plan(model, blt.leaves(model))
    arrays = layouts.rows(plan, params, 'F32')
    planned = layouts.planned(plan, 'F32')
    tensor_files.write(folder, planned, arrays)
    fields.write(folder, blt.describe(model, 'float32'))
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.BltForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    )
  return Pair(model, params, theirs.eval(), ids_N)


def shrunk(model: patched.Patched) -> patched.Patched:
  """The same parts, so small that a test can afford them."""

  def small(stack: Any, width: int) -> Any:
    return stack.copy(width=width, heads=2, hidden=2 * width, layers=1)

  inner = model.model.clone(
    encoder=small(model.model.encoder, 16),
    latent=small(model.model.latent, 24),
    decoder=small(model.model.decoder, 16),
    ngrams=model.model.ngrams.clone(rows=97),
  )
  entropy = model.entropy.lm.clone(
    width=16, layers=1, heads=2, key_value_heads=2, hidden=32
  )
  return model.clone(entropy=model.entropy.clone(lm=entropy), model=inner)


def training_rows(
  both: Pair, cases: tuple[tuple[int, int], ...], rounds: int, peak: float
) -> Iterator[dict[str, object]]:
  """Forward and backward with boundaries that were stored beforehand."""
  for batch, length in cases:
    ids_BT = both.ids_N[: batch * length].reshape(batch, length)
    nats_BT, _ = both.model.entropy.apply(
      {'params': both.params['entropy']}, ids_BT
    )
    closes_BT = both.model.model.patching.closes(
      ids_BT, np.ones_like(ids_BT), nats_BT
    )
    threads = _tuned(functools.partial(_their_step, both, ids_BT, closes_BT))
    seconds = timing.interleaved(
      {
        'ours': _our_step(both, ids_BT, closes_BT),
        'torch': _their_step(both, ids_BT, closes_BT, threads),
      },
      rounds,
    )
    mine = timing.spread(seconds['ours']).median
    theirs = timing.spread(seconds['torch']).median
    patch_bytes = ids_BT.size / float(np.sum(closes_BT))
    parts = flops.per_byte(
      both.model, length=length, patch_bytes=patch_bytes
    )
    floor = 3 * parts.total * ids_BT.size / peak
    yield {
      'forward + backward': f'{batch} x {length} bytes',
      'bytes per patch': f'{patch_bytes:.2f}',
      'ours, B/s': f'{ids_BT.size / mine:.0f}',
      'transformers, B/s': f'{ids_BT.size / theirs:.0f}',
      'ratio': timing.ratio(seconds['torch'], seconds['ours']),
      'matmul floor, of our time': f'{floor / mine:.0%}',
      'PyTorch at its best': f'{threads} threads',
    }


def decoding_rows(
  both: Pair, cases: tuple[Case, ...], rounds: int, memory_bytes: float
) -> Iterator[dict[str, object]]:
  """Greedy generation. The floor reads every weight that a byte needs once.

  That is the local and entropy models for every byte, and the latent one once
  per mean patch, as if rows closed their patches together.
  """
  for case in cases:
    prompt_BT = both.ids_N[: case.batch * case.prompt].reshape(case.batch, -1)
    ours = decoding.our_decode(
      both.model, both.params, prompt_BT, case.new
    )
    found_BN = ours()
    whole_BT = np.concatenate([prompt_BT, found_BN], axis=1)
    _check_greedy(both, whole_BT, case.prompt)
    build = functools.partial(_their_generation, both, whole_BT, case)
    threads = _tuned(build)
    run = build(threads)
    mine, theirs = [], []
    run(1)
    for _ in range(rounds):
      mine.append(timing.clock(ours))
      theirs.append(run(_EVERY if case.new > 2 * _EVERY else 1))
    speed = case.batch * case.new / timing.spread(mine).median
    floor = _bytes_per_step(both) / memory_bytes * case.new
    yield {
      'greedy generation': case,
      'ours, B/s': f'{speed:.0f}',
      'transformers, B/s': (
        f'{case.batch * case.new / timing.spread(theirs).median:.1f}'
      ),
      'ratio': timing.ratio(theirs, mine),
      'ours, ms per step': f'{1e3 * timing.spread(mine).median / case.new:.2f}',
      'memory floor, of our time': f'{floor / timing.spread(mine).median:.0%}',
      'PyTorch at its best': f'{threads} threads',
    }


def waiting_rows(
  both: Pair, case: Case, rounds: int
) -> Iterator[dict[str, object]]:
  """Generation where rows wait for the latent transformer, by how many do."""
  prompt_BT = both.ids_N[: case.batch * case.prompt].reshape(case.batch, -1)
  each = case.batch // len(parallel.devices_for(case.batch))
  runs = {
    wait: decoding.our_decode(
      both.model.clone(wait=wait), both.params, prompt_BT, case.new
    )
    for wait in range(1, each + 1)
  }
  expected_BN = runs[1]()
  for wait, run in runs.items():
    if not np.array_equal(run(), expected_BN):
      raise ValueError(f'bench byte_latent: wait={wait} makes other bytes.')
  seconds = timing.interleaved(runs, rounds)
  for wait in runs:
    yield {
      f'{case}, {each} rows per device': f'wait={wait}',
      'B/s': (
        f'{case.batch * case.new / timing.spread(seconds[wait]).median:.0f}'
      ),
      'speed over wait=1': timing.ratio(seconds[1], seconds[wait]),
    }


def position_rows(
  both: Pair, chunk: int, chunks: int, rounds: int
) -> Iterator[dict[str, object]]:
  """What a byte costs at the start of a long text and far beyond the window."""
  model, prompt = both.model, 64
  rows = (
    jnp.asarray(both.ids_N[None, :prompt]),
    jnp.full((1,), prompt, jnp.int32),
    jax.random.split(jax.random.key(0), 1),
  )
  decoder = parallel.build(
    forward.step(model),
    both.params,
    lambda count: model.init_cache(count, prompt + chunk * chunks),
    rows,
    chain.parse('greedy'),
    capacity=chunk * chunks,
    num_steps=chunk,
  )
  found: list[list[float]] = [[] for _ in range(chunks)]
  for number in range(rounds + 1):
    state = jax.block_until_ready(decoder.start(rows))
    for place in range(chunks):
      began = time.perf_counter()
      state = jax.block_until_ready(decoder.go_on(state))
      if number:  # The first round compiles.
        found[place].append(time.perf_counter() - began)
  for place, seconds in enumerate(found):
    first = prompt + place * chunk
    yield {
      'batch 1, at byte': f'{first} to {first + chunk}',
      'ms per byte': f'{1e3 * timing.spread(seconds).median / chunk:.2f}',
      'over the first': timing.ratio(seconds, found[0]),
    }


def _loud(path: Any, leaf: jax.Array) -> jax.Array:
  """No layer may be silent: those that start at zero get random weights."""
  if path[-1].key != 'kernel' or np.any(leaf):
    return leaf
  noise = jax.random.normal(jax.random.key(0), leaf.shape)
  return noise * leaf.shape[0] ** -0.5


def _tuned(build: Any) -> int:
  """The number of threads that transformers is fastest with."""
  choices = sorted({1, max(1, host.cores() // 2), host.cores()})
  seconds = {}
  for threads in choices:
    run = build(threads)
    run()
    seconds[threads] = min(timing.clock(run) for _ in range(2))
  return min(choices, key=seconds.get)


def _our_step(
  both: Pair, ids_BT: np.ndarray, closes_BT: np.ndarray
) -> timing.Run:
  model = both.model.model
  ids, closes = jnp.asarray(ids_BT), jnp.asarray(closes_BT)

  def loss(params: Any, ids_BT: jax.Array, closes_BT: jax.Array) -> jax.Array:
    logits_BTV = forward.pure(model)(
      params, ids_BT, jnp.ones_like(ids_BT), closes=closes_BT
    )
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits_BTV, jnp.roll(ids_BT, -1, axis=1)
    ).mean()

  step = jax.jit(
    jax.value_and_grad(loss), compiler_options=host.compiler_options()
  )

  def run() -> None:
    jax.block_until_ready(step(both.params['model'], ids, closes))

  return run


def _their_step(
  both: Pair, ids_BT: np.ndarray, closes_BT: np.ndarray, threads: int
) -> timing.Run:
  import torch

  ids = torch.from_numpy(ids_BT.astype(np.int64))
  lengths = torch.from_numpy(_lengths(np.asarray(closes_BT)))
  targets = torch.roll(ids, -1, dims=1).flatten()
  weights = [
    x for name, x in both.theirs.named_parameters() if 'patcher' not in name
  ]

  def run() -> None:
    torch.set_num_threads(threads)
    logits = both.theirs(ids, patch_lengths=lengths, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
    torch.autograd.grad(loss, weights)

  return run


def _lengths(closes_BT: np.ndarray) -> np.ndarray:
  """Patch lengths of rows, of T + 1 bytes in all, zeros at the right."""
  starts_BU = np.pad(closes_BT, [(0, 0), (1, 0)], constant_values=True)
  rows = [
    np.diff([*np.flatnonzero(row), len(row)]).tolist() for row in starts_BU
  ]
  longest = max(map(len, rows))
  return np.array([row + [0] * (longest - len(row)) for row in rows])


def _their_generation(
  both: Pair, whole_BT: np.ndarray, case: Case, threads: int
) -> Any:
  """Seconds of `case.new` forward passes, of which each `every`-th is run."""
  import torch

  ids = torch.from_numpy(whole_BT.astype(np.int64))

  def run(every: int = _EVERY) -> float:
    torch.set_num_threads(threads)
    total = 0.0
    with torch.inference_mode():
      for start in range(0, case.new, every):
        count = min(every, case.new - start)
        stop = case.prompt + start + count // 2
        forward = functools.partial(
          both.theirs, ids[:, :stop], use_cache=False, logits_to_keep=1
        )
        total += count * timing.clock_once(forward)
    return total

  return run


def _bytes_per_step(both: Pair) -> float:
  """Bytes of the weights that one more byte reads, tables left out."""
  total = 0.0
  for path, leaf in jax.tree_util.tree_leaves_with_path(both.params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if 'table' in name or 'embed' in name:
      continue
    once = ('latent', 'patch_', 'encoder_cross/query', 'encoder_cross/output')
    shared = any(part in name for part in once)
    total += leaf.nbytes / (_PATCH_BYTES if shared else 1)
  return total


def _check_greedy(both: Pair, whole_BT: np.ndarray, prompt: int) -> None:
  """ValueError unless every byte is transformers' best, or nearly."""
  import torch

  ids = torch.from_numpy(whole_BT.astype(np.int64))
  with torch.inference_mode():
    logits_BNV = both.theirs(ids, use_cache=False).logits[:, prompt - 1 : -1]
  logits_BNV, new_BN = logits_BNV.numpy(), whole_BT[:, prompt:]
  found_BN = np.take_along_axis(logits_BNV, new_BN[..., None], 2)[..., 0]
  # An entropy within rounding of the threshold may end a patch on one side.
  best_BN = logits_BNV.max(axis=2)
  worse = (best_BN - found_BN) / np.abs(logits_BNV).max() > 1e-4
  if worse.any(axis=0)[: max(1, worse.shape[1] // 2)].any():
    raise ValueError(
      f'bench byte_latent: a byte among the first {worse.shape[1] // 2} is not'
      ' the best one; both sides must do equal work.'
    )
