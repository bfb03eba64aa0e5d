"""Prints speed ratios of one run as Markdown: `python -m bench`."""

import importlib.util
import platform
import sys
from collections.abc import Iterable, Sequence

import jax
from absl import flags

from bench import byte_latent
from bench import decoding
from bench import long
from bench import peaks
from bench import samplers
from bench import shapes
from bench import structures
from bench import training
from configs import base
from configs import command
from training import host

_PARTS = (
  'training', 'decoding', 'byte_latent', 'samplers', 'long', 'structures',
)  # fmt: skip
_ONLY = flags.DEFINE_list('only', list(_PARTS), 'What to measure.')
flags.register_validator(
  'only',
  lambda names: set(names) <= set(_PARTS),
  message=f'takes some of {", ".join(_PARTS)}, joined by commas',
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Timed rounds.', lower_bound=1)
_QUICK = flags.DEFINE_bool('quick', False, 'Tiny shapes, to see it run.')


def main(_: Sequence[str]) -> None:
  if importlib.util.find_spec('transformers') is None:
    sys.exit(
      'bench: PyTorch and transformers are missing; run `make bench`, or'
      " pip install '.[bench]'."
    )
  command.quiet()
  host.keep_memory()
  host.use_cores()
  jax.config.update('jax_platforms', 'cpu')
  _report()


def _report() -> None:
  import torch
  import transformers

  quick = _QUICK.value
  cases = shapes.QUICK if quick else shapes.FULL
  torch.set_num_threads(host.cores())
  flops = peaks.matmul_flops((256,) if quick else (512, 1024, 2048))
  memory = peaks.memory_bytes(2**20 if quick else 2**28)
  print(
    f'{_processor()}, {host.cores()} cores; Python'
    f' {platform.python_version()}, jax {jax.__version__}, torch'
    f' {torch.__version__}, transformers {transformers.__version__}\n'
    f'Peaks of this run: float32 matmul {flops / 1e9:.0f} GFLOP/s, memory'
    f' {memory / 1e9:.1f} GB/s. Ratios: speed of ours over PyTorch, median'
    f' (low-high) of {_ROUNDS.value} interleaved rounds.\n'
  )
  if 'training' in _ONLY.value:
    print(
      'Forward, backward and AdamW on the same weights in float32. FLOPs: 6'
      ' per weight\nand byte, and 6 x layers x width x length per byte for'
      ' causal attention.\n'
    )
    _table(training.rows(cases, _ROUNDS.value, flops))
  if 'decoding' in _ONLY.value:
    new_bytes = 8 if quick else 256
    print(
      f'Greedy decoding of {new_bytes} bytes after a prompt of'
      f' {decoding.PROMPT}, the prompt included. The floor reads\nevery weight'
      ' and the cache from memory once per step.\n'
    )
    _table(decoding.rows(cases[:2], _ROUNDS.value, new_bytes, memory))
  if 'byte_latent' in _ONLY.value:
    _byte_latent(quick, flops, memory)
  if 'samplers' in _ONLY.value:
    print(
      f'Sampling rules on {samplers.BATCH} rows; the whole chain is'
      f' {samplers.CHAIN.replace("|", ", ")}.\nPyTorch with the threads that'
      ' suit it best.\n'
    )
    sizes = (300,) if quick else (32000, 128256)
    _table(samplers.rows(sizes, _ROUNDS.value, memory))
    new_bytes = 8 if quick else 64
    _table(samplers.overhead(cases[:2], _ROUNDS.value, new_bytes))
  if 'long' in _ONLY.value:
    _long(long.QUICK if quick else long.FULL)
  if 'structures' in _ONLY.value:
    print(
      'Forward and backward pass of square linear layers, float32. The floor:'
      ' their\nmultiply-adds at the matmul peak, or what must be moved through'
      ' memory.\n'
    )
    sizes = structures.QUICK if quick else structures.FULL
    _table(structures.rows(sizes, _ROUNDS.value, flops, memory))


def _long(sizes: long.Sizes) -> None:
  mask = sizes.mask
  print(
    f'{sizes.heads} heads of width {sizes.head_width} see the first'
    f' {mask.n_global} and the last {mask.n_local} keys, or all of them:'
    f' 128 rows of queries\nat a time (scanned, with remat), or all at once.'
    ' Memory: temporaries of the compiled program.\n'
  )
  _table(long.prefill_rows(sizes, _ROUNDS.value))
  print(
    f'Greedy decoding of {sizes.new_bytes} bytes, width {sizes.model.width} x'
    f' {sizes.model.layers}, batch 1.\n'
  )
  _table(long.decoding_rows(sizes, _ROUNDS.value))
  print(
    'One layer of that model, bytes drawn one after the other, in a process of'
    ' its own.\n'
  )
  _table(long.endless_rows(sizes))


def _byte_latent(quick: bool, flops: float, memory: float) -> None:
  model = base.load('configs/blt_bench.py').model
  both = byte_latent.pair(byte_latent.shrunk(model) if quick else model)
  training = byte_latent.QUICK_TRAINING if quick else byte_latent.TRAINING
  decoding = byte_latent.QUICK_DECODING if quick else byte_latent.DECODING
  print(
    'Byte latent transformer of configs/blt_bench.py, the same weights in both'
    ' libraries.\ntransformers makes a byte by a forward pass over all so far;'
    ' of 1024 such passes\nevery 64th is timed.\n'
  )
  _table(byte_latent.training_rows(both, training, _ROUNDS.value, flops))
  _table(byte_latent.decoding_rows(both, decoding, _ROUNDS.value, memory))
  case = max(decoding, key=lambda case: case.batch)
  _table(byte_latent.waiting_rows(both, case, _ROUNDS.value))
  _table(byte_latent.position_rows(both, 4 if quick else 256, 8, _ROUNDS.value))


def _table(rows: Iterable[dict[str, object]]) -> None:
  for number, row in enumerate(rows):
    if not number:
      print('| ' + ' | '.join(row) + ' |')
      print('|' + '---|' * len(row))
    print('| ' + ' | '.join(map(str, row.values())) + ' |', flush=True)
  print()


def _processor() -> str:
  try:
    with open('/proc/cpuinfo') as lines:
      for line in lines:
        if line.startswith('model name'):
          return line.split(':')[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


if __name__ == '__main__':
  command.run(main)
