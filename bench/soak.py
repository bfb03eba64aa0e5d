"""Kills training runs at random instants and checks that nothing is lost.

  python -m bench.soak --kills=200
  python -m bench.soak --minutes=20 --seed=1
  python -m bench.soak --kills=30 --terms=.5

A tiny run is trained once without disturbance. Then the same run is begun in
an empty folder, killed by SIGKILL and started again with the same command, a
few times, until it ends; and so on with new folders. Every start must resume
from the newest checkpoint there is, none may vanish or be found damaged, and
the final parameters and metrics must be those of the undisturbed run, bit for
bit. With --terms, a share of the signals is SIGTERM, after which a run that is
training must save and end with its exit code. Prints Markdown; exits with an
error if anything is not so.
"""

import math
import os
import pathlib
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple
from unittest import mock

from absl import flags

from bench import lives
from configs import command
from training import metrics

# How often a kill is planned for a stage of a life.
_WEIGHTS = {'starting': 3, 'compiling': 4, 'training': 9, 'finishing': 4}
_KILLS_OF_A_RUN = (4, 12)
_SHARES = (7, 1)  # Of the lives, by lives.KINDS.
_PAUSE = 0.1  # Seconds that a kill waits at most after a step of training.

# Compiling takes most of a tiny run's life; less thorough, it takes half. JAX's
# cache of programs would save it, but is written in place: a kill may cut it.
_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
  'XLA_FLAGS': (
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
    ' --xla_cpu_parallel_codegen_split_count=1'
  ),
}

_EXPERIMENT = """
from configs import base
from data import sources
from data import text
from evals import bits_per_byte
from models import lm
from samplers import chain
from training import objectives
from training import optimizer
from training import sharding


def get_config():
  return base.Config(
    model=lm.ByteLM(width=16, layers=1, heads=2, key_value_heads=1, hidden=16),
    data=text.Text(
      source=sources.TextFiles({pattern!r}),
      validation_fraction=0.2,
      test_fraction=0.2,
    ),
    optimizer=optimizer.AdamW(learning_rate=1e-2, warmup_steps=2),
    objective=objectives.NextToken(),
    sampler=chain.Chain(),
    evals=(bits_per_byte.BitsPerByte(window=32, stride=16, batch_size=4),),
    mesh=sharding.MeshShape(),
    shardings=sharding.TRANSFORMER,
    row_length=16,
    batch_size=8,
    steps={steps},
    log_every=1,
    eval_every=20,
    eval_bytes=1000,
    checkpoint_every=6,
  )
"""


class Outcome(NamedTuple):
  """What a run left: its parameters' digest, its metrics, its files."""

  digest: str
  lines: tuple[str, ...]
  files: tuple[str, ...]


class Budget(NamedTuple):
  """Kills in all, and the time (monotonic) after which there are none."""

  kills: float
  until: float

  def is_spent(self, kills: int) -> bool:
    return kills >= self.kills or time.monotonic() >= self.until


class Chance(NamedTuple):
  """What is drawn, and how often: shares of lives.KINDS, and of SIGTERM."""

  rng: random.Random
  shares: tuple[int, int]
  terms: float


class Report(NamedTuple):
  """All lives in order, runs that were begun and that ended right."""

  lives: list[lives.Life]
  runs: int
  equal: int
  complaints: list[str]
  minutes: float


def main(_: Sequence[str]) -> None:
  command.quiet()
  folder = pathlib.Path(tempfile.mkdtemp(prefix='soak-'))
  with command.explained('bench.soak'):
    report = soak(
      folder,
      kills=_KILLS.value,
      minutes=_MINUTES.value,
      seed=_SEED.value,
      terms=_TERMS.value,
    )
  print(table(report))
  if report.complaints:
    print('\n'.join(report.complaints))
    raise SystemExit(f'bench.soak: something was lost; {folder} shows it.')
  shutil.rmtree(folder)


def soak(
  folder: pathlib.Path,
  *,
  kills: int,
  minutes: float | None = None,
  seed: int = 0,
  steps: int = 60,
  shares: tuple[int, int] = _SHARES,
  terms: float = 0.0,
) -> Report:
  """Kills runs in `folder` until so many kills, or the minutes, are through.

  The runs stay there. It stops at the first one that something is wrong with.

  shares: of lives.KINDS, how many lives are of each. terms: of the signals,
    the share that is SIGTERM.
  """
  budget = Budget(kills, math.inf)
  if minutes is not None:
    budget = Budget(math.inf, time.monotonic() + 60 * minutes)
  with mock.patch.dict(os.environ, _ENVIRONMENT):
    chance = Chance(random.Random(seed), shares, terms)
    return _soak(folder, budget, chance, steps)


def _soak(
  folder: pathlib.Path, budget: Budget, chance: Chance, steps: int
) -> Report:
  began = time.monotonic()
  experiment = _write_experiment(folder, steps)
  # Undisturbed, in both ways: nothing is planned for them.
  kinds = [k for k, n in zip(lives.KINDS, chance.shares, strict=True) if n]
  whole = [_begin(folder, experiment, kind, steps) for kind in kinds]
  found = [
    lives.live(run, kind, 0, None)
    for run, kind in zip(whole, kinds, strict=True)
  ]
  complaints = [words for life in found for words in life.complaints()]
  if complaints:
    return Report([], 0, 0, complaints, 0)
  reference, *others = map(_outcome, whole)
  for other in others:
    complaints += _differences('the run that was executed', other, reference)
  spans = {
    (life.kind, stage): seconds
    for life in found
    for stage, seconds in life.seconds.items()
  }
  found, runs, equal = [], 0, 0
  while not complaints and not budget.is_spent(_count(found)):
    run = _begin(folder, experiment, f'run-{runs}', steps)
    runs += 1
    left = budget._replace(kills=budget.kills - _count(found))
    some = _train_through(run, chance, spans, left)
    found += some
    complaints += [words for life in some for words in life.complaints()]
    if not complaints:
      complaints += _differences(str(run.workdir), _outcome(run), reference)
      equal += not complaints
  minutes = (time.monotonic() - began) / 60
  return Report(found, runs, equal, complaints, minutes)


def table(report: Report) -> str:
  """Kills by what they met, and what became of the runs."""
  kills = [life for life in report.lives if life.killed]
  lines = [
    '| ended while | ends | executed | by SIGTERM | which saved |',
    '|---|---|---|---|---|',
  ]
  for phase in (*lives.PHASES, 'all'):
    here = [life for life in kills if phase in (life.phase, 'all')]
    executed = sum(life.kind == 'executed' for life in here)
    terms = sum(life.sent == signal.SIGTERM for life in here)
    saved = sum(life.stopped for life in here)
    lines.append(f'| {phase} | {len(here)} | {executed} | {terms} | {saved} |')
  restarts = [life for life in report.lives if life.floor is not None]
  resumed = [life.view.resumed for life in restarts if life.view.resumed]
  steps = 'none'
  if resumed:
    low, high = min(resumed), max(resumed)
    steps = f'{low} to {high}, median {statistics.median(resumed):.0f}'
  lost = sum(life.lost for life in report.lives)
  return '\n'.join(
    [
      *lines,
      '',
      f'- {report.runs} runs in {report.minutes:.1f} minutes;'
      f' {report.equal} of them ended with the parameters and the metrics of'
      ' the undisturbed run, bit for bit.',
      f'- {len(restarts)} starts found a checkpoint, {len(resumed)} of them'
      f' lived until they had resumed from the newest (step {steps}).',
      f'- Checkpoints lost: {lost}.',
    ]
  )


def _count(found: list[lives.Life]) -> int:
  return sum(life.killed for life in found)


def _train_through(
  run: lives.Run,
  chance: Chance,
  spans: dict[tuple[str, str], float],
  budget: Budget,
) -> list[lives.Life]:
  """Lives of a run until it has ended, a few of them killed.

  spans: seconds of every stage of either kind of life, kept up to date.
  """
  found: list[lives.Life] = []
  kills = chance.rng.randint(*_KILLS_OF_A_RUN)
  while True:
    kind = chance.rng.choices(lives.KINDS, chance.shares)[0]
    plan = None
    if _count(found) < kills and not budget.is_spent(_count(found)):
      plan = _draw(run, kind, chance.rng, spans)
      if chance.terms and chance.rng.random() < chance.terms:
        plan = plan._replace(sent=signal.SIGTERM)
    life = lives.live(run, kind, len(found), plan)
    found.append(life)
    spans |= {(kind, stage): s for stage, s in life.seconds.items()}
    if not life.killed or life.complaints():
      return found


def _draw(
  run: lives.Run,
  kind: str,
  rng: random.Random,
  spans: dict[tuple[str, str], float],
) -> lives.Plan:
  """A stage by its weight, and an instant of it uniformly."""
  stage = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
  instant, pause = rng.random(), rng.random()
  done = lives.newest(run) or 0
  if stage == 'training' and done < run.steps:
    step = done + 1 + int(instant * (run.steps - done))
    return lives.Plan(stage, step, _PAUSE * pause)
  if stage == 'training':
    stage = 'compiling'  # There is no step left to be killed in.
  return lives.Plan(stage, 0, instant * spans.get((kind, stage), 1.0))


def _begin(
  folder: pathlib.Path, experiment: pathlib.Path, name: str, steps: int
) -> lives.Run:
  """A new run, which prepares its data itself."""
  logs = folder / name / 'logs'
  logs.mkdir(parents=True)
  workdir = folder / name / 'run'
  arguments = (
    f'--config={experiment}',
    f'--workdir={workdir}',
    f'--set=data.directory={folder / name / "data"}',
    f'--stop_code={lives.STOPPED}',
  )
  return lives.Run(arguments, workdir, logs, steps)


def _write_experiment(folder: pathlib.Path, steps: int) -> pathlib.Path:
  """Ten texts of four words each and a config that trains on them."""
  texts = folder / 'texts'
  texts.mkdir(parents=True)
  rng = random.Random(0)
  for number in range(10):
    words = rng.choices(['alpha', 'beta', 'gamma', 'delta'], k=40 + 10 * number)
    (texts / f'{number}.txt').write_text(' '.join(words), 'utf-8')
  experiment = folder / 'experiment.py'
  experiment.write_text(
    _EXPERIMENT.format(pattern=f'{texts}/*.txt', steps=steps), 'utf-8'
  )
  return experiment


def _outcome(run: lives.Run) -> Outcome:
  digest = lives.digest(run.workdir, run.logs / 'digest')
  lines = tuple(
    str({k: v for k, v in line.items() if not k.startswith('time/')})
    for line in metrics.read(run.workdir)
  )
  files = {path.name for path in run.workdir.iterdir()}
  names = {path.name for path in (run.workdir / 'checkpoints').iterdir()}
  # One before the last may be of where SIGTERM came.
  numbers = {name for name in names if name.isdecimal()}
  files |= (names - numbers) | {f'{lives.newest(run)}, 1 of {len(numbers)}'}
  return Outcome(digest, lines, tuple(sorted(files)))


def _differences(name: str, found: Outcome, wanted: Outcome) -> list[str]:
  fields = zip(Outcome._fields, found, wanted, strict=True)
  return [
    f'{name}: {field} are not those of the undisturbed run'
    for field, mine, other in fields
    if mine != other
  ]


def define_flags() -> tuple[flags.FlagHolder, ...]:
  """What a soak takes; to be called before flags are parsed."""
  return (
    flags.DEFINE_integer('kills', 200, 'Kills in all.', lower_bound=1),
    flags.DEFINE_float(
      'minutes', None, 'Instead: until they are over.', lower_bound=0
    ),
    flags.DEFINE_integer('seed', 0, 'Draws the instants.'),
    flags.DEFINE_float(
      'terms', 0.0, 'Share of SIGTERM among the signals.',
      lower_bound=0, upper_bound=1,
    ),
  )  # fmt: skip


if __name__ == '__main__':
  _KILLS, _MINUTES, _SEED, _TERMS = define_flags()
  command.run(main)
