"""The soak kills real processes, and notices what it is there to notice."""

import random
import signal

import pytest

from bench import lives
from bench import soak


def make_view(**fields):
  return lives.View(7, 3, None, 3, ())._replace(**fields)


def make_life(tmp_path, **fields):
  view = make_view()
  life = lives.Life(
    'forked', None, view, -9, 'training', {}, tmp_path / '0.log',
    signal.SIGKILL, 60,
  )  # fmt: skip
  return life._replace(**fields)


@pytest.mark.parametrize(
  ('floor', 'view', 'lost'),
  [
    (None, {}, False),
    (None, {'newest': None, 'step': None}, False),
    (6, {'resumed': 6, 'newest': 9}, False),
    (6, {'resumed': None, 'step': None, 'newest': 6}, False),
    # An older one was taken, none was taken, or the newest has gone.
    (6, {'resumed': 3, 'newest': 9}, True),
    (6, {'resumed': None, 'step': 1, 'newest': 6}, True),
    (6, {'resumed': None, 'step': None, 'newest': 3}, True),
    (6, {'resumed': None, 'step': None, 'newest': None}, True),
  ],
)
def test_a_lost_checkpoint_is_noticed(tmp_path, floor, view, lost):
  life = make_life(tmp_path, floor=floor, view=make_view(**view))
  assert life.lost == lost
  assert bool(life.complaints()) == lost


@pytest.mark.parametrize(
  ('code', 'says', 'wrong'),
  [
    (0, 'step 3/60 ', False),
    (-9, '', False),
    (1, 'train.py: a sentence', True),
    (-11, '', True),
    (0, 'checkpoint 3 in runs is damaged (x); using', True),
    # It was not asked to.
    (75, '', True),
    (-15, '', True),
  ],
)
def test_a_bad_end_is_noticed(tmp_path, code, says, wrong):
  (tmp_path / '0.log').write_text(says)
  assert bool(make_life(tmp_path, code=code).complaints()) == wrong


@pytest.mark.parametrize(
  ('code', 'view', 'wrong'),
  [
    (75, {'step': 6, 'stopped': 7, 'newest': 7}, False),
    # It says nothing, saved another step, or went back.
    (75, {'step': 6, 'newest': 7}, True),
    (75, {'step': 6, 'stopped': 7, 'newest': 6}, True),
    (75, {'step': 6, 'stopped': 5, 'newest': 5}, True),
    # It came before there was a step to save, or after the last, or between.
    (-15, {'step': None, 'newest': 3}, False),
    (-15, {'step': 60, 'newest': 60}, False),
    (-15, {'step': 6, 'newest': 6}, True),
    (0, {'step': 60, 'newest': 60}, False),
    (-9, {'step': 6}, True),
    (1, {'step': 6}, True),
  ],
)
def test_a_bad_end_after_sigterm_is_noticed(tmp_path, code, view, wrong):
  life = make_life(
    tmp_path, code=code, view=make_view(**view), sent=signal.SIGTERM
  )
  assert bool(life.complaints()) == wrong
  assert life.stopped == (code == 75)


def test_what_a_run_shows(tmp_path):
  run = lives.Run((), tmp_path / 'run', tmp_path, 60)
  log = tmp_path / '0.log'
  assert lives.look(run, log) == (None, None, None, None, (), None)
  assert lives.stage(lives.look(run, log), 7, 60) == 'starting'
  for name in ('3', '12', '15.saving', '9.old'):
    (run.workdir / 'checkpoints' / name).mkdir(parents=True)
  (run.workdir / 'lock').write_text('process 7 on here\nmachine\n0\n')
  log.write_text('I train.py:9] resuming from checkpoint 12 in runs\n')
  view = lives.look(run, log)
  assert view == (7, None, 12, 12, ('15.saving', '9.old'), None)
  assert lives.stage(view, 8, 60) == 'starting'
  assert lives.stage(view, 7, 60) == 'compiling'
  log.write_text('I metrics.py:1] step 13/60  2.1\nI x] step 14/60  2.0\n')
  view = lives.look(run, log)
  assert view.step == 14
  assert lives.stage(view, 7, 60) == 'training'
  assert lives.phase('forked', 'training', view) == 'saving'
  assert lives.stage(view._replace(step=60), 7, 60) == 'finishing'
  log.write_text(log.read_text() + 'stopped at step 15 of 60; runs resumes\n')
  assert lives.look(run, log).stopped == 15


def test_instants_are_drawn_over_the_whole_life(tmp_path):
  run = lives.Run((), tmp_path / 'run', tmp_path, 60)
  spans = {('forked', stage): 10.0 for stage in lives.STAGES}
  rng = random.Random(0)
  plans = [soak._draw(run, 'forked', rng, spans) for _ in range(400)]
  assert {plan.stage for plan in plans} == set(lives.STAGES)
  for stage in set(lives.STAGES) - {'training'}:
    seconds = sorted(plan.seconds for plan in plans if plan.stage == stage)
    assert seconds[0] < 1 and seconds[-1] > 9
  steps = {plan.step for plan in plans if plan.stage == 'training'}
  assert min(steps) <= 3 and max(steps) == 60


def test_a_few_kills(tmp_path):
  """Of real processes; `python -m bench.soak` does it for minutes."""
  report = soak.soak(
    tmp_path, kills=2, seed=112, steps=12, shares=(1, 0), terms=0.5
  )
  assert not report.complaints
  assert sum(life.killed for life in report.lives) == 2
  assert report.equal == report.runs >= 1
  assert '| all | 2 |' in soak.table(report)
