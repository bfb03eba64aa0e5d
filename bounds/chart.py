"""Curves of bits per byte against a size, as SVG."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_WIDTH, _HEIGHT, _MARGIN = 640, 360, 50
_LEGEND = 230
_COLOURS = (
  '#b22222', '#4682b4', '#2e8b57', '#9932cc', '#d2691e', '#008b8b', '#c71585',
  '#556b2f', '#4b0082', '#b8860b',
)  # fmt: skip


class Series(NamedTuple):
  """A line through points, or with `dots` the points alone."""

  name: str
  across: Sequence[float] | np.ndarray
  bits: Sequence[float] | np.ndarray
  dots: bool = False


@dataclasses.dataclass(frozen=True)
class _Axes:
  """Logarithms of the least and largest size across, 0 to `top` bits up."""

  first: float
  last: float
  top: float

  def across(self, size: float) -> float:
    share = math.log10(size) - self.first
    share /= max(self.last - self.first, 1e-9)
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)

  def down(self, bits: float) -> float:
    share = min(bits, self.top) / self.top
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)

  def ticks(self) -> list[float]:
    """Powers of ten, with 2 and 5 of each where that leaves few."""
    powers = range(math.floor(self.first), math.ceil(self.last) + 1)
    steps = (1, 2, 5) if self.last - self.first < 3 else (1,)
    found = [step * 10.0**power for power in powers for step in steps]
    slack = 1e-6
    return [
      x
      for x in found
      if self.first - slack <= math.log10(x) <= self.last + slack
    ]


def draw(series: Sequence[Series], across: str, line: float) -> str:
  """All series in one frame, with a legend and the line of guessing.

  across: what the logarithmic axis is; line: bits of guessing.
  """
  sizes = np.concatenate([np.asarray(x.across, float) for x in series])
  axes = _Axes(
    math.log10(sizes.min()), math.log10(max(sizes.max(), sizes.min() * 1.01)),
    1.1 * line,
  )  # fmt: skip
  marks, names = [], list(dict.fromkeys(x.name for x in series))
  for one in series:
    colour = _COLOURS[names.index(one.name) % len(_COLOURS)]
    points = [
      (axes.across(x), axes.down(y))
      for x, y in zip(one.across, one.bits, strict=True)
    ]
    marks.append(_dots(points, colour) if one.dots else _path(points, colour))
  for index, name in enumerate(names):
    colour = _COLOURS[index % len(_COLOURS)]
    text = _label(_WIDTH - _MARGIN + 12, 40 + 16 * index, name, 'start')
    marks.append(f'<g fill="{colour}">{text}</g>')
  return _page(axes, marks, across, line)


def _path(points: list[tuple[float, float]], colour: str) -> str:
  text = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
  return (
    f'<polyline points="{text}" fill="none" stroke="{colour}"'
    ' stroke-width="2"/>'
  ) + _dots(points if len(points) < 20 else [], colour)


def _dots(points: list[tuple[float, float]], colour: str) -> str:
  return ''.join(
    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    for x, y in points
  )


def _label(x: float, y: float, text: str, anchor: str = 'middle') -> str:
  safe = text.replace('&', '&amp;').replace('<', '&lt;')
  return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{safe}</text>'


def _page(axes: _Axes, marks: list[str], across: str, line: float) -> str:
  """A frame with numbers, the line of guessing and what is drawn in it."""
  right, base = _WIDTH - _MARGIN, _HEIGHT - _MARGIN
  numbers = [
    _label(axes.across(x), base + 18, f'{x:g}' if x < 1e4 else f'{x:.0e}')
    for x in axes.ticks()
  ]
  numbers += [
    _label(_MARGIN - 6, axes.down(bits) + 4, str(bits), 'end')
    for bits in range(math.floor(axes.top) + 1)
  ]
  height = axes.down(line)
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + _LEGEND}"'
      f' height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
      '<rect width="100%" height="100%" fill="white"/>',
      f'<path d="M{_MARGIN},{_MARGIN} V{base} H{right}" fill="none"'
      ' stroke="black"/>',
      f'<path d="M{_MARGIN},{height:.1f} H{right}" stroke="grey"'
      ' stroke-dasharray="4"/>',
      _label(_MARGIN + 4, height - 6, 'guessing', 'start'),
      *marks,
      *numbers,
      _label(_WIDTH / 2, _HEIGHT - 12, across),
      _label(_MARGIN, 24, 'bits per byte', 'start'),
      '</svg>\n',
    ]
  )
