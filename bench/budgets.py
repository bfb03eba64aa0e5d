"""Byte, patch and token models at equal training FLOPs, as a Markdown table.

  python -m bench.budgets --out=runs/budgets

Every budget is a run of its own with a whole schedule, so 18 runs in the
default form: within an hour on two quiet cores. Finished runs are kept, so the
same command goes on after a stop, and more seeds or budgets add to it.
"""

import functools
import hashlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bench import scoring
from bench import tables
from configs import base
from configs import command
from configs import fitting
from configs import restore
from data import packing
from data import text
from models import flops
from models import forward
from models import patched
from models import patching
from training import host
from training import manifest

CONFIGS = ('configs/demo.py', 'configs/blt.py', 'configs/bpe.py')
_ROOT = pathlib.Path(__file__).parents[1]
# FLOP/s of training on two cores (AMD EPYC, AVX-512): what turns minutes into
# FLOPs, so that budgets are the same on every machine.
_NOMINAL = 1.3e11
_MEASURED_ROWS = 64
_SCORES = {'scores': scoring.score, 'robust': scoring.robustness}


class Contender(NamedTuple):
  """A config and what a train step of it costs.

  flops_per_byte: of training, for the mean patch or token of the train split,
    whose bytes are patch_bytes and bytes_per_id.
  digest: of the config; what is stored of another one is not used.
  """

  name: str
  path: str
  digest: str
  flops_per_byte: float
  bytes_per_step: float
  bytes_per_id: float
  patch_bytes: float | None

  def steps(self, budget: float) -> int:
    """Train steps that come nearest to a budget of FLOPs."""
    return max(round(budget / (self.flops_per_byte * self.bytes_per_step)), 1)


class Cell(NamedTuple):
  """One run: a contender at a budget (its number, and FLOPs) with a seed."""

  contender: Contender
  number: int
  budget: float
  seed: int

  @property
  def steps(self) -> int:
    return self.contender.steps(self.budget)

  @property
  def name(self) -> str:
    return f'{self.contender.name}-{self.steps}-seed{self.seed}'


class Flags(NamedTuple):
  """The flags of the command."""

  out: flags.FlagHolder[str | None]
  configs: flags.FlagHolder[list[str]]
  minutes: flags.FlagHolder[float]
  budgets: flags.FlagHolder[int]
  seeds: flags.FlagHolder[int]
  quick: flags.FlagHolder[bool]


def define_flags(own: flags.FlagValues = flags.FLAGS) -> Flags:
  """To be called before flags are parsed."""
  return Flags(
    flags.DEFINE_string(
      'out', None, 'Folder for runs and results.', flag_values=own
    ),
    flags.DEFINE_list(
      'configs',
      list(CONFIGS),
      'Experiments to compare; each is named by its file.',
      flag_values=own,
    ),
    flags.DEFINE_float(
      'minutes',
      0.45,
      'Training of the smallest run at the speed of two cores.',
      lower_bound=1e-3,
      flag_values=own,
    ),
    flags.DEFINE_integer(
      'budgets',
      3,
      'Budgets, each twice the one before.',
      lower_bound=1,
      flag_values=own,
    ),
    flags.DEFINE_integer(
      'seeds', 2, 'Runs of each.', lower_bound=1, flag_values=own
    ),
    flags.DEFINE_bool(
      'quick', False, 'Few steps, to see it run.', flag_values=own
    ),
  )


def main(given: Flags) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('bench.budgets'):
    if not given.out.value:
      raise ValueError('--out is missing; name a folder for the runs.')
    quick = given.quick.value
    minutes = given.minutes.value
    compare(
      pathlib.Path(given.out.value).expanduser().resolve(),
      given.configs.value,
      minutes=minutes / 100 if quick else minutes,
      budgets=1 if quick and not given.budgets.present else given.budgets.value,
      seeds=1 if quick and not given.seeds.present else given.seeds.value,
      limits=scoring.QUICK if quick else scoring.Limits(),
    )


def compare(
  out: pathlib.Path,
  paths: Sequence[str],
  *,
  minutes: float,
  budgets: int,
  seeds: int,
  limits: scoring.Limits,
) -> str:
  """Trains and scores what is missing in `out`; the tables, also written."""
  contenders = survey(out, paths)
  smallest = minutes * 60 * _NOMINAL
  # Rising budgets, so that a command that is stopped has compared something.
  cells = [
    Cell(contender, number, smallest * 2**number, seed)
    for number in range(budgets)
    for seed in range(seeds)
    for contender in contenders
  ]
  clock = tables.Clock([cell.budget / _NOMINAL for cell in cells])
  records = []
  for cell in cells:
    workdir = out / cell.name
    # Robustness is asked of the largest budget alone.
    names = ['scores', *['robust'] * (cell.number == budgets - 1)]
    if any(not (workdir / f'{name}.json').exists() for name in names):
      clock.say(f'{cell.name}: training {cell.steps} steps')
      train(cell, workdir)
      clock.say(f'{cell.name}: scoring')
    found = {}
    for name in names:
      found |= _stored(
        workdir / f'{name}.json',
        functools.partial(_SCORES[name], workdir, limits),
      )
    records.append(_record(cell, found))
    clock.done(f'{cell.name}: {found["bits_per_byte"]:.4f} bits per byte')
    result = tables.report(records)
    manifest.write_file(out / 'table.md', result)
    _write_json(out / 'results.json', records)
  print(f'\n{result}\nwritten: {out}/table.md, {out}/results.json')
  return result


def survey(out: pathlib.Path, paths: Sequence[str]) -> list[Contender]:
  """What a step of each config costs, measured once per folder."""
  found = []
  for path in paths:
    config = base.load(path)
    name = pathlib.Path(path).stem
    stored = json.dumps(base.to_json(config), sort_keys=True)
    digest = hashlib.sha256(stored.encode()).hexdigest()
    file = out / f'{name}.json'
    make = functools.partial(measure, name, path, digest, config)
    fields = _stored(file, lambda make=make: make()._asdict())
    if fields['digest'] != digest:
      raise ValueError(
        f'{path} is not the config that {file} was made with; give a new'
        ' --out, or the config as it was.'
      )
    found.append(Contender(**fields | {'path': path}))
  names = [contender.name for contender in found]
  if len(set(names)) < len(names):
    raise ValueError(
      f'--configs={",".join(paths)} names two files alike, and runs are named'
      ' by them; rename one.'
    )
  return found


def measure(
  name: str, path: str, digest: str, config: base.Config
) -> Contender:
  """Prepares the data of a config and counts the FLOPs of its steps."""
  print(f'{name}: preparing data and counting FLOPs', flush=True)
  trained = fitting.with_codec(config, None)
  corpus = trained.data.open('train')
  patch = patch_bytes(config, corpus)
  parts = flops.per_byte(
    config.model, length=config.row_length, patch_bytes=patch
  )
  rate = corpus.bytes_per_id
  return Contender(
    name=name,
    path=path,
    digest=digest,
    flops_per_byte=flops.training(config.model, parts) / rate,
    bytes_per_step=config.batch_size * config.row_length * rate,
    bytes_per_id=rate,
    patch_bytes=patch,
  )


def patch_bytes(config: base.Config, corpus: text.Corpus) -> float | None:
  """Mean bytes of a patch in rows of the train split; None without patches."""
  model = config.model
  if not isinstance(model, patched.Patched):
    return None
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(config.seed), ids_BT)['params']
  for source in config.initial:
    params = source(config, params, corpus)
  rows = packing.Rows(corpus, config.row_length)
  chosen = np.linspace(0, len(rows) - 1, min(len(rows), _MEASURED_ROWS))
  taken = [rows[int(i)] for i in chosen]
  ids_BT, documents_BT = (
    np.stack([row[name] for row in taken]) for name in ('ids', 'documents')
  )
  entropy_BT = None
  if model.entropy is not None:
    entropy_BT = forward.pure(model.entropy)(
      params['entropy'], ids_BT, documents_BT
    )
  closes_BT = model.model.patching.closes(ids_BT, documents_BT, entropy_BT)
  # Counts also the patch that the end of a row leaves open.
  layout = patching.layout(closes_BT, patching.segments(documents_BT))
  return float(np.sum(documents_BT > 0) / np.sum(layout.count_B))


def train(cell: Cell, workdir: pathlib.Path) -> None:
  """Runs train.py in a process of its own; ValueError unless it finishes."""
  every = max(cell.steps // 4, 1)
  settings = {
    'steps': cell.steps,
    'seed': cell.seed,
    'eval_every': cell.steps,
    'eval_bytes': 20_000,
    'checkpoint_every': every,
    'keep': 1,
  }
  log = workdir.with_suffix('.log')
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open('ab') as file:
    code = launch(
      [
        f'--config={pathlib.Path(cell.contender.path).resolve()}',
        f'--workdir={workdir}',
        *(f'--set={name}={value}' for name, value in settings.items()),
      ],
      file,
    )
  step = restore.restore(workdir).step if not code else 0
  if code or step < cell.steps:
    raise ValueError(
      f'{cell.name} ended at step {step} of {cell.steps} (exit status {code});'
      f' {log} says why, and the same command goes on.'
    )


def launch(arguments: list[str], log: Any) -> int:
  """The exit status of train.py with these arguments."""
  done = subprocess.run(
    [sys.executable, str(_ROOT / 'train.py'), *arguments],
    stdout=log,
    stderr=log,
    check=False,
  )
  return done.returncode


def _record(cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
  """All that is known of a run, for the tables and results.json."""
  contender = cell.contender
  return {
    'model': contender.name,
    'budget': cell.budget,
    'number': cell.number,
    'seed': cell.seed,
    'steps': cell.steps,
    'bytes_read': cell.steps * contender.bytes_per_step,
    'flops_per_byte': contender.flops_per_byte,
    'flops': cell.steps * contender.bytes_per_step * contender.flops_per_byte,
    'patch_bytes': contender.patch_bytes,
    'bytes_per_id': contender.bytes_per_id,
  } | found


def _stored(file: pathlib.Path, make: Callable[[], dict[str, Any]]) -> Any:
  """What a JSON file holds, made first where it is missing."""
  if not file.exists():
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_json(file, make())
  return json.loads(file.read_text('utf-8'))


def _write_json(file: pathlib.Path, value: Any) -> None:
  manifest.write_file(file, json.dumps(value, indent=2) + '\n')


if __name__ == '__main__':
  _given = define_flags()
  command.run(lambda _: main(_given))
