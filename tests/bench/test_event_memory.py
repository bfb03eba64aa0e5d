"""Files larger than memory: the peak does not follow the size of the file."""

import pytest

from bench import event_memory


@pytest.mark.slow
def test_partitions_bound_the_memory_and_leave_no_trace(tmp_path):
  peaks, contents = {}, {}
  for users in (1_000, 4_000):
    path = tmp_path / f'{users}.parquet'
    event_memory.write_cards(path, users)
    for partitions in (1, 32):
      found = event_memory.measure(
        path, tmp_path / f'{users}-{partitions}', partitions
      )
      peaks[users, partitions] = found.bytes
      contents[users, partitions] = found.content
  for users in (1_000, 4_000):
    assert contents[users, 1] == contents[users, 32]
  grown = {n: peaks[4_000, n] - peaks[1_000, n] for n in (1, 32)}
  assert grown[32] < 0.5 * grown[1], peaks
