"""What the launch files and their pages start: it fits, and it is all there."""

import itertools
import re
import shlex
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from configs import base
from configs import dry_run
from tests import test_launch
from training import step


class Plan(NamedTuple):
  """A command of train.py and what it is started on."""

  config: str
  changes: list[str]
  devices: int
  chip: str


def written(path):
  """The command lines of train.py in a page or in what a script begins with."""
  text = path.read_text(encoding='utf-8')
  if path.suffix != '.md':
    head = [x for x in text.splitlines() if re.match('#( |$)', x)]
    text = '\n'.join(line.removeprefix('#') for line in head)
  lines = text.replace('\\\n', ' ').splitlines()
  found = [shlex.split(x) for x in lines if re.search(r' train\.py +--', x)]
  assert found, path
  return found


def value(words, name, default=None):
  """Of --name=value, NAME=value, or an #SBATCH line, by the last of them."""
  found = [w.partition('=')[2] for w in words if w.startswith(f'{name}=')]
  return found[-1] if found else default


def plans():
  """By where each stands: what the pages and files would start."""
  found = {}
  for folder in ('slurm', 'tpu'):
    [script] = [x for x in test_launch.SCRIPTS if x.parent.name == folder]
    given = script.read_text(encoding='utf-8').split()
    chip = re.search(r'CHIP:-(\w+)', script.read_text(encoding='utf-8'))[1]
    for path in (script, script.parent / 'README.md'):
      for number, words in enumerate(written(path)):
        devices = value(words, 'CHIPS')
        if folder == 'slurm':
          nodes = value(words, '--nodes', value(given, '--nodes'))
          devices = int(nodes) * int(value(given, '--ntasks-per-node'))
        found[f'{folder} {path.name} {number}'] = Plan(
          value(words, '--config'),
          [b for a, b in itertools.pairwise(words) if a == '--set'],
          int(devices),
          value(words, 'CHIP', chip),
        )
  return found


def pod_plans():
  pod = test_launch.documents()['Job']['spec']['template']['spec']
  [container], [before] = pod['containers'], pod['initContainers']
  chip, devices = (
    test_launch.flags(before)['chip'],
    int(test_launch.flags(before)['devices']),
  )
  return [
    Plan(
      test_launch.flags(x)['config'],
      [a.removeprefix('--set=') for a in x['args'] if a.startswith('--set=')],
      devices,
      chip,
    )
    for x in (before, container)
  ]


def init(config, optimizer):
  ids = jnp.zeros((1, 8), jnp.int32)
  key = jax.random.key(0)
  return step.create(config.model.init(key, ids)['params'], optimizer, key)


def assert_fits(plan):
  config = base.override(base.load(plan.config), plan.changes)
  found = dry_run.report(config, init, devices=plan.devices, chip=plan.chip)
  assert found.refusal is None


@pytest.mark.parametrize('where', plans())
def test_what_a_page_or_script_starts_fits(where):
  assert_fits(plans()[where])


def test_what_pods_run_fits_and_is_what_they_have_looked_at():
  before, run = pod_plans()
  assert_fits(run)
  assert before.config == run.config
  placed = ('data.', 'initial.')
  assert before.changes == [x for x in run.changes if not x.startswith(placed)]


def test_pages_name_what_the_paper_models_read():
  """The corpus and the run of the entropy model are in no image or archive."""
  started = [*plans().values(), pod_plans()[1]]
  started = [x for x in started if x.config == 'configs/blt_1b.py']
  assert len(started) == 3
  for plan in started:
    config = base.override(base.load(plan.config), plan.changes)
    assert config.data.source.pattern == '/shared/corpus/*.jsonl'
    assert config.initial[0].directory == '/shared/runs/blt_entropy'
    assert config.data.directory.startswith('/shared/')
  for folder in ('slurm', 'tpu', 'kubernetes'):
    page = (test_launch.LAUNCH / folder / 'README.md').read_text(
      encoding='utf-8'
    )
    assert '--config=configs/blt_entropy.py' in page
    assert 'a `text` in every line' in ' '.join(page.split())
    assert '--workdir=/shared/runs/blt_entropy' in page or (
      'comes from `/shared/runs/blt_entropy`' in ' '.join(page.split())
    )
