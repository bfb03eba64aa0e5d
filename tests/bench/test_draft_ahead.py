"""The ceiling of drafting ahead."""

import types

import pytest

from bench import draft_ahead
from configs import restore
from data import codec
from tests.models import test_superposition


@pytest.mark.slow
def test_rows_of_a_tiny_model():
  (row,) = draft_ahead.rows('bench', (1,), 1, shrunk=True)
  assert row['model'] == 'blt_bench'
  assert row['drafted ahead'] == '1 patches of 4 bytes'
  assert float(row['speed at best'].split()[0]) > 0


@pytest.mark.parametrize(
  ('count', 'ratio', 'expected'),
  # a = 1 / ratio; (a + a^2) / 2 = 1 / ratio with a = 1 / 2.
  [(1, 1.25, '80%'), (2, 8 / 3, '50%'), (2, 1.0, 'never'), (4, 0.9, 'never')],
)
def test_patches_that_must_be_right(count, ratio, expected):
  assert draft_ahead.break_even(count, ratio) == expected


@pytest.mark.slow
def test_a_run_is_measured_and_stays_greedy():
  model, params = test_superposition.drawn('tables')
  texts = types.SimpleNamespace(codec=codec.Bytes())
  config = types.SimpleNamespace(model=model, data=texts)
  (row,) = draft_ahead.measured(
    restore.Run(config, params, 1), [b'abab' * 20] * 2, (3,), 8, 1
  )
  assert row['texts that are plain greedy'] == '2 of 2'
  assert 33 <= int(row['accepted'].rstrip('%')) <= 100
