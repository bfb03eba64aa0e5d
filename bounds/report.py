"""A certificate for people: lines of text, a page and a plot as SVG."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bounds import certificate

_WIDTH, _HEIGHT, _MARGIN = 640, 360, 50


def summary(claim: Mapping[str, Any]) -> str:
  """What was certified, in a few lines."""
  terms = claim['bound']
  confidence = 100 * (1 - claim['delta'])
  value, line = claim['bits_per_byte'], claim['vacuous_from']
  verdict = 'not vacuous' if value < line else 'VACUOUS: guessing does as well'
  lines = [
    ('certified bits per byte', f'{value:.4f} ({verdict})'),
    ('confidence', f'{confidence:.6g} %'),
    (
      f'guessing, {claim["smoothing"]["classes"]} symbols',
      f'{line:.3f} bits per byte',
    ),
    ('empirical risk of the file', f'{terms["empirical_risk"]:.4f}'),
    ('gap', f'{terms["gap"]:.4f}'),
  ]
  if 'held_out' in claim:
    held = claim['held_out']
    lines.append(
      (f'held out ({held["stream"]})', f'{held["bits_per_byte"]:.4f}')
    )
  stream = claim['stream']
  lines += [
    ('file', f'{claim["file"]["bytes"]} bytes'),
    (
      'stream',
      f'{stream["name"]}, {stream["bytes"]} bytes in'
      f' {stream["documents"]} documents',
    ),
    ('one more kilobyte of file costs', f'{_price(claim):.5f}'),
  ]
  text = [f'{name:32}{value}' for name, value in lines]
  return '\n'.join([*text, '', *ladder(claim)])


def ladder(claim: Mapping[str, Any]) -> list[str]:
  """A line for every bound on the file."""
  lines = [f'{"bound on the same file":32}{"bits":>8}{"risk":>8}{"gap":>8}']
  for name, terms in claim['ladder'].items():
    numbers = terms['value'], terms['empirical_risk'], terms['gap']
    lines.append(f'{name:32}' + ''.join(f'{x:8.3f}' for x in numbers))
  return lines


def page(claim: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  stream = claim['stream']
  return f"""# Certificate

With confidence {100 * (1 - claim['delta']):.6g} % over the draw of the stream,
the predictor in `model.pw` needs at most **{claim['bits_per_byte']:.4f} bits
per byte** on average when every symbol of the stream is drawn anew given the
true text before it. It says nothing about other documents, about text that the
predictor writes itself, or about the network before it was compressed.

```
{summary(claim)}
```

![Bound and risk along the stream](report.svg)

Check it with the file and the stream alone:

```
python -m bounds.verify model.pw certificate.json --stream='{stream['name']}'
```
"""


@dataclasses.dataclass(frozen=True)
class _Axes:
  """Logarithms of the first and last symbol across, 0 to `top` bits up."""

  first: float
  last: float
  top: float

  def across(self, symbol: float) -> float:
    share = math.log10(symbol) - self.first
    share /= max(self.last - self.first, 1e-9)
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)

  def down(self, bits: float) -> float:
    share = min(bits, self.top) / self.top
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)

  def path(
    self, symbols_P: np.ndarray, values_P: np.ndarray, colour: str
  ) -> str:
    points = ' '.join(
      f'{self.across(x):.1f},{self.down(y):.1f}'
      for x, y in zip(symbols_P, values_P, strict=True)
    )
    return (
      f'<polyline points="{points}" fill="none" stroke="{colour}"'
      ' stroke-width="2"/>'
    )


def _label(x: float, y: float, text: str, anchor: str = 'middle') -> str:
  return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{text}</text>'


def plot(
  claim: Mapping[str, Any],
  evidence: certificate.Evidence,
  curve: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> str:
  """Bound and mean loss of every prefix of the stream, as SVG."""
  symbols_P, mean_P, value_P = curve
  share = evidence.spelling_bits / evidence.bytes
  rows = [x * evidence.per_byte + share for x in (mean_P, value_P)]
  line = claim['vacuous_from']
  axes = _Axes(math.log10(symbols_P[0]), math.log10(symbols_P[-1]), 1.1 * line)
  right = _WIDTH - _MARGIN
  marks = [
    axes.path(symbols_P, rows[0], 'steelblue'),
    axes.path(symbols_P, rows[1], 'firebrick'),
    _label(
      right, axes.down(rows[1][-1]) - 6, f'bound {rows[1][-1]:.3f}', 'end'
    ),
    _label(
      right, axes.down(rows[0][-1]) + 16, f'risk {rows[0][-1]:.3f}', 'end'
    ),
  ]
  return _page(axes, marks, 'symbols of the stream', line)


def _page(axes: _Axes, marks: list[str], across: str, line: float) -> str:
  """A frame with numbers, the line of guessing and what is drawn in it."""
  right, base = _WIDTH - _MARGIN, _HEIGHT - _MARGIN
  numbers = [
    _label(axes.across(10.0**k), base + 18, f'1e{k}')
    for k in range(math.ceil(axes.first), math.floor(axes.last) + 1)
  ]
  numbers += [
    _label(_MARGIN - 6, axes.down(bits) + 4, str(bits), 'end')
    for bits in range(math.floor(axes.top) + 1)
  ]
  height = axes.down(line)
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}"'
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


def _price(claim: Mapping[str, Any]) -> float:
  symbols = claim['stream']['symbols']
  return claim['bound']['price'] * math.log(2) * 8192 / symbols


def sweep_plot(rows: Sequence[Any]) -> str:
  """Betting bound against the bytes of the file, a line for every stream."""
  sizes = sorted({row.file_bytes for row in rows})
  top = 1.1 * max(row.vacuous for row in rows)
  axes = _Axes(math.log10(sizes[0]), math.log10(max(sizes) + 1), top)
  lines = []
  streams = sorted({row.stream_bytes for row in rows})
  for index, count in enumerate(streams):
    chosen = sorted(
      (row.file_bytes, row.betting) for row in rows if row.stream_bytes == count
    )
    colour = f'hsl({300 * index // len(streams)},60%,45%)'
    lines.append(axes.path(*np.array(chosen).T, colour))
    lines.append(
      f'<g fill="{colour}">'
      + _label(_WIDTH - 4, 20 + 16 * index, f'{count} bytes', 'end')
      + '</g>'
    )
  return _page(axes, lines, 'bytes of the file', max(x.vacuous for x in rows))
