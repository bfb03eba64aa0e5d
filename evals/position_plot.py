"""Curves of bits per byte by position as an SVG picture."""

import html
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 20, 50
_COLOURS = ('#1b6ca8', '#c8553d', '#3c8d53', '#7a5ba6', '#8a6d1d')


class Point(NamedTuple):
  """A group of positions that ends at `stop`; error 0 where none is known."""

  stop: int
  bits: float
  error: float


def points(report: Mapping[str, Any]) -> list[Point]:
  """What evals.by_position reported, wherever its keys begin; or nothing."""
  found = []
  for key, bits in report.items():
    head, _, name = key.rpartition('/')
    parts = head.split('/')
    if name == 'bits_per_byte' and parts[-2:-1] == ['by_position']:
      error = report.get(f'{head}/bits_per_byte_stderr') or 0.0
      found.append(Point(int(parts[-1]), bits, error))
  return sorted(found)


def draw(curves: Mapping[str, list[Point]]) -> str:
  """The picture: one line per name, positions by powers of two.

  Raises ValueError if there is nothing to draw.
  """
  every = [point for line in curves.values() for point in line]
  if not every:
    raise ValueError(
      'there is no curve to draw; put evals.by_position.BitsByPosition into'
      ' the evals of the config.'
    )
  stops = sorted({point.stop for point in every})
  low = min(p.bits - p.error for p in every)
  high = max(p.bits + p.error for p in every)
  room = 0.05 * (high - low or 1.0)
  scale = _Scale(
    math.log2(stops[0]), math.log2(stops[-1]), low - room, high + room
  )
  body = [_axes(scale, stops)]
  for number, (name, line) in enumerate(curves.items()):
    body.append(_line(scale, number, name, line))
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}"'
    f' height="{_HEIGHT}" font-family="sans-serif" font-size="12">\n'
    '<rect width="100%" height="100%" fill="white"/>\n'
    + '\n'.join(body)
    + '\n</svg>\n'
  )


class _Scale(NamedTuple):
  """The range of log2 position and of bits."""

  first: float
  last: float
  low: float
  high: float

  def x(self, stop: int) -> float:
    part = (math.log2(stop) - self.first) / ((self.last - self.first) or 1.0)
    return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

  def y(self, bits: float) -> float:
    part = (bits - self.low) / (self.high - self.low)
    return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)


def _axes(scale: _Scale, stops: list[int]) -> str:
  bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  parts = [
    f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" stroke="black" fill="none"/>'
  ]
  for stop in stops:
    parts.append(
      f'<text x="{scale.x(stop):.1f}" y="{bottom + 18}"'
      f' text-anchor="middle">{stop:,}</text>'
    )
  for i in range(5):
    bits = scale.low + i * (scale.high - scale.low) / 4
    parts.append(
      f'<text x="{_LEFT - 6}" y="{scale.y(bits) + 4:.1f}"'
      f' text-anchor="end">{bits:.2f}</text>'
    )
  middle = (_LEFT + right) / 2
  parts.append(
    f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">bytes of the'
    ' document up to the end of the group; bits per byte upwards</text>'
  )
  return '\n'.join(parts)


def _line(scale: _Scale, number: int, name: str, line: list[Point]) -> str:
  colour = _COLOURS[number % len(_COLOURS)]
  places = [f'{scale.x(p.stop):.1f},{scale.y(p.bits):.1f}' for p in line]
  parts = [
    f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}"'
    ' stroke-width="2"/>'
  ]
  for p in line:
    top, bottom = scale.y(p.bits + p.error), scale.y(p.bits - p.error)
    parts.append(
      f'<path d="M{scale.x(p.stop):.1f} {top:.1f}V{bottom:.1f}"'
      f' stroke="{colour}"/>'
    )
  parts.append(
    f'<text x="{_WIDTH - _RIGHT + 10}" y="{_TOP + 16 * (number + 1)}"'
    f' fill="{colour}">{html.escape(name)}</text>'
  )
  return '\n'.join(parts)
