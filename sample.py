"""Continues prompts with the model of a run, printing text as it is made.

python sample.py --checkpoint=runs/demo --prompt='def read(' --num_bytes=400
"""

import codecs
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import command
from configs import restore
from data import codec
from models import forward
from samplers import chain
from samplers import loop
from samplers import parallel
from samplers import stop_strings
from training import host

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
_PROMPT = flags.DEFINE_multi_string(
  'prompt', [''], 'Text to continue; repeat the flag for several prompts.'
)
_NUM_BYTES = flags.DEFINE_integer(
  'num_bytes', 256, 'Bytes to make per sample.', lower_bound=1
)
_NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples', 1, 'Samples per prompt.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Same seed, same text.')
_SAMPLER = flags.DEFINE_string(
  'sampler', None, "As 'temperature(0.8)|top_p(0.95)'; or else the run's."
)

_STOP = flags.DEFINE_multi_string(
  'stop', [], 'Text that ends a sample and is not shown; may be repeated.'
)

# Bytes between two prints: small enough to feel live, large enough to be fast.
_CHUNK = 16


class Job(NamedTuple):
  """What to sample from, and what to continue."""

  model: Any
  params: Any
  sampler: chain.Chain
  codec: codec.Codec
  prompts: list[bytes]
  stops: stop_strings.StopStrings


def prepare() -> Job:
  """Reads the flags and the checkpoint; ValueError if they do not fit."""
  if not _CHECKPOINT.value:
    raise ValueError(
      '--checkpoint is missing; name a run directory, the --workdir of'
      ' train.py.'
    )
  sampler = _SAMPLER.value and chain.parse(_SAMPLER.value)
  # Command-line bytes that are no UTF-8 arrive as surrogates.
  prompts = [p.encode('utf-8', 'surrogateescape') for p in _PROMPT.value]
  stops = stop_strings.StopStrings(
    tuple(s.encode('utf-8', 'surrogateescape') for s in _STOP.value)
  )
  config, params, _ = restore.restore(_CHECKPOINT.value)
  window = config.model.max_length
  name = config.data.codec
  longest = max(len(name.encode(prompt)) for prompt in prompts)
  if window is not None and 1 + longest + _NUM_BYTES.value > window:
    room = window - 1 - longest
    way_out = f'pass --num_bytes={room} or less' if room > 0 else 'shorten it'
    raise ValueError(
      f'--prompt of {longest} ids, its start mark and '
      f"--num_bytes={_NUM_BYTES.value} exceed the model's window of {window}; "
      f'{way_out}'
    )
  sampler = sampler or config.sampler
  return Job(config.model, params, sampler, name, prompts, stops)


def start(job: Job) -> tuple[parallel.Decoder, loop.State]:
  """Feeds every prompt, once per sample; what goes on, and the first state."""
  count = _NUM_SAMPLES.value
  ids = [[codec.BOS, *job.codec.encode(prompt)] for prompt in job.prompts]
  lengths = np.array([len(row) for row in ids], np.int32)
  ids_BT = np.full((len(ids), lengths.max()), codec.PADDING, np.int32)
  for target, row in zip(ids_BT, ids, strict=True):
    target[: len(row)] = row
  # Folded twice, so that asking for more samples leaves the first ones alone.
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  keys = fold(jax.random.key(_SEED.value), np.arange(len(ids)))
  keys = jax.vmap(fold, (0, None))(keys, np.arange(count)).reshape(-1)
  length = int(lengths.max()) + _NUM_BYTES.value
  ids_BT, lengths = np.repeat(ids_BT, count, axis=0), np.repeat(lengths, count)
  rows = (jnp.asarray(ids_BT), jnp.asarray(lengths), keys)
  decoder = parallel.build(
    forward.step(job.model),
    job.params,
    lambda count: job.model.init_cache(count, length),
    rows,
    job.sampler,
    capacity=_NUM_BYTES.value,
    num_steps=_CHUNK,
    stop_ids=(codec.EOS,),
  )
  return decoder, decoder.start(rows)


def write(job: Job) -> None:
  """Streams the first sample, then prints the others and the speed."""

  decoder, state = start(job)
  text = codecs.getincrementaldecoder('utf-8')('replace')
  show(header(job, 0) + text.decode(job.prompts[0]))
  shown, progress, texts = 0, [], [b'']
  # An id may stand for several bytes, so there may be enough before the end.
  while not np.all(state.done_B) and min(map(len, texts)) < _NUM_BYTES.value:
    state = decoder.go_on(state)
    loop.check(state)
    texts = made(job, state)
    cuts = [job.stops.cut(t) for t in texts]
    stopped_B = np.array([cut.is_stopped for cut in cuts])
    texts = [
      t[: c.length] if c.is_stopped else t
      for t, c in zip(texts, cuts, strict=True)
    ]
    state = state._replace(done_B=state.done_B | stopped_B)
    # What may begin a stop string waits; the end shows it.
    show(text.decode(texts[0][shown : cuts[0].length]))
    shown = cuts[0].length
    progress.append((time.perf_counter(), sum(map(len, texts))))
  show(text.decode(texts[0][shown:], final=True) + '\n')
  for row in range(1, len(texts)):
    whole = job.prompts[row // _NUM_SAMPLES.value] + texts[row]
    show(header(job, row) + whole.decode('utf-8', 'replace') + '\n')
  (first_time, first), (last_time, last) = progress[0], progress[-1]
  line = f'{last} bytes'
  if last > first:  # The first chunk is mostly compilation.
    speed = (last - first) / (last_time - first_time)
    line += f', {speed:.0f} bytes/s once compiled'
  print(line, file=sys.stderr)


def made(job: Job, state: loop.State) -> list[bytes]:
  """The bytes of every row so far, at most as many as were asked for."""
  rows = zip(np.asarray(state.ids_BN), np.asarray(state.length_B), strict=True)
  texts = [job.codec.decode(ids_N[:length]) for ids_N, length in rows]
  return [text[: _NUM_BYTES.value] for text in texts]


def header(job: Job, row: int) -> str:
  """Names a sample if there are several."""
  if len(job.prompts) * _NUM_SAMPLES.value == 1:
    return ''
  prompt, sample = divmod(row, _NUM_SAMPLES.value)
  return f'--- prompt {prompt + 1}, sample {sample + 1}\n'


def show(text: str) -> None:
  print(text, end='', flush=True)


def main(argv: Sequence[str]) -> None:
  del argv
  command.quiet()
  host.use_cores()
  try:
    with command.explained('sample.py'):
      write(prepare())
  except BrokenPipeError:
    # The reader, as `head`, has enough; keep Python from flushing at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
  command.run(main)
