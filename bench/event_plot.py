"""Scores of several models with their intervals, as an SVG picture."""

import html
from collections.abc import Mapping

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 640, 28, 150, 60, 40
_COLOUR, _ERROR = '#1b6ca8', '#c8553d'


def draw(report: Mapping[str, Mapping[str, float]], score: str) -> str:
  """One bar per model, from 0 to the highest end of an interval.

  report: of each model the score, and its 95% interval as `..._low`, `_high`.
  """
  if not report:
    raise ValueError('there is no model to draw; name at least one peer.')
  top = max(scores[f'{score}_high'] for scores in report.values()) or 1.0
  scale = (_WIDTH - _LEFT - _RIGHT) / top
  height = _TOP + _ROW * len(report) + 10
  lines = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}"'
    f' height="{height}" font-family="sans-serif" font-size="12">',
    f'<text x="{_LEFT}" y="24">{html.escape(score)}, 95% intervals over'
    ' entities</text>',
  ]
  for row, (name, scores) in enumerate(report.items()):
    y = _TOP + _ROW * row
    middle = y + _ROW / 2 - 2
    low, high = (
      _LEFT + scale * scores[f'{score}_{e}'] for e in ('low', 'high')
    )
    lines += [
      f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">'
      f'{html.escape(name)}</text>',
      f'<rect x="{_LEFT}" y="{y}" width="{scale * scores[score]:.1f}"'
      f' height="{_ROW - 6}" fill="{_COLOUR}" fill-opacity="0.6"/>',
      f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"'
      f' stroke="{_ERROR}" stroke-width="2"/>',
      f'<text x="{max(high, _LEFT) + 6:.1f}" y="{middle + 4}">'
      f'{scores[score]:.3f}</text>',
    ]
  return '\n'.join([*lines, '</svg>']) + '\n'
