"""Checks that a config's learning rate means the same at other widths.

python structure.py --config=configs/btt.py --plot=coordinates.png
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from configs import base
from configs import command
from configs import coordinates

_CONFIG = flags.DEFINE_string('config', None, 'Experiment file.')
_SET = flags.DEFINE_multi_string('set', [], 'Field to change: path=value.')
_FACTORS = flags.DEFINE_list(
  'factors', ['1', '4', '16', '64'], 'What all widths are multiplied by.'
)
_RULES = flags.DEFINE_list(
  'rules', ['transfer', 'width'], f'Of {", ".join(coordinates.RULES)}.'
)
_STEPS = flags.DEFINE_integer('steps', 10, 'Train steps.', lower_bound=1)
_PLOT = flags.DEFINE_string('plot', None, 'PNG or SVG file to write.')

# Where the change at the widest model, over that at the narrowest, may lie.
_LEAST, _MOST = 0.8, 1.6


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('structure.py'):
    show()


def show() -> None:
  """Reads the flags, trains at every width, prints the table and plots it."""
  if not _CONFIG.value:
    known = ', '.join(base.experiments())
    raise ValueError(f'--config is missing; give an experiment, as {known}.')
  try:
    factors = [float(text) for text in _FACTORS.value]
  except ValueError:
    factors = []
  if not factors or min(factors) <= 0:
    raise ValueError(
      f'--factors={",".join(_FACTORS.value)} must be positive numbers, as 1,4.'
    )
  config = base.override(base.load(_CONFIG.value), _SET.value)
  # All of them before the first is trained, for their errors.
  configs = {
    rule: [coordinates.at_width(config, factor, rule) for factor in factors]
    for rule in _RULES.value
  }
  batches = coordinates.read_batches(config, _STEPS.value)
  found = {}
  for rule, wider in configs.items():
    found[rule] = [coordinates.measure(one, batches) for one in wider]
    print('\n'.join(table(rule, found[rule])), flush=True)
  if _PLOT.value:
    plot(found, _PLOT.value)
    print(f'plot: {_PLOT.value}')


def table(rule: str, points: list[coordinates.Point]) -> list[str]:
  """Changes per step, a line for each activation, and the verdict."""
  widths = ''.join(f'{point.width:>10}' for point in points)
  lines = [f'{rule:<24}{widths}  ratio']
  for name in points[0].changes:
    changes = [point.changes[name] for point in points]
    numbers = ''.join(f'{change:>10.4f}' for change in changes)
    lines.append(f'{name:<24}{numbers}{changes[-1] / changes[0]:>7.2f}')
  losses = ''.join(f'{point.loss:>10.3f}' for point in points)
  ratio = points[-1].changes['final'] / points[0].changes['final']
  within = 'within' if _LEAST <= ratio <= _MOST else 'not within'
  return [
    *lines,
    f'{"loss":<24}{losses}',
    f'the last features move {ratio:.2f} times as far at width'
    f' {points[-1].width} as at {points[0].width}, {within} {_LEAST} to'
    f' {_MOST}',
  ]


def plot(found: dict[str, list[coordinates.Point]], file: str) -> None:
  """Change of the last features per step against width, a line per rule."""
  try:
    import matplotlib as mpl
  except ImportError:
    raise ValueError(
      '--plot needs matplotlib; pip install -e ".[plot]", or leave it out.'
    ) from None
  mpl.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(5, 4), layout='constrained')
  for rule, points in found.items():
    changes = [point.changes['final'] for point in points]
    axes.loglog([p.width for p in points], changes, marker='o', label=rule)
  axes.set(xlabel='width', ylabel='change of the last features per step')
  axes.legend()
  pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(file)
  pyplot.close(figure)


if __name__ == '__main__':
  command.run(main)
