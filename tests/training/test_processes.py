"""Work of process 0 that the others wait for."""

import jax
import pytest

from tests import several
from training import processes


def test_alone_it_is_just_done():
  assert processes.told_by_first('count', lambda: b'one') == b'one'


@pytest.mark.parametrize('said', [b'', b'some \x00\xff bytes'])
def test_all_are_told_what_one_has_found(said):
  calls = []

  def work():
    calls.append(jax.process_index())
    return said

  job = several.Job(3)
  assert job.run(lambda: processes.told_by_first('count', work)) == [said] * 3
  assert calls == [0]


def test_the_others_hear_that_it_failed():
  def work():
    raise ValueError('no file')

  first, *others = several.Job(3).run(lambda: processes.first('count', work))
  assert str(first) == 'no file'
  for error in others:
    assert isinstance(error, OSError)
    assert 'process 0 could not count' in str(error)


def test_waiting_ends(monkeypatch):
  def barrier(*, key, timeout_ms):
    assert 'count' in key
    assert timeout_ms == 12 * 60 * 60 * 1000
    raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out.')

  monkeypatch.setattr(several.Job, '_barrier', staticmethod(barrier))
  for error in several.Job(2).run(lambda: processes.first('count', list)):
    assert isinstance(error, OSError)
    assert 'to count took more than 12 hours' in str(error)
    assert 'Barrier timed out' in str(error)
