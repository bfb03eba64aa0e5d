"""The picture of curves by position, read back."""

import xml.etree.ElementTree

import pytest

from evals import position_plot

REPORT = {
  'eval/test/bits_per_byte': 2.0,
  'eval/test/by_position/1024/bits_per_byte': 3.0,
  'eval/test/by_position/1024/bits_per_byte_stderr': None,
  'eval/test/by_position/512/bits_per_byte': 2.0,
  'eval/test/by_position/512/bits_per_byte_stderr': 0.5,
  'eval/test/by_position/512/ratio': 1.0,
}


def test_points_are_those_of_the_report_in_order():
  assert position_plot.points(REPORT) == [(512, 2.0, 0.5), (1024, 3.0, 0.0)]
  assert position_plot.points({'by_position/8/bits_per_byte': 1.0}) == [
    (8, 1.0, 0.0)
  ]


def test_higher_bits_are_drawn_higher_and_later_ones_further_right():
  line = position_plot.points(REPORT)
  tree = xml.etree.ElementTree.fromstring(
    position_plot.draw({'plain <model>': line, 'other': line[:1]})
  )
  space = '{http://www.w3.org/2000/svg}'
  first, second = (
    [tuple(map(float, p.split(','))) for p in x.get('points').split()]
    for x in tree.iter(f'{space}polyline')
  )
  assert first[0] == second[0]
  assert first[0][0] < first[1][0]
  assert first[0][1] > first[1][1]
  texts = [x.text for x in tree.iter(f'{space}text')]
  assert {'512', '1,024', 'plain <model>', 'other'} <= set(texts)


def test_nothing_to_draw_is_named():
  with pytest.raises(ValueError, match='BitsByPosition'):
    position_plot.draw({'none': position_plot.points({})})
