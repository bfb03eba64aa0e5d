"""The time that is left, and the errors that the tables print."""

import math
import statistics
import types

from bench import tables


def test_clock_learns_from_what_runs_took(monkeypatch):
  now = [0.0]
  of_tables = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(tables, 'time', of_tables)
  monkeypatch.setattr(tables, '_BESIDES', 0)
  clock = tables.Clock([60, 60, 120, 240])
  assert clock.left() == 'about 8 min left'
  clock.done('there already')
  assert clock.left() == 'about 7 min left'
  clock.say('at work')
  now[0] = 120.0
  clock.done('at half the speed')
  assert clock.left() == 'about 12 min left'


def test_spread_over_seeds_is_that_of_the_mean():
  values = [1.0, 1.1, 1.3]
  expected = statistics.stdev(values) / math.sqrt(3)
  assert tables._spread(values) == f' +- {expected:.4f}'
  assert tables._spread(values[:1]) == ''
