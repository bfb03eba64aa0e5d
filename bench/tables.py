"""Runs at equal training FLOPs as Markdown tables, and the time they need."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

# What a run costs besides training, in seconds: starting, compiling, scoring.
_BESIDES = 60


class Clock:
  """Says how far a list of runs is, and how long the others may take.

  seconds: of training that each is expected to need, and besides that of
  starting, compiling and scoring. Once a run is done, what it took instead
  corrects the others; those that were there cost nothing.
  """

  def __init__(
    self, seconds: Sequence[float], besides: float | None = None
  ) -> None:
    besides = _BESIDES if besides is None else besides
    self._left = [value + besides for value in seconds]
    self._count = len(seconds)
    self._expected = self._taken = 0.0
    self._began: float | None = None

  def say(self, text: str) -> None:
    """Prints where a run is, which is at work from now on."""
    if self._began is None:
      self._began = time.monotonic()
    place = self._count - len(self._left) + 1
    print(f'[{place}/{self._count}, {self.left()}] {text}', flush=True)

  def done(self, text: str) -> None:
    """Prints the result of a run."""
    expected = self._left.pop(0)
    if self._began is not None:
      self._expected += expected
      self._taken += time.monotonic() - self._began
      self._began = None
    place = self._count - len(self._left)
    print(f'[{place}/{self._count}, {self.left()}] {text}', flush=True)

  def left(self) -> str:
    """The time that is left, in words."""
    pace = self._taken / self._expected if self._expected else 1.0
    return f'about {pace * sum(self._left) / 60:.0f} min left'


def report(records: Sequence[dict[str, Any]]) -> str:
  """Both tables, with what they mean and where they were measured.

  records: one of each run; see bench.budgets.
  """
  groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
  for record in records:
    key = record['number'], record['model']
    groups.setdefault(key, []).append(record)
  rows = [_scores(groups[key]) for key in sorted(groups, key=lambda k: k[0])]
  robust = [
    _robustness([r for r in runs if 'spelling/exact' in r])
    for runs in groups.values()
    if any('spelling/exact' in r for r in runs)
  ]
  text = (
    f'{platform.machine()}, {os.cpu_count()} CPUs,'
    f' {jax.devices()[0].device_kind}; Python {platform.python_version()}, jax'
    f' {jax.__version__}.\n\n'
    'Bits per byte of the test split at equal training FLOPs: mean +- standard'
    ' error over\nseeds, and the standard error over documents of one run.'
    ' Speeds are medians.\n\n'
    f'{markdown(rows)}\n'
  )
  if robust:
    text += (
      'Robustness of the largest budget, mean over seeds. Noise: bits per'
      ' *clean* byte of the\nnoisy text over that of the clean text, +- over'
      ' documents (in brackets: per noisy byte).\nSpelling: right answers'
      ' preferred to wrong ones (chance 50%) and given exactly, +- over\n'
      'questions.\n\n'
      f'{markdown(robust)}\n'
    )
  return text


def _scores(runs: list[dict[str, Any]]) -> dict[str, str]:
  """The row of one model at one budget."""
  first = runs[0]
  bits = [run['bits_per_byte'] for run in runs]
  return {
    'training FLOPs': f'{first["budget"]:.2e}',
    'model': _described(first),
    'seeds': str(len(runs)),
    'bits per byte': f'{statistics.mean(bits):.4f}{_spread(bits)}',
    'over documents': _mean_spread(runs, 'bits_per_byte_stderr').strip(),
    'FLOPs/byte': f'{first["flops_per_byte"]:.3g}',
    'steps': str(first['steps']),
    'MB read': f'{first["bytes_read"] / 1e6:.2f}',
    'training kB/s': f'{_median(runs, "training_bytes_per_second") / 1e3:.1f}',
    'decoding bytes/s': f'{_median(runs, "decode_bytes_per_second"):.0f}',
  }


def _robustness(runs: list[dict[str, Any]]) -> dict[str, str]:
  """The row of one model: every noise, then every task."""
  row = {'model': runs[0]['model']}
  for key in runs[0]:
    head, _, quantity = key.rpartition('/')
    name = head.rpartition('/')[2]
    if head.startswith('noise/') and quantity == 'total_ratio':
      per_byte = _mean(runs, f'{head}/ratio')
      row[name] = (
        f'{_mean(runs, key):.3f}{_mean_spread(runs, f"{key}_stderr")}'
        f' ({per_byte:.3f})'
      )
  for key in runs[0]:
    head, _, quantity = key.rpartition('/')
    if head.startswith('spelling') and quantity == 'preferred':
      name = head.rpartition('/')[2] if '/' in head else 'all tasks'
      row[name] = (
        f'{_mean(runs, key):.0%}{_mean_spread(runs, f"{key}_stderr", "%")},'
        f' {_mean(runs, f"{head}/exact"):.0%}'
      )
  return row


def _described(run: dict[str, Any]) -> str:
  """The name of a model, and the bytes of its patches or tokens."""
  if run['patch_bytes'] is not None:
    return f'{run["model"]} ({run["patch_bytes"]:.2f} bytes/patch)'
  if run['bytes_per_id'] != 1:
    return f'{run["model"]} ({run["bytes_per_id"]:.2f} bytes/token)'
  return run['model']


def _mean(runs: list[dict[str, Any]], key: str) -> float:
  return statistics.mean(run[key] for run in runs)


def _median(runs: list[dict[str, Any]], key: str) -> float:
  return statistics.median(run[key] for run in runs)


def _spread(values: Sequence[float]) -> str:
  """The standard error of a mean; nothing of a single value."""
  if len(values) < 2:
    return ''
  return f' +- {statistics.stdev(values) / len(values) ** 0.5:.4f}'


def _mean_spread(runs: list[dict[str, Any]], key: str, unit: str = '') -> str:
  """The mean of the runs' own standard errors; nothing where one has none."""
  values = [run[key] for run in runs]
  if None in values:
    return ''
  value = statistics.mean(values)
  return f' +- {value:.0%}' if unit == '%' else f' +- {value:.3f}'


def markdown(rows: Sequence[dict[str, object]]) -> str:
  """A table; the keys of the first row are its head."""
  lines = [list(rows[0]), ['---'] * len(rows[0]), *(r.values() for r in rows)]
  return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)
