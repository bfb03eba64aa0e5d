"""Structured layers of a config: what they cost, and whether its rate holds.

  python structure.py --config=configs/btt.py --plot=coordinates.svg
  python structure.py --config=configs/btt.py --sweep=1e-3,3e-3,1e-2 \
    --workdir=runs/rates
  python structure.py --config=configs/btt.py --layers
  python structure.py --config=configs/btt.py --search --macs=5000
  python structure.py --config=configs/btt.py --convert=runs/dense \
    --workdir=runs/converted

Without more flags it compares the changes of activations at several widths. A
sweep or conversion that was stopped goes on when its command is given again.
"""

import math
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags

from configs import base
from configs import cluster
from configs import command
from configs import coordinates
from configs import dry_run
from configs import layer_table
from configs import log_plot
from configs import rate_sweep
from configs import restore
from configs import theta_search
from configs import warm_start
from training import estimate
from training import host
from training import manifest

_CONFIG = flags.DEFINE_string('config', None, 'Experiment file.')
_SET = flags.DEFINE_multi_string('set', [], 'Field to change: path=value.')
_FACTORS = flags.DEFINE_list(
  'factors', ['1', '4', '16', '64'], 'What all widths are multiplied by.'
)
_RULES = flags.DEFINE_list(
  'rules', ['transfer', 'width'], f'Of {", ".join(coordinates.RULES)}.'
)
_STEPS = flags.DEFINE_integer('steps', 10, 'Train steps.', lower_bound=1)
_PLOT = flags.DEFINE_string('plot', None, 'SVG file to write.')
_SWEEP = flags.DEFINE_list(
  'sweep', None, 'Learning rates to train with at every width.'
)
_SEEDS = flags.DEFINE_integer(
  'seeds', None, 'Runs of each, averaged: 8, but of a --sweep 1.', lower_bound=1
)
_LAYERS = flags.DEFINE_bool('layers', False, 'Costs of every projection.')
_MEASURE = flags.DEFINE_bool('measure', True, 'Of --layers: time them too.')
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Einsum layers within a budget, for all but the head.'
)
_MACS = flags.DEFINE_float('macs', None, 'Multiply-adds per position, at most.')
_BYTES = flags.DEFINE_float('bytes', None, 'Bytes moved per position, at most.')
_TIME = flags.DEFINE_float(
  'time', None, 'Microseconds of a forward pass on --chip, at most.'
)
_CHIP = flags.DEFINE_string(
  'chip', 'H100', f'Of --time: {", ".join(estimate.CHIPS)}.'
)
_CONVERT = flags.DEFINE_string(
  'convert', None, "Run directory whose projections become the config's."
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run directory to make of it, or folder of a sweep.'
)
_LEAD = flags.DEFINE_float(
  'lead', 0.5, 'Part of the steps in which dense matrices guide, 0 for none.'
)

# Where the change at the widest model, over that at the narrowest, may lie.
_LEAST, _MOST = 0.8, 1.6
# Below it a wide model hardly moves any more, by a rule that does not transfer.
_LOST = 0.2


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('structure.py'):
    if not _CONFIG.value:
      known = ', '.join(base.experiments())
      raise ValueError(f'--config is missing; give an experiment, as {known}.')
    tasks = {
      '--sweep': sweep if _SWEEP.value is not None else None,
      '--layers': layers if _LAYERS.value else None,
      '--search': search if _SEARCH.value else None,
      '--convert': convert if _CONVERT.value is not None else None,
    }
    chosen = [name for name, task in tasks.items() if task is not None]
    if len(chosen) > 1:
      raise ValueError(f'{" and ".join(chosen)} do different things; give one.')
    config = base.load(_CONFIG.value)
    # The fields that a conversion changes are those of the run.
    if chosen != ['--convert']:
      config = base.override(config, _SET.value)
      config = dry_run.with_columns(config)
    task = tasks[chosen[0]] if chosen else check
    task(config)


def layers(config: base.Config) -> None:
  """Prints what every projection costs."""
  found = layer_table.rows(config, measured=_MEASURE.value)
  print('\n'.join(layer_table.table(config, found)))


def search(config: base.Config) -> None:
  """Prints the best einsum layers within the budget."""
  budget = theta_search.Budget(
    _MACS.value, _BYTES.value, _TIME.value, _CHIP.value
  )
  print('\n'.join(theta_search.table(theta_search.search(config, budget))))


def sweep(config: base.Config) -> None:
  """Prints losses for every learning rate and width."""
  rates = tuple(sorted(set(_numbers('sweep', _SWEEP.value, '1e-3,3e-3'))))
  factors = _numbers('factors', _FACTORS.value, '1,4')
  found = rate_sweep.RateSweep(
    config,
    rates,
    tuple(factors),
    tuple(_RULES.value),
    steps=_STEPS.value,
    seeds=_SEEDS.value or 1,
  ).run(_workdir('what it has found, from which it goes on'))
  print('\n'.join(rate_sweep.table(rates, found)))


def convert(config: base.Config) -> None:
  """Makes a structured run of a dense one, and says what that costs."""
  workdir = _workdir('the new run')
  run = restore.restore(_CONVERT.value)
  wanted = warm_start.target(run.config, config, _SET.value)
  made = warm_start.convert(run, wanted, _LEAD.value, workdir)
  print('\n'.join(warm_start.table(made.stages)))
  if made.step < wanted.steps:
    print(
      f'stopped at step {made.step} of {wanted.steps}; the conversion goes on'
      ' when the same command runs again'
    )
    sys.exit(cluster.TRY_AGAIN)
  print(f'{_WORKDIR.value} holds the structured model')


def check(config: base.Config) -> None:
  """Trains at every width, prints the table of changes and plots it."""
  factors = _numbers('factors', _FACTORS.value, '1,4')
  # All of them before the first is trained, for their errors.
  configs = {
    rule: [coordinates.at_width(config, factor, rule) for factor in factors]
    for rule in _RULES.value
  }
  found = {}
  for rule, wider in configs.items():
    found[rule] = [
      coordinates.measure(one, _STEPS.value, _SEEDS.value or 8) for one in wider
    ]
    print('\n'.join(table(rule, found[rule])), flush=True)
  if _PLOT.value:
    plot(found, _PLOT.value)
    print(f'plot: {_PLOT.value}')


def _workdir(use: str) -> pathlib.Path:
  if not _WORKDIR.value:
    raise ValueError(f'--workdir is missing; name a folder for {use}.')
  return pathlib.Path(_WORKDIR.value).absolute()


def _numbers(flag: str, texts: list[str], example: str) -> list[float]:
  """Positive numbers of a list flag."""
  try:
    numbers = [float(text) for text in texts]
  except ValueError:
    numbers = []
  if not numbers or not min(numbers) > 0:
    raise ValueError(
      f'--{flag}={",".join(texts)} must be positive numbers, as {example}.'
    )
  return numbers


def table(rule: str, points: list[coordinates.Point]) -> list[str]:
  """Changes per step, a line for each activation, and the verdicts."""
  first, last = points[0], points[-1]
  widths = ''.join(f'{point.width:>10}' for point in points)
  lines = [f'{rule:<24}{widths}  ratio']
  rows = [(name, [p.changes[name] for p in points]) for name in first.changes]
  rows += [(name, [p.layers[name] for p in points]) for name in first.layers]
  ratios = {}
  for name, changes in rows:
    if not changes[0]:
      raise ValueError(
        f'--steps={_STEPS.value}: {name} does not move at width {first.width},'
        ' as behind a layer of zeros; give more steps.'
      )
    ratios[name] = changes[-1] / changes[0]
    numbers = ''.join(f'{change:>10.4f}' for change in changes)
    error = ''
    if first.errors:
      spread = math.hypot(first.errors[name], last.errors[name])
      error = f' +- {ratios[name] * spread:.2f}'
    lines.append(f'{name:<24}{numbers}{ratios[name]:>7.2f}{error}')
  losses = ''.join(f'{point.loss:>10.3f}' for point in points)
  name = watched(first)
  lines += [
    f'{"loss":<24}{losses}',
    f'{name} moves {ratios[name]:.2f} times as far at width {last.width} as at'
    f' {first.width}, {verdict(rule, ratios[name], ratios[name])}',
  ]
  if first.layers:
    own = sorted(ratios[name] for name in first.layers)
    mean = math.exp(sum(map(math.log, own)) / len(own))
    lines.append(
      f'structured layers move {own[0]:.2f} to {own[-1]:.2f} times as far,'
      f' {mean:.2f} in their geometric mean, {verdict(rule, own[0], own[-1])}'
    )
  return lines


def verdict(rule: str, least: float, most: float) -> str:
  """Whether all changes keep their size; of other rules, if all lose it."""
  within = least >= _LEAST and most <= _MOST
  found = f'{"" if within else "not "}within {_LEAST} to {_MOST}'
  if rule == 'transfer':
    return found
  return f'{found}, {"" if most < _LOST else "not "}below {_LOST}'


def watched(point: coordinates.Point) -> str:
  """The published activation: what the last block leaves, if it is sown."""
  last = re.compile(r'(^|decoder/)blocks?(_\d+)?/output$')
  blocks = filter(last.search, point.changes)
  return max(blocks, key=lambda name: (len(name), name), default='logits')


def plot(found: dict[str, list[coordinates.Point]], file: str) -> None:
  """Change of what is watched per step against width, a line per rule."""
  name = watched(next(iter(found.values()))[0])
  lines = {
    rule: [(point.width, point.changes[name]) for point in points]
    for rule, points in found.items()
  }
  panel = log_plot.Panel(name, 'width', 'change per step', lines)
  path = pathlib.Path(file)
  path.parent.mkdir(parents=True, exist_ok=True)
  manifest.write_file(path, log_plot.draw([panel]))


if __name__ == '__main__':
  command.run(main)
