"""A certificate for people: lines of text, a page and a plot as SVG."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bounds import certificate
from bounds import chart


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
  if 'made_by' in claim:
    lines.append(('trained on', f'split {claim["made_by"]["trained_on"]}'))
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
true text before it (a byte outside the alphabet is two symbols: that it is
outside, then which). It says nothing about other documents, about text that the
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


def plot(
  claim: Mapping[str, Any],
  evidence: certificate.Evidence,
  curve: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> str:
  """Bound and mean loss of every prefix of the stream, as SVG."""
  symbols_P, mean_P, value_P = curve
  share = evidence.spelling_bits / evidence.bytes
  series = [
    chart.Series(f'{name} {x_P[-1]:.3f}', symbols_P, x_P)
    for name, x_P in (
      ('bound', value_P * evidence.per_byte + share),
      ('risk', mean_P * evidence.per_byte + share),
    )
  ]
  if 'held_out' in claim:
    held = claim['held_out']['bits_per_byte']
    name = f'held out {held:.3f}'
    series.append(chart.Series(name, symbols_P[-1:], [held], dots=True))
  return chart.draw(series, 'symbols of the stream', claim['vacuous_from'])


def _price(claim: Mapping[str, Any]) -> float:
  symbols = claim['stream']['symbols']
  return claim['bound']['price'] * math.log(2) * 8192 / symbols
