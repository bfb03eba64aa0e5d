"""What a finished run is worth on the test split, and how fast it decodes."""

import math
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import restore
from data import text
from evals import bits_per_byte
from evals import noise
from evals import spelling
from models import byte_latent
from models import forward
from models import patched
from samplers import loop
from training import metrics

_PROMPT_BYTES = 64


class Limits(NamedTuple):
  """How much of the test split is read, and how much decoded."""

  max_bytes: int | None = None
  robust_bytes: int = 65_536
  questions: int = 32
  new_bytes: int = 256


QUICK = Limits(max_bytes=8192, robust_bytes=2048, questions=2, new_bytes=16)


def with_room(model: Any) -> Any:
  """The model with half as much room again for patches, to each row alone.

  Patches without room are scored as if nothing was known of their bytes, which
  says more about `reserve` than about the model. Parameters are the same, and
  so is about the time: a latent token per byte would take five times as long.
  """
  if isinstance(model, patched.Patched):
    return model.clone(model=with_room(model.model))
  if isinstance(model, byte_latent.ByteLatent):
    return model.clone(reserve=min(1.5 * model.reserve, 1.0), rows=1)
  return model


def score(workdir: pathlib.Path, limits: Limits) -> dict[str, Any]:
  """Held-out bits per byte of a finished run, and its speeds."""
  run = restore.restore(workdir)
  config = run.config
  documents = config.data.open('test')
  evaluator = next(
    (e for e in config.evals if isinstance(e, bits_per_byte.BitsPerByte)),
    bits_per_byte.BitsPerByte(),
  )
  found = evaluator.run(
    forward.pure(with_room(config.model)),
    run.params,
    documents,
    max_bytes=limits.max_bytes,
  )
  # The first figure of a process is mostly compilation.
  speeds = [
    line['time/bytes_per_second']
    for line in metrics.read(workdir)
    if 'time/bytes_per_second' in line
  ]
  return found | {
    'parameters': sum(x.size for x in jax.tree.leaves(run.params)),
    'training_bytes_per_second': statistics.median(speeds[1:] or speeds),
    'decode_bytes_per_second': decode_speed(run, documents, limits.new_bytes),
  }


def robustness(workdir: pathlib.Path, limits: Limits) -> dict[str, Any]:
  """Noise and spelling on the test split, read in rows as long as trained."""
  run = restore.restore(workdir)
  length = run.config.row_length
  apply = forward.pure(with_room(run.config.model))
  documents = run.config.data.open('test')
  noisy = noise.NoisyBits(
    window=length, stride=math.ceil(length * 0.75), batch_size=4
  )
  questions = spelling.Spelling(questions=limits.questions)
  return noisy.run(
    apply, run.params, documents, max_bytes=limits.robust_bytes
  ) | questions.run(apply, run.params, documents)


def decode_speed(
  run: restore.Run, documents: text.Corpus, new_bytes: int, rounds: int = 3
) -> float:
  """Bytes per second of samplers.loop for one row, once compiled; median."""
  model, sampler = run.config.model, run.config.sampler
  prompt = documents[0][:_PROMPT_BYTES]
  ids = [documents.codec.bos, *documents.codec.encode(prompt)]
  count = max(round(new_bytes / documents.bytes_per_id), 1)
  step = forward.step(model)
  speeds = []
  for number in range(rounds + 1):
    state = loop.prefill(
      step,
      run.params,
      model.init_cache(1, len(ids) + count),
      np.array([ids], np.int32),
      np.array([len(ids)], np.int32),
      jax.random.split(jax.random.key(number), 1),
      capacity=count,
      sampler=sampler,
    )
    jax.block_until_ready(state)
    began = time.perf_counter()
    state = loop.decode(step, run.params, state, sampler, num_steps=count)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    loop.check(state)
    made = documents.codec.decode(np.asarray(state.ids_BN)[0])
    speeds.append(len(made) / seconds)
  return statistics.median(speeds[1:])
