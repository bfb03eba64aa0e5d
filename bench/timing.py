"""Interleaved timings, so that a busy machine slows both sides alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Does a piece of work and returns when it is done.
Run = Callable[[], object]

# A shorter measurement repeats its work.
_SECONDS = 0.1


class Spread(NamedTuple):
  """Median, smallest and largest of several figures."""

  median: float
  low: float
  high: float

  def __str__(self) -> str:
    return f'{self.median:.2f} ({self.low:.2f}-{self.high:.2f})'


def spread(values: Sequence[float]) -> Spread:
  """Of one figure per round."""
  return Spread(statistics.median(values), min(values), max(values))


def interleaved(candidates: dict[str, Run], rounds: int) -> dict[str, list]:
  """Seconds of every candidate in every round, after one warm-up each."""
  for run in candidates.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in candidates}
  for _ in range(rounds):
    for name, run in candidates.items():
      seconds[name].append(clock(run))
  return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
  """How many times the speed of `slow` is that of `fast`, round by round."""
  return spread([s / f for s, f in zip(slow, fast, strict=True)])


def tuned(
  setting: Any, choices: dict[str, tuple], build: Callable[[Any], Run]
) -> Any:
  """The dataclass `setting` with the fastest choice of each field in turn."""

  def measure(setting: Any) -> float:
    run = build(setting)
    run()
    return min(clock(run), clock(run))

  least = measure(setting)
  for field, values in choices.items():
    for value in values:
      other = dataclasses.replace(setting, **{field: value})
      if other != setting and (seconds := measure(other)) < least:
        setting, least = other, seconds
  return setting


def clock_once(run: Run) -> float:
  """Seconds of one run."""
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def clock(run: Run) -> float:
  """Seconds of one run, the mean of as many as fill the time."""
  began, runs = time.perf_counter(), 0
  while not runs or time.perf_counter() - began < _SECONDS:
    run()
    runs += 1
  return (time.perf_counter() - began) / runs
