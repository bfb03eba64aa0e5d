"""Feeds damaged files and texts to everything that reads such.

  python -m bench.fuzz --seconds=60 --targets=all

Input i of a target is a pure function of --seed, the target and i. A reader
must return a value or raise ValueError or OSError with one sentence that names
what it read; everything else is a crash, as are a death of the process, more
than LIMIT_SECONDS of processor and more than LIMIT_BYTES of memory.
"""

import contextlib
import linecache
import logging
import multiprocessing
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import app
from absl import flags

from bench import fuzz_files
from bench import fuzz_texts
from bench import mutations

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 3 * 2**29
_LONGEST = 2000  # letters of a message
_PATIENCE = 600  # seconds without a sign from a child
_ROOT = str(pathlib.Path(__file__).parent.parent)
TARGETS: Mapping[str, fuzz_texts.Target] = {
  target.name: target for target in (*fuzz_texts.TARGETS, *fuzz_files.TARGETS)
}


class Crash(NamedTuple):
  """What went wrong with one input: input `index`."""

  target: str
  index: int
  what: str
  data: bytes


class Counts(NamedTuple):
  """Inputs tried, and what became of them; one crash of each kind."""

  tried: int
  accepted: int
  refused: int
  crashes: dict[str, Crash]


class Job(NamedTuple):
  """Inputs of a target from `first` on, for so many seconds."""

  name: str
  first: int
  seconds: float


class _TooSlow(BaseException):
  """Not an Exception, so that no reader catches it."""


def try_inputs(
  target: fuzz_texts.Target,
  indices: Sequence[int] | Iterator[int],
  seed: int = 0,
  on_input: Callable[[int, Counts], None] | None = None,
) -> Counts:
  """Reads these inputs of a target in this process.

  on_input: called with every index before it is tried, and the counts so far.
  """
  counts = Counts(0, 0, 0, {})
  with tempfile.TemporaryDirectory(prefix='fuzz-') as folder, _limits():
    place = pathlib.Path(folder)
    seeds = target.seeds(place)
    for index in indices:
      if on_input is not None:
        on_input(index, counts)
      data = make(target, seeds, index, seed)
      what = _judged(target, data, place)
      is_bad = what not in ('accepted', 'refused')
      crash = {what: Crash(target.name, index, what, data)} if is_bad else {}
      counts = Counts(
        counts.tried + 1,
        counts.accepted + (what == 'accepted'),
        counts.refused + (what == 'refused'),
        crash | counts.crashes,
      )
  return counts


def make(
  target: fuzz_texts.Target, seeds: Sequence[bytes], index: int, seed: int
) -> bytes:
  """Input number `index` of a target."""
  if index < len(seeds):
    return seeds[index]
  rng = random.Random(f'{seed}/{target.name}/{index}')
  data = mutations.damaged(rng, seeds, target.kind)
  if target.repaired is not None and rng.random() < 0.9:
    data = target.repaired(data)
  return data


def _judged(
  target: fuzz_texts.Target, data: bytes, folder: pathlib.Path
) -> str:
  """'accepted', 'refused', or what is wrong."""
  signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
  try:
    target.read(data, folder)
  except _TooSlow:
    return f'more than {LIMIT_SECONDS:g} s'
  except Exception as error:  # To be judged.
    signal.setitimer(signal.ITIMER_PROF, 0)
    return _fault(target, error, data) or 'refused'
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt):
      raise
    return f'{type(error).__name__} {_place(error)}'
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
  return 'accepted'


def _fault(
  target: fuzz_texts.Target, error: Exception, data: bytes
) -> str | None:
  """What is wrong with how a reader refused; None if nothing is."""
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, MemoryError):
      return f'{type(cause).__name__} {_place(cause)}'
    cause = cause.__cause__ or cause.__context__
  text = str(error)
  if isinstance(error, OSError):
    is_named = error.filename or target.named in text
    return None if is_named else f'OSError that names no file {_place(error)}'
  if type(error) not in (ValueError, *target.refusals):
    return f'{type(error).__name__} {_place(error)}'
  if not _is_raised_here(error):
    return f'ValueError of a library {_place(error)}'
  # Flags are shown as they were given.
  if len(text) > _LONGEST + (0 if target.named else 8 * len(data)):
    return f'a message of thousands of letters {_place(error)}'
  if target.named and '\n' in text:
    return f'a message of several lines {_place(error)}'
  if target.named not in text:
    return f'a message without {target.named!r} {_place(error)}'
  return None


def _is_raised_here(error: BaseException) -> bool:
  """Whether it comes from a raise statement of this repository."""
  trace = error.__traceback__
  while trace.tb_next is not None:
    trace = trace.tb_next
  file = trace.tb_frame.f_code.co_filename
  line = linecache.getline(file, trace.tb_lineno)
  is_ours = file.startswith(_ROOT) and 'site-packages' not in file
  return is_ours and line.lstrip().startswith('raise ')


def _place(error: BaseException) -> str:
  """The last line of ours on the way to an error."""
  found, trace = 'outside', error.__traceback__
  while trace is not None:
    file = trace.tb_frame.f_code.co_filename
    if file.startswith(_ROOT) and 'site-packages' not in file:
      found = f'{file[len(_ROOT) + 1 :]}:{trace.tb_lineno}'
    trace = trace.tb_next
  return f'at {found}'


@contextlib.contextmanager
def _limits() -> Iterator[None]:
  """Stops inputs that take too much; restores what was there."""

  def stop(*_: Any) -> None:
    raise _TooSlow

  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  with open('/proc/self/statm') as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
  before = signal.signal(signal.SIGPROF, stop)
  resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def _work(jobs: Sequence[Job], seed: int, pipe: Any, at: Any) -> None:
  """A child: sends the counts of one job after the other."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  logging.disable(logging.CRITICAL)

  def on_input(index: int, counts: Counts) -> None:
    at[:] = [index, counts.accepted, counts.refused]
    # For what holds no bytecode to be interrupted at.
    used = int(time.process_time() + 3 * LIMIT_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (used, -1))

  for job in jobs:
    pipe.send(try_inputs(TARGETS[job.name], _indices(job), seed, on_input))


def _indices(job: Job) -> Iterator[int]:
  end, index = time.monotonic() + job.seconds, job.first
  while time.monotonic() < end:
    yield index
    index += 1


def run(jobs: Sequence[Job], seed: int) -> dict[str, Counts]:
  """Tries inputs in children, which may die of them; counts by target."""
  found = {job.name: Counts(0, 0, 0, {}) for job in jobs}
  spawn = multiprocessing.get_context('spawn')
  left = list(jobs)
  while left:
    receiver, sender = spawn.Pipe(duplex=False)
    at = spawn.Array('q', [left[0].first - 1, 0, 0])
    child = spawn.Process(target=_work, args=(left, seed, sender, at))
    child.start()
    sender.close()
    began = time.monotonic()
    with contextlib.suppress(EOFError):
      while left and receiver.poll(left[0].seconds + _PATIENCE):
        found[left[0].name] = _sum(found[left[0].name], receiver.recv())
        began = time.monotonic()
        del left[0]
    child.kill()
    child.join()
    if left:
      name, first, seconds = left[0]
      index, accepted, refused = at[:]
      what = f'the process died or hung, exit code {child.exitcode}'
      crashes = {what: Crash(name, index, what, b'')}
      died = Counts(max(index - first, 0) + 1, accepted, refused, crashes)
      found[name] = _sum(found[name], died)
      seconds -= time.monotonic() - began
      left[:1] = [Job(name, index + 1, seconds)] if seconds > 0 else []
  return found


def _sum(one: Counts, other: Counts) -> Counts:
  numbers = (a + b for a, b in zip(one[:3], other[:3], strict=True))
  return Counts(*numbers, other.crashes | one.crashes)


def table(found: Mapping[str, Counts]) -> str:
  """One row per target and their sum, as Markdown."""
  lines = ['| target | inputs | accepted | refused | crashes |']
  lines.append('|---' * 5 + '|')
  sums = [0, 0, 0, 0]
  for name, counts in found.items():
    numbers = [*counts[:3], len(counts.crashes)]
    sums = [a + b for a, b in zip(sums, numbers, strict=True)]
    lines.append(f'| {name} | ' + ' | '.join(map(str, numbers)) + ' |')
  lines.append('| all | ' + ' | '.join(map(str, sums)) + ' |')
  return '\n'.join(lines)


def main(_: Sequence[str]) -> None:
  names = list(TARGETS) if _CHOSEN.value == ['all'] else _CHOSEN.value
  wrong = [name for name in names if name not in TARGETS]
  if wrong:
    sys.exit(
      f'bench.fuzz: --targets={wrong[0]} is unknown; choose of all,'
      f' {", ".join(TARGETS)}'
    )
  share = _SECONDS.value / len(names)
  found = run([Job(name, _FIRST.value, share) for name in names], _SEED.value)
  for name, counts in found.items():
    for crash in counts.crashes.values():
      print(f'{name} input {crash.index}: {crash.what}', file=sys.stderr)
      if _OUT.value:
        file = pathlib.Path(_OUT.value) / f'{name}-{crash.index}'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(crash.data)
  print(table(found))
  sys.exit(any(counts.crashes for counts in found.values()))


if __name__ == '__main__':
  _SECONDS = flags.DEFINE_float('seconds', 60.0, 'For all targets together.')
  _CHOSEN = flags.DEFINE_list('targets', ['all'], 'Names, joined by commas.')
  _SEED = flags.DEFINE_integer('seed', 0, 'Same seed, same inputs.')
  _FIRST = flags.DEFINE_integer('first', 0, 'Number of the first input.')
  _OUT = flags.DEFINE_string('out', None, 'Folder for inputs that crash.')
  app.run(main)
