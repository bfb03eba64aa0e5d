"""Shows where a run's model cuts text into patches, and how long they are.

python patches.py --checkpoint=runs/blt --out=patches.html
"""

import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from absl import logging

from configs import base
from configs import command
from configs import patch_check
from configs import restore
from data import codec
from data import text
from evals import patch_entropies
from evals import patch_lengths
from evals import patch_page
from evals import patch_text
from models import forward
from models import patched
from training import manifest

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default newest.')
_SPLIT = flags.DEFINE_enum('split', 'test', text.SPLITS, 'Split to read.')
_TEXT = flags.DEFINE_string('text', None, 'File to read instead of a split.')
_DOCUMENTS = flags.DEFINE_integer(
  'documents', 3, 'Documents to show.', lower_bound=0
)
_MAX_BYTES = flags.DEFINE_integer(
  'max_bytes', 20_000, 'Bytes to show at most.', lower_bound=0
)
_MEASURE = flags.DEFINE_integer(
  'measure_bytes', 200_000,
  'Bytes to compute statistics and thresholds of, and at least those shown.',
  lower_bound=0,
)  # fmt: skip
_OUT = flags.DEFINE_string('out', None, 'HTML page to write.')


class Document(NamedTuple):
  """The beginning of a text; `size` is the length of all of it."""

  name: str
  text: bytes
  size: int


class Reading(NamedTuple):
  """Documents, and the ids BOS bytes EOS of all in one row.

  full: nats of the brightest shade.
  """

  documents: list[Document]
  rows: patch_check.Rows
  full: float


class Report(NamedTuple):
  """What is said of the patches; `knob` is the field the choices are for."""

  title: str
  statistics: patch_lengths.Statistics
  facts: list[tuple[str, str]]
  choices: list[patch_lengths.Choice]
  knob: str


def main(_: Sequence[str]) -> None:
  command.quiet()
  try:
    with command.explained('patches.py'):
      show()
  except BrokenPipeError:
    # The reader, as `head`, has enough; keep Python from flushing at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show() -> None:
  """Reads the flags and the run, prints all there is, and writes the page."""
  if not _CHECKPOINT.value:
    raise ValueError(
      '--checkpoint is missing; name a run directory, the --workdir of'
      ' train.py.'
    )
  run = restore.restore(_CHECKPOINT.value, step=_STEP.value)
  model = run.config.model
  inner = patch_check.byte_latent_of(model)
  if not isinstance(run.config.data.codec, codec.Bytes):
    raise ValueError(
      f'{_CHECKPOINT.value} reads the ids of'
      f' {type(run.config.data.codec).__name__}, not bytes; patches can be'
      ' shown of a run with data.codec=Bytes.'
    )
  documents = read(run.config)
  reading = measure(run, documents)
  report = make_report(run.config, reading)
  shown = select(inner.patching, reading)
  for part in shown:
    cut = part.size > len(part.text)
    whole = f', the first {len(part.text)}' if cut else ''
    print(f'--- {patch_text.printable(part.name)} ({part.size} bytes{whole})')
    if sys.stdout.isatty():
      print(patch_text.coloured(part, reading.full))
    else:
      print(patch_text.plain(part))
  print('\n'.join(summary(report)))
  if _OUT.value:
    page = patch_page.page(*report, documents=shown, full=reading.full)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_file(out, page)
    print(f'page: {out}')


def read(config: base.Config) -> list[Document]:
  """The file, or the first documents of the split, as far as the flags say."""
  room = max(_MEASURE.value, _MAX_BYTES.value)
  if _TEXT.value:
    found = pathlib.Path(_TEXT.value).read_bytes()
    return [Document(_TEXT.value, found[:room], len(found))]
  corpus = config.data.open(_SPLIT.value)
  documents = []
  for i, name in enumerate(corpus.names):
    if documents and not room:
      break
    part = corpus[i][:room].tobytes()
    documents.append(Document(name, part, len(corpus[i])))
    room -= len(part)
  return documents


def measure(run: restore.Run, documents: list[Document]) -> Reading:
  """Entropies of the documents by the model's own entropy model, if any."""
  ids_N, documents_N = patch_entropies.stream([d.text for d in documents])
  scorer = getattr(run.config.model, 'entropy', None)
  if scorer is None:
    rows = patch_check.Rows(ids_N[None], documents_N[None], None)
    return Reading(documents, rows, 0.0)
  window, context = extent(scorer, run.config.row_length)
  said = time.monotonic()

  def progress(done: int) -> None:
    nonlocal said
    if time.monotonic() - said > 10:
      said = time.monotonic()
      logging.info('entropies of %d of %d ids', done, len(ids_N))

  nats_N = patch_entropies.entropies(
    forward.pure(scorer),
    run.params['entropy'],
    ids_N,
    documents_N,
    window=window,
    context=context,
    progress=progress,
  )
  rows = patch_check.Rows(ids_N[None], documents_N[None], nats_N[None])
  return Reading(documents, rows, float(nats_N.max(initial=0)))


def extent(scorer: Any, row_length: int) -> tuple[int, int]:
  """Ids measured at a time and those read before them, as configs.stored."""
  if not isinstance(scorer, patched.LMEntropy):
    return row_length, max(scorer.sizes)
  windows = [None if m.n_global else m.window for m in scorer.lm.masks]
  context = row_length if None in windows else max(windows)
  longest = scorer.lm.max_length
  if longest is not None:
    context = min(context, longest // 2)
    row_length = min(row_length, longest - context)
  return row_length, context


def make_report(config: base.Config, reading: Reading) -> Report:
  """Statistics, room in the model's budget, and thresholds."""
  inner = patch_check.byte_latent_of(config.model)
  rows = reading.rows
  found = patch_check.statistics(inner.patching, rows)
  packed = pack(rows, config.row_length, inner.rows)
  room = patch_check.room(inner, packed)
  name = patch_check.knob(inner.patching.rule)
  facts = [
    ('rule', repr(inner.patching.rule)),
    ('max_length', f'{inner.patching.max_length}'),
    *patch_lengths.described(found),
    (
      'bytes without room',
      f'{room.overflow}, {room.overflow / max(room.ids, 1):.2%}'
      f' (reserve={inner.reserve} of rows of {config.row_length},'
      f' {inner.rows} together; {room.reserve} is enough)',
    ),
  ]
  source = _TEXT.value or f'split {_SPLIT.value} of {_CHECKPOINT.value}'
  return Report(
    title=patch_text.printable(f'Patches of {source}'),
    statistics=found,
    facts=facts,
    choices=patch_check.choose(inner.patching, rows) if found.bytes else [],
    knob=name and patch_check.field(config.model, f'patching.rule.{name}'),
  )


def pack(
  rows: patch_check.Rows, length: int, together: int
) -> patch_check.Rows:
  """One row cut into rows as training reads them, a multiple of `together`."""
  size = rows.ids_BT.shape[1]
  padding = [(0, 0), (0, -size % (length * together))]
  return patch_check.Rows(
    *(
      None if x is None else np.pad(x, padding).reshape(-1, length)
      for x in rows
    )
  )


def select(patching: Any, reading: Reading) -> list[patch_text.Shown]:
  """The documents to show, with patches and entropies cut out of the row."""
  rows, left = reading.rows, _MAX_BYTES.value
  closes_BT = patch_check.closes(patching, rows)
  number_N = patch_lengths.numbers(closes_BT, rows.documents_BT)[0]
  shown, start = [], 0
  for document in reading.documents[: _DOCUMENTS.value]:
    size = min(len(document.text), left)
    if shown and document.text and not size:
      break
    # The begin mark is a patch of its own; bytes follow it.
    patch_N = number_N[start + 1 : start + 1 + size] - number_N[start] - 1
    nats_N = None
    if rows.nats_BT is not None:
      nats_N = rows.nats_BT[0, start : start + 1 + size]
    shown.append(
      patch_text.Shown(
        document.name, document.text[:size], document.size, patch_N, nats_N
      )
    )
    start += len(document.text) + 2
    left -= size
  return shown


def summary(report: Report) -> list[str]:
  """Statistics, histogram and thresholds as lines."""
  lines = [report.title]
  lines += [f'  {name:22}{value}' for name, value in report.facts]
  most = max((count for *_, count in report.statistics.histogram), default=1)
  for low, high, count in report.statistics.histogram:
    span = f'{low}' if low == high else f'{low}-{high}'
    bar = '#' * round(40 * count / max(most, 1))
    lines.append(f'  {span:>9} bytes {count:>9}  {bar}'.rstrip())
  if report.choices:
    lines.append(f'mean length -> {report.knob} -> mean length found')
  for choice in report.choices:
    value = 'none' if choice.value is None else f'{choice.value}'
    lines.append(f'  {choice.wanted:9g}  {value:>12}  {choice.mean:.3f}')
  return lines


if __name__ == '__main__':
  command.run(main)
