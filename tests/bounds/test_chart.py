import re
from xml.etree import ElementTree

import numpy as np
import pytest

from bounds import chart


def test_points_are_where_their_numbers_are():
  series = [
    chart.Series('a < b & c', [10, 100, 1000], [0.0, 4.0, 8.0]),
    chart.Series('a < b & c', [100], [6.0], dots=True),
    chart.Series('other', [10, 1000], [2.0, 2.0]),
  ]
  root = ElementTree.fromstring(chart.draw(series, 'bytes', 8.0))
  spelled = {name: f'{{http://www.w3.org/2000/svg}}{name}' for name in (
    'polyline', 'circle', 'text'
  )}  # fmt: skip
  lines = root.findall(spelled['polyline'])
  first = np.array(re.split('[ ,]', lines[0].get('points')), float)
  x, y = first.reshape(-1, 2).T
  # Evenly spaced across, for the axis is logarithmic; higher bits higher up.
  assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
  assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)
  assert x[0] < x[1] - 100
  assert y[0] > y[1] + 100
  assert len(lines) == 2
  texts = [x.text for x in root.iter(spelled['text'])]
  assert texts.count('a < b & c') == 1
  assert {'other', 'bytes', 'guessing', '10', '100', '1000'} <= set(texts)
  heights = [float(x.get('cy')) for x in root.iter(spelled['circle'])]
  assert min(abs(h - (y[1] + y[2]) / 2) for h in heights) < 0.2


def test_one_size_only():
  text = chart.draw([chart.Series('one', [20], [3.0])], 'bytes', 8.0)
  assert 'nan' not in text
