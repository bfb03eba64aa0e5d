"""A page that shows patches over text: one HTML file, no script, no links."""

import html
from collections.abc import Iterator, Sequence

import numpy as np

from evals import patch_lengths
from evals import patch_text

_HUES = 5

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --dim: #667;
  --bar: #c0392b; --line: #ccd;
  --c0: #cfe4ff; --c1: #ffe3b8; --c2: #cdf0cf; --c3: #f3d3f2; --c4: #e4e0d0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e8eb;
  --dim: #99a; --bar: #ff7b6b; --line: #445;
  --c0: #1d3a5f; --c1: #5a3f12; --c2: #1f4a28; --c3: #512a52; --c4: #45412f; } }
body { background: var(--page); color: var(--ink); max-width: 70em;
  margin: 2em auto; padding: 0 1em; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
p, .dim { color: var(--dim); }
table { border-collapse: collapse; } .tables { display: flex; gap: 3em;
  flex-wrap: wrap; align-items: flex-start; }
td, th { padding: .1em 1em .1em 0; text-align: left; font-weight: normal;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--dim); }
caption { text-align: left; font-weight: bold; padding-bottom: .3em; }
.share { display: inline-block; height: .7em; background: var(--bar); }
.text { font: 15px/2.3 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; direction: ltr;
  unicode-bidi: bidi-override; }
.patch { padding: .15em 0 .6em; border-radius: .2em; }
.c0 { background: var(--c0); } .c1 { background: var(--c1); }
.c2 { background: var(--c2); } .c3 { background: var(--c3); }
.c4 { background: var(--c4); }
.text i { font-style: normal; padding-bottom: .6em;
  background: linear-gradient(var(--bar), var(--bar)) left bottom /
    calc(100% - 1px) calc(var(--e, 0) * .6em) no-repeat; }
.text i.hex { font-size: .65em; margin: 0 1px; color: var(--dim);
  outline: 1px solid var(--line); outline-offset: -1px; padding-bottom: .92em;
  background-size: calc(100% - 1px) calc(var(--e, 0) * .92em); }
.text i.rest { padding-left: .3em; }
.text i:hover { outline: 2px solid var(--ink); }
"""


def page(
  title: str,
  found: patch_lengths.Statistics,
  facts: Sequence[tuple[str, str]],
  choices: Sequence[patch_lengths.Choice],
  knob: str,
  documents: Sequence[patch_text.Shown],
  full: float,
) -> str:
  """The page, in ASCII: other characters are written as references.

  facts: what the table of statistics says, names and values; choices: with
    `knob`, the field they are values of, the table of thresholds, if any.
  full: entropy in nats of a bar of full height.
  """
  tables = [
    _table('Statistics', (), facts),
    _table('Patches by bytes', ('bytes', 'patches', ''), _histogram(found)),
  ]
  if choices:
    rows = [(f'{c.wanted:g}', _value(c), f'{c.mean:.3f}') for c in choices]
    heads = ('mean length wanted', knob, 'mean length found')
    tables.append(_table('Thresholds', heads, rows))
  heading = html.escape(title)
  text = '\n'.join(
    [
      '<!doctype html>',
      '<html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width">',
      f'<title>{heading}</title><style>{_STYLE}</style></head><body>',
      f'<h1>{heading}</h1>',
      f'<div class="legend">{_legend(documents, full)}</div>',
      f'<div class="tables">{"".join(tables)}</div>',
      *(_section(shown, full) for shown in documents),
      '</body></html>\n',
    ]
  )
  return text.encode('ascii', 'xmlcharrefreplace').decode('ascii')


def _legend(documents: Sequence[patch_text.Shown], full: float) -> str:
  swatches = ''.join(
    f'<span class="patch c{hue}">&nbsp;patch&nbsp;</span>'
    for hue in range(_HUES)
  )
  lines = [
    f'{swatches} Every change of colour is the start of a patch.',
    'A small box is a byte, in hexadecimal, that no visible character stands'
    ' for, or whose character is cut by a patch. Point at a byte to see more'
    ' of it.',
  ]
  if any(shown.nats_N is not None for shown in documents):
    lines.append(
      'The bar below a byte is the uncertainty about it, the entropy of the'
      f' prediction made before it; a full bar is {full:.2f} nats.'
    )
  return ''.join(f'<p>{line}</p>' for line in lines)


def _table(
  caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  """Rows of text; cells that begin with <span are HTML of ours."""
  parts = [f'<table><caption>{html.escape(caption)}</caption>']
  if heads:
    names = ''.join(f'<th>{html.escape(head)}</th>' for head in heads)
    parts.append(f'<tr>{names}</tr>')
  for row in rows:
    cells = ''.join(
      f'<td>{x if x.startswith("<span") else html.escape(x)}</td>' for x in row
    )
    parts.append(f'<tr>{cells}</tr>')
  return ''.join([*parts, '</table>'])


def _histogram(found: patch_lengths.Statistics) -> list[tuple[str, str, str]]:
  most = max((count for _, _, count in found.histogram), default=1)
  return [
    (
      f'{low}' if low == high else f'{low}-{high}',
      f'{count}',
      f'<span class="share" style="width:{10 * count / max(most, 1):.2f}em">'
      '</span>',
    )
    for low, high, count in found.histogram
  ]


def _value(choice: patch_lengths.Choice) -> str:
  return 'none' if choice.value is None else f'{choice.value}'


def _section(shown: patch_text.Shown, full: float) -> str:
  count = len(np.unique(shown.patch_N))
  size = f'{len(shown.text)} bytes'
  if shown.size > len(shown.text):
    size = f'the first {len(shown.text)} of {shown.size} bytes'
  return (
    f'<h2>{html.escape(patch_text.printable(shown.name))}</h2>'
    f'<p>{size} in {count} patches</p>'
    f'<div class="text">{"".join(_patches(shown, full))}</div>'
  )


def _patches(shown: patch_text.Shown, full: float) -> Iterator[str]:
  """Spans of patches; in them one element per byte."""
  last = None
  for cell in patch_text.cells(shown.text, shown.patch_N):
    patch = int(shown.patch_N[cell.start])
    if patch != last:
      if last is not None:
        yield '</span>'
      yield f'<span class="patch c{patch % _HUES}">'
    last = patch
    for place in range(cell.start, cell.stop):
      yield _byte(shown, cell, place, full)
    if shown.text[cell.start] == 0x0A:
      yield '<br>'
  if last is not None:
    yield '</span>'


def _byte(
  shown: patch_text.Shown, cell: patch_text.Cell, place: int, full: float
) -> str:
  """One byte: what is seen of it, its bar, and what pointing at it tells."""
  byte = shown.text[place]
  kind, seen = '', ''
  if cell.character is None:
    kind, seen = ' class="hex"', f'{byte:02X}'
  elif place == cell.start:
    seen = html.escape(cell.character)
  else:
    kind = ' class="rest"'
  note = f'{byte:02X} at {place}, patch {int(shown.patch_N[place])}'
  bar = ''
  if shown.nats_N is not None:
    before, after = (float(x) for x in shown.nats_N[place : place + 2])
    note += f': {before:.3f} nats before it, {after:.3f} after'
    share = min(max(before / max(full, 1e-9), 0.0), 1.0)
    bar = f' style="--e:{share:.2f}"'
  return f'<i{kind}{bar} title="{note}">{seen}</i>'
