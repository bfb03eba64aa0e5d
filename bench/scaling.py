"""How loss falls with training FLOPs for every structure of linear layers.

  python -m bench.scaling --out=runs/scaling

Each problem (bench.problems) has sizes, every one of four times the FLOPs of
the one before: twice the FLOPs per example and twice the examples. A structure
is as wide as these FLOPs let it be, so that at a size all spend the same on as
much data. No learning rate is searched for. Trained points are kept, so the
same command goes on after a stop, and more seeds or sizes add to it. About an
hour on two cores in the default form.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from bench import exponents
from bench import problems
from bench import tables
from configs import command
from configs import log_plot
from training import host
from training import manifest

_PROBLEMS = {'text': problems.Text, 'teacher': problems.Teacher}
_GROWTH = 4
# Seconds of a run besides its FLOPs: compiling, drawing parameters, scoring.
_BESIDES = 8


class Cell(NamedTuple):
  """A run but for its seed; flops are those that it spends.

  size: 0 is the largest. budget: FLOPs that it should spend, from which a whole
  number of steps is off.
  """

  problem: str
  structure: str
  size: int
  budget: float
  width: int
  steps: int
  flops: float

  def name(self, seed: int) -> str:
    return f'{self.problem}-{self.structure}-{self.size}-seed{seed}'


class Flags(NamedTuple):
  """The flags of the command."""

  out: flags.FlagHolder[str | None]
  minutes: flags.FlagHolder[float]
  problems: flags.FlagHolder[list[str]]
  structures: flags.FlagHolder[list[str]]
  sizes: flags.FlagHolder[int]
  seeds: flags.FlagHolder[int]
  quick: flags.FlagHolder[bool]


def define_flags(own: flags.FlagValues = flags.FLAGS) -> Flags:
  """To be called before flags are parsed."""
  return Flags(
    flags.DEFINE_string(
      'out', None, 'Folder for points, table and plot.', flag_values=own
    ),
    flags.DEFINE_float(
      'minutes',
      60,
      'Of the default form on two cores; FLOPs are in proportion.',
      lower_bound=1e-6,
      flag_values=own,
    ),
    flags.DEFINE_list(
      'problems', list(_PROBLEMS), 'What to learn.', flag_values=own
    ),
    flags.DEFINE_list(
      'structures',
      list(problems.STRUCTURES),
      'Of the linear layers.',
      flag_values=own,
    ),
    flags.DEFINE_integer(
      'sizes', 3, 'Down from the largest.', lower_bound=1, flag_values=own
    ),
    flags.DEFINE_integer(
      'seeds', 2, 'Runs of each.', lower_bound=1, flag_values=own
    ),
    flags.DEFINE_bool(
      'quick',
      False,
      'A thousandth of the FLOPs; two structures and sizes unless given.',
      flag_values=own,
    ),
  )


def main(given: Flags) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('bench.scaling'):
    if not given.out.value:
      raise ValueError('--out is missing; name a folder for the points.')
    _check('problems', given.problems.value, _PROBLEMS)
    _check('structures', given.structures.value, problems.STRUCTURES)
    quick = given.quick.value

    def value(flag: flags.FlagHolder, small: Any) -> Any:
      return small if quick and not flag.present else flag.value

    compare(
      pathlib.Path(given.out.value).expanduser(),
      [_PROBLEMS[name]() for name in given.problems.value],
      value(given.structures, ['dense', 'btt']),
      minutes=given.minutes.value / (1000 if quick else 1),
      sizes=value(given.sizes, 2),
      seeds=value(given.seeds, 1),
    )


def compare(
  out: pathlib.Path,
  chosen: Sequence[problems.Problem],
  structures: Sequence[str],
  *,
  minutes: float,
  sizes: int,
  seeds: int,
) -> str:
  """Trains the points that `out` lacks; the report, which is also written."""
  out.mkdir(parents=True, exist_ok=True)
  by_name = {problem.name: problem for problem in chosen}
  # Rising sizes, so that a command that is stopped has compared something.
  cells = [
    plan(problem, structure, size, minutes)
    for size in reversed(range(sizes))
    for problem in chosen
    for structure in structures
  ]
  clock = tables.Clock(
    [
      cell.flops / by_name[cell.problem].speed
      for cell in cells
      for _ in range(seeds)
    ],
    besides=_BESIDES,
  )
  data = {
    name: problem.prepare(out, _examples(problem, minutes))
    for name, problem in by_name.items()
  }
  records: list[dict[str, Any]] = []
  for cell in cells:
    problem, trial = by_name[cell.problem], None
    for seed in range(seeds):
      file = out / f'{cell.name(seed)}.json'
      stored = _read(file, cell)
      if stored is None:
        clock.say(f'{file.stem}: width {cell.width}, {cell.steps} steps')
        trial = trial or problem.trial(
          data[cell.problem], cell.structure, cell.width, cell.steps
        )
        stored = cell._asdict() | {'seed': seed, 'loss': trial(seed)}
        manifest.write_file(file, json.dumps(stored, indent=2) + '\n')
      records.append(stored)
      clock.done(f'{file.stem}: {stored["loss"]:.4g} {problem.unit}')
    if trial is not None:
      jax.clear_caches()  # What was compiled for this width is of no more use.
    text = _write(out, chosen, records)
  print(f'\n{text}\nwritten: {out}/table.md, results.json, scaling.svg')
  return text


def _write(
  out: pathlib.Path,
  chosen: Sequence[problems.Problem],
  records: Sequence[dict[str, Any]],
) -> str:
  """What is known so far, for a command that may be stopped: the report."""
  text = report(chosen, records)
  manifest.write_file(out / 'table.md', text)
  manifest.write_file(out / 'results.json', json.dumps(records, indent=2))
  manifest.write_file(out / 'scaling.svg', picture(chosen, records))
  return text


def plan(
  problem: problems.Problem, structure: str, size: int, minutes: float
) -> Cell:
  """The width whose FLOPs per example come nearest, and as many steps."""
  budget = problem.largest * minutes / 60 / _GROWTH**size
  wanted = math.sqrt(budget / problem.rate)
  width = min(
    problem.widths,
    key=lambda width: abs(math.log(problem.cost(structure, width) / wanted)),
  )
  step = problem.cost(structure, width) * problem.batch
  steps = max(round(budget / step), 2)
  return Cell(
    problem.name, structure, size, budget, width, steps, steps * step
  )


def _examples(problem: problems.Problem, minutes: float) -> int:
  """As many as any structure needs, so that all commands have the same."""
  return problem.batch * max(
    plan(problem, structure, 0, minutes).steps
    for structure in problems.STRUCTURES
  )


def report(
  chosen: Sequence[problems.Problem], records: Sequence[dict[str, Any]]
) -> str:
  """A table and sentences for every problem."""
  parts = []
  for problem in chosen:
    own = [r for r in records if r['problem'] == problem.name]
    if not own:
      continue
    lines = exponents.fits(own)
    claims = [c for c in exponents.CLAIMS if c.problem == problem.name]
    said = exponents.sentences(own, lines, claims)
    parts += [
      f'{problem.name}: {problem.unit}, mean +- standard error over seeds, at'
      ' equal training FLOPs\nand examples. The exponent a of loss = c FLOPs^-a'
      ' with its 95% interval; no loss that\nwould remain for ever is taken'
      ' off.\n',
      tables.markdown(exponents.table(own, lines)),
      *(f'- {sentence}' for sentence in said),
      '',
    ]
  return '\n'.join(parts)


def picture(
  chosen: Sequence[problems.Problem], records: Sequence[dict[str, Any]]
) -> str:
  """Mean loss over seeds against FLOPs, a panel per problem."""
  panels = []
  for problem in chosen:
    sums: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for r in records:
      if r['problem'] == problem.name:
        sizes = sums.setdefault(r['structure'], {})
        sizes.setdefault(r['size'], []).append((r['flops'], r['loss']))
    points = {
      name: [
        tuple(sum(v) / len(v) for v in zip(*runs, strict=True))
        for runs in by_size.values()
      ]
      for name, by_size in sums.items()
    }
    if points:
      panels.append(
        log_plot.Panel(problem.name, 'training FLOPs', problem.unit, points)
      )
  return log_plot.draw(panels)


def _read(file: pathlib.Path, cell: Cell) -> dict[str, Any] | None:
  """A stored point; ValueError if it is one of other sizes."""
  if not file.exists():
    return None
  stored = json.loads(file.read_text('utf-8'))
  for name, value in cell._asdict().items():
    if stored.get(name) != value:
      raise ValueError(
        f'{file} was trained with {name}={stored.get(name)}, not {value}; give'
        ' the --minutes that it had, or another --out.'
      )
  return stored


def _check(name: str, values: Sequence[str], known: Sequence[str]) -> None:
  wrong = [value for value in values if value not in known]
  if wrong or not values:
    raise ValueError(
      f'--{name}={",".join(values)} must be some of {", ".join(known)}.'
    )


if __name__ == '__main__':
  _given = define_flags()
  command.run(lambda _: main(_given))
