"""Rows of the table of sampling rules."""

import pytest

from bench import samplers
from bench import timing


def test_every_row_has_the_floor_of_one_pass(monkeypatch):
  chosen = {name: samplers._RULES[name] for name in ('temperature', 'xtc')}
  monkeypatch.setattr(samplers, '_RULES', chosen)
  monkeypatch.setattr(samplers, '_our_draw', lambda *_: lambda: None)
  monkeypatch.setattr(timing, '_SECONDS', 0.0)
  # A byte per microsecond.
  found = list(samplers.rows((300,), 1, 1e6))
  assert [row['rule'] for row in found[:6]] == [
    'whole chain and draw',
    'draw alone',
    'bat and draw',
    'bat of top-p and draw',
    'temperature',
    'xtc',
  ]
  assert [row['logits'] for row in found] == ['text'] * 6 + ['flat'] * 6
  for row in found:
    floor = float(row['floor of one pass, ms'])
    assert floor == pytest.approx(4 * samplers.BATCH * 300 / 1e3)
    has_peer = row['rule'] in ('whole chain and draw', 'draw alone',
                               'temperature')
    assert (row['ratio'] != '-') == has_peer
