"""Points and lines on two logarithmic axes as an SVG picture."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 480, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 44
_LEGEND = 120
_COLOURS = (
  '#1b6ca8', '#c8553d', '#3c8d53', '#7a5ba6', '#8a6d1d', '#d1478f', '#4aa3a3',
  '#555555',
)  # fmt: skip


class Panel(NamedTuple):
  """points: of every name, (x, y), all above 0."""

  title: str
  across: str
  up: str
  points: Mapping[str, Sequence[tuple[float, float]]]


def draw(panels: Sequence[Panel]) -> str:
  """Panels side by side; a name has one colour, and one line, in all."""
  names = list(dict.fromkeys(name for p in panels for name in p.points))
  colours = {
    name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)
  }
  width = _WIDTH * len(panels) + _LEGEND
  body = [
    f'<g transform="translate({_WIDTH * i} 0)">{_panel(panel, colours)}</g>'
    for i, panel in enumerate(panels)
  ]
  for i, (name, colour) in enumerate(colours.items()):
    x, y = _WIDTH * len(panels) + 8, _TOP + 10 + 18 * i
    body.append(
      f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>'
      f'<text x="{x + 10}" y="{y}">{html.escape(name)}</text>'
    )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}"'
    ' font-family="sans-serif" font-size="12">\n'
    '<rect width="100%" height="100%" fill="white"/>\n'
    + '\n'.join(body)
    + '\n</svg>\n'
  )


def ticks(low: float, high: float) -> list[float]:
  """Round numbers within: of equal distance where high is below four lows.

  Else 1, 2 and 5 times powers of ten, and powers alone over four decades.
  """
  if high < 4 * low:
    step = 10.0 ** math.floor(math.log10(high - low))
    step /= 5 if high - low < 3 * step else 1
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, 12) for number in numbers]
  steps = (1,) if high / low > 1e4 else (1, 2, 5)
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  found = [step * 10.0**power for power in powers for step in steps]
  return [x for x in found if low <= x <= high]


def _panel(panel: Panel, colours: Mapping[str, str]) -> str:
  every = [point for line in panel.points.values() for point in line]
  (left, right), (bottom, top) = (
    (min(values) / 1.1, max(values) * 1.1)
    for values in zip(*every, strict=True)
  )

  def place(x: float, y: float) -> tuple[float, float]:
    across = math.log(x / left) / math.log(right / left)
    up = math.log(y / bottom) / math.log(top / bottom)
    return (
      _LEFT + (_WIDTH - _LEFT - _RIGHT) * across,
      _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * up,
    )

  floor = _HEIGHT - _BOTTOM
  parts = [f'<text x="{_LEFT}" y="18">{html.escape(panel.title)}</text>']
  for x in ticks(left, right):
    at = place(x, bottom)[0]
    parts.append(
      f'<path d="M{at:.1f} {_TOP}V{floor}" stroke="#ddd"/><text x="{at:.1f}"'
      f' y="{floor + 16}" text-anchor="middle">{x:g}</text>'
    )
  for y in ticks(bottom, top):
    at = place(left, y)[1]
    parts.append(
      f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/><text'
      f' x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>'
    )
  for name, line in panel.points.items():
    places = [place(*point) for point in sorted(line)]
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in places)
    parts.append(
      f'<polyline points="{path}" fill="none" stroke="{colours[name]}"/>'
    )
    parts += [
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>'
      for x, y in places
    ]
  middle = (_LEFT + _WIDTH) / 2
  parts.append(
    f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">'
    f'{html.escape(panel.across)}</text><text x="14" y="{_HEIGHT / 2}"'
    f' transform="rotate(-90 14 {_HEIGHT / 2})" text-anchor="middle">'
    f'{html.escape(panel.up)}</text>'
  )
  return ''.join(parts)
