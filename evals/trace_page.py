"""Traces of samples as JSON and as a page that needs nothing else."""

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_STYLE = """
:root { --ink: #1b1b1f; --paper: #fff; --soft: #6b6b76; --line: #d8d8de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ee; --paper: #17171b;
  --soft: #9b9ba8; --line: #3a3a44; } }
body { background: var(--paper); color: var(--ink); margin: 2em auto;
  max-width: 66em; padding: 0 1em; font: 15px/1.5 system-ui, sans-serif; }
.text { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.prompt { color: var(--soft); }
.text i { font-style: normal; border-radius: 2px;
  background: rgb(214 69 44 / var(--s, 0)); }
.text i.hex { font-size: .75em; outline: 1px solid var(--line); }
.text i:hover { outline: 2px solid var(--ink); }
svg { display: block; width: 100%; height: 90px; border: 1px solid var(--line);
  margin: .2em 0 1em; }
polyline { fill: none; stroke: var(--ink); stroke-width: 1.2;
  vector-effect: non-scaling-stroke; }
h2 { font-size: 1.05em; margin: 2em 0 .3em; } p { margin: .2em 0; }
.name { color: var(--soft); }
"""
# Bits of surprise at which the colour of a token is full.
_FULL = 10.0


class Step(NamedTuple):
  """One token.

  text: its bytes; entropy: nats of the law of the model; kept: ids left to
  choose from; p, q: probability for the model and where it was drawn.
  """

  id: int
  text: bytes
  entropy: float
  kept: int
  p: float
  q: float


class Sample(NamedTuple):
  """A text that was made.

  sources: where parts of it were taken from, in words and as JSON.
  """

  name: str
  prompt: bytes
  steps: Sequence[Step]
  sources: Sequence[tuple[str, dict[str, Any]]] = ()


def to_json(sampler: str, samples: Sequence[Sample]) -> dict[str, Any]:
  """The JSON form; bytes that are no UTF-8 appear as U+FFFD."""
  return {
    'sampler': sampler,
    'units': {'entropy': 'nats', 'kept': 'ids', 'p': 'share', 'q': 'share'},
    'samples': [
      {
        'name': sample.name,
        'prompt': sample.prompt.decode('utf-8', 'replace'),
        'steps': [
          step._replace(text=step.text.decode('utf-8', 'replace'))._asdict()
          for step in sample.steps
        ],
        **(
          {'sources': [x for _, x in sample.sources]} if sample.sources else {}
        ),
      }
      for sample in samples
    ],
  }


def page(title: str, sampler: str, samples: Sequence[Sample]) -> str:
  """The page, in ASCII: other characters are written as references."""
  parts = [
    '<!doctype html>',
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width">',
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>',
    f'<h1>{html.escape(title)}</h1>',
    f'<p>Sampler: <code>{html.escape(sampler)}</code></p>',
    '<p>The redder a token, the less probable it was for the model; full red is'
    f' {_FULL:g} bits. Point at a token for its numbers.</p>',
    *(part for sample in samples for part in _section(sample)),
    '</body></html>\n',
  ]
  text = '\n'.join(parts)
  return text.encode('ascii', 'xmlcharrefreplace').decode('ascii')


def _section(sample: Sample) -> Iterator[str]:
  steps = sample.steps
  yield f'<h2>{html.escape(sample.name)}, {len(steps)} tokens</h2>'
  prompt = html.escape(sample.prompt.decode('utf-8', 'replace'))
  tokens = ''.join(_token(place, step) for place, step in enumerate(steps))
  yield f'<div class="text"><span class="prompt">{prompt}</span>{tokens}</div>'
  for line, _ in sample.sources:
    yield f'<p class="name">{html.escape(line)}</p>'
  if not steps:
    return
  mean = sum(step.entropy for step in steps) / len(steps)
  yield _chart(
    f'entropy of the model, nats; mean {mean:.2f}', [s.entropy for s in steps]
  )
  yield _chart('ids kept, log10', [math.log10(max(s.kept, 1)) for s in steps])
  yield _chart('probability of the token for the model', [s.p for s in steps])


def _token(place: int, step: Step) -> str:
  bits = math.log2(1 / step.p) if step.p > 0 else math.inf
  note = (
    f'{place}: id {step.id}, entropy {step.entropy:.3f} nats, {step.kept} kept,'
    f' p {step.p:.4g}, drawn with {step.q:.4g}'
  )
  try:
    seen, kind = html.escape(step.text.decode('utf-8')), ''
  except UnicodeDecodeError:
    seen, kind = step.text.hex().upper(), ' class="hex"'
  if not step.text:
    seen, kind = f'[{step.id}]', ' class="hex"'
  share = min(bits / _FULL, 1.0)
  return f'<i{kind} style="--s:{share:.2f}" title="{note}">{seen}</i>'


def _chart(name: str, values: Sequence[float]) -> str:
  """A line over the tokens, from 0 to the largest value."""
  top = max(*values, 1e-9) if len(values) > 1 else max(values[0], 1e-9)
  points = ' '.join(
    f'{place},{100 - 100 * value / top:.2f}'
    for place, value in enumerate(values)
  )
  return (
    f'<p class="name">{html.escape(name)}; largest {top:.3g}</p>'
    f'<svg viewBox="0 0 {max(len(values) - 1, 1)} 100"'
    f' preserveAspectRatio="none"><polyline points="{points}"/></svg>'
  )
