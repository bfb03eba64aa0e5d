import dataclasses
import zlib

import hypothesis
import pytest
from hypothesis import strategies

from bounds import header

MODEL = {'class': 'models.lm.ByteLM', 'fields': {'width': 16}}
HEADER = header.Header('ascii', 70, 20, 2048, 1536, MODEL)


def test_round_trip_and_smoothing():
  assert header.from_bytes(HEADER.to_bytes()) == HEADER
  assert header.smoothing_of(32, 16) == (0.25, 0.5)


@hypothesis.given(strategies.binary(max_size=60))
def test_bytes_of_chance_are_refused_in_one_way(data):
  with pytest.raises(ValueError, match=r'file|smoothing|stride'):
    header.from_bytes(data)


def test_a_description_that_swells_is_refused():
  deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
  bomb = deflate.compress(b' ' * 10**8) + deflate.flush()
  with pytest.raises(ValueError, match='describes no network'):
    header.from_bytes(HEADER.to_bytes()[:7] + bomb)


@pytest.mark.parametrize(
  ('field', 'value'),
  [('base', 256), ('slope', -1), ('stride', 4096), ('alphabet', 'latin')],
)
def test_fields_out_of_range_are_refused(field, value):
  with pytest.raises(ValueError, match=str(value)):
    dataclasses.replace(HEADER, **{field: value})


def test_newer_alphabet_is_named():
  data = b'\x09' + HEADER.to_bytes()[1:]
  with pytest.raises(ValueError, match='alphabet 9, this decoder knows 2'):
    header.from_bytes(data)
