"""Builds the key store that nearest-neighbour decoding looks things up in.

python -m samplers.key_store --checkpoint=runs/demo --out=runs/demo/keys
python -m samplers.key_store --checkpoint=runs/demo --out=/tmp/notes \\
  --files='notes/**/*.txt'

It holds a key for every id of a corpus: the run's own train split, another
config's or files. Keys take width x 2 bytes per id in bfloat16, which for bytes
is some hundred times the corpus: take part of a large one. A build that was
stopped goes on when its command is given again.

Passages of 256 ids are what is kept for a prompt. The paper's 200 tokens are
some 800 bytes, but what is searched at every step grows with them, and 256
bytes still hold several statements.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import cluster
from configs import command
from configs import corpora
from configs import neighbours
from configs import restore
from data import codec
from models import key_states
from samplers import key_files
from samplers import retrieval
from training import host
from training import manifest
from training import processes


class Options(NamedTuple):
  """How a store is made; window None is the run's row length.

  dtype, passage, window: as samplers.key_files.Settings. A document's windows
  overlap by half. rows: read at a time. shard: bytes of keys per file, about.
  """

  dtype: str = 'bfloat16'
  passage: int = 256
  window: int | None = None
  rows: int = 8
  shard: int = 64 << 20


class Flags(NamedTuple):
  """The flags of the command."""

  corpus: corpora.Flags
  dtype: flags.FlagHolder[str]
  passage: flags.FlagHolder[int]
  window: flags.FlagHolder[int | None]
  cluster: cluster.Flags


class _Piece(NamedTuple):
  """Ids start to stop - 1 of the store; keys are kept from `keep` on."""

  start: int
  stop: int
  keep: int


def define_flags(own: flags.FlagValues = flags.FLAGS) -> Flags:
  """To be called before flags are parsed."""
  whole = functools.partial(
    flags.DEFINE_integer, lower_bound=1, flag_values=own
  )
  default = Options()
  return Flags(
    corpora.define_flags(
      own,
      'Run directory, whose states are the keys.',
      'Directory of the store.',
    ),
    flags.DEFINE_enum(
      'dtype',
      default.dtype,
      key_files.DTYPES,
      'Of the keys.',
      flag_values=own,
    ),
    whole('passage', default.passage, 'Ids per passage.'),
    whole('window', None, 'Ids read at once; default the row length trained.'),
    cluster.define_flags(flag_values=own),
  )


def main(given: Flags) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('samplers.key_store'):
    corpora.check(given.corpus, 'a directory')
    cluster.join(given.cluster)
    run = restore.restore(given.corpus.checkpoint.value)
    options = Options(
      given.dtype.value, given.passage.value, given.window.value
    )
    documents = corpora.read(run, given.corpus)
    path = pathlib.Path(given.corpus.out.value)
    say = print if processes.is_first() else lambda _: None
    build(path, run, documents, options, say=say)


def build(
  path: pathlib.Path,
  run: restore.Run,
  documents: corpora.Documents,
  options: Options,
  *,
  say: Callable[[str], object] = lambda _: None,
) -> None:
  """Makes a store, or the rest of one; ValueError where that cannot be.

  The processes of a job share the files of keys; process 0 writes the others.
  say: is told how far it is.
  """
  if (path / manifest.NAME).exists():
    raise ValueError(
      f'--out={path} is a finished store already; remove it or name another'
    )
  settings = _settings(run, options)
  spelling = run.config.data.codec
  spelled = corpora.spelled(spelling, documents)
  processes.first(
    'write the ids', lambda: key_files.begin(path, settings, spelled)
  )
  texts = key_files.read_texts(path, settings)
  rows = list(_rows(texts.offsets, settings))
  size = settings.width * jnp.dtype(settings.dtype).itemsize
  per_shard = max(options.shard // (size * settings.window * options.rows), 1)
  per_shard *= options.rows
  read = _reader(run, settings, spelling, texts)
  counts, began, made = [], time.monotonic(), 0
  for number, first in enumerate(range(0, len(rows), per_shard)):
    part = rows[first : first + per_shard]
    counts.append(sum(p.stop - p.keep for row in part for p in row))
    if key_files.has_shard(path, number):
      continue
    made += counts[-1]
    if number % jax.process_count() != jax.process_index():
      continue
    key_ND = np.concatenate(
      [
        read(part[start : start + options.rows], options.rows)
        for start in range(0, len(part), options.rows)
      ]
    )
    key_files.write_shard(path, number, key_ND)
    total, pace = len(texts.ids_N), (time.monotonic() - began) / made
    left = pace * (total - sum(counts)) / 60
    say(f'{sum(counts):,} of {total:,} keys, about {left:.0f} min left')
  processes.meet('make the keys')
  processes.first(
    'index the passages',
    lambda: say(_finish(path, settings, spelling, texts, counts)),
  )


def _finish(
  path: pathlib.Path,
  settings: key_files.Settings,
  spelling: codec.Codec,
  texts: key_files.Texts,
  counts: list[int],
) -> str:
  """Completes a store that has all its keys; says what it holds."""
  places = key_files.cut(texts.offsets, settings.passage)
  held = retrieval.index(_passage_bytes(spelling, texts, places))
  header = key_files.finish(path, settings, counts, held._asdict())
  manifest.write(path, header)
  total = sum(file.stat().st_size for file in path.iterdir())
  return (
    f'{path}: {len(texts.ids_N):,} keys of {settings.width} numbers,'
    f' {len(texts.offsets) - 1:,} documents, {len(places.start_P):,} passages,'
    f' {total / 1e6:.1f} MB'
  )


def _settings(run: restore.Run, options: Options) -> key_files.Settings:
  model = run.config.model
  width = key_states.width(model)  # ValueError for a model without such states
  window = options.window or run.config.row_length
  if model.max_length is not None:
    window = min(window, model.max_length)
  return key_files.Settings(
    model=neighbours.fingerprint(run),
    vocabulary_size=run.config.data.codec.vocabulary_size,
    width=width,
    dtype=options.dtype,
    passage=options.passage,
    window=window,
    context=window // 2,
  )


def _rows(
  offsets: np.ndarray, settings: key_files.Settings
) -> Iterator[list[_Piece]]:
  """All ids in their order, cut into rows of at most `window` ids."""
  window, row, room = settings.window, [], settings.window
  for start, stop in zip(
    offsets[:-1].tolist(), offsets[1:].tolist(), strict=True
  ):
    keep = start
    while keep < stop:
      piece = _Piece(max(start, keep - settings.context), 0, keep)
      piece = piece._replace(stop=min(piece.start + window, stop))
      if piece.stop - piece.start > room:
        yield row
        row, room = [], window
      row.append(piece)
      room -= piece.stop - piece.start
      keep = piece.stop
  if row:
    yield row


def _reader(
  run: restore.Run,
  settings: key_files.Settings,
  spelling: codec.Codec,
  texts: key_files.Texts,
) -> Callable[[list[list[_Piece]], int], np.ndarray]:
  """From some rows, filled up to a number of them, to the keys they keep."""
  step = key_states.step(key_states.for_rows(run.config.model))
  starts = set(texts.offsets.tolist())

  def read(rows: list[list[_Piece]], count: int) -> np.ndarray:
    shape = count, settings.window
    ids_BT, documents_BT = (np.zeros(shape, np.int32) for _ in range(2))
    keeps_BT = np.zeros(shape, bool)
    for row, pieces in enumerate(rows):
      column = 0
      for number, (start, stop, keep) in enumerate(pieces, start=1):
        part = slice(column, column + stop - start)
        # The id that a key is read after is the one before that it predicts.
        ids_BT[row, part] = texts.ids_N[np.arange(start, stop) - 1]
        if start in starts:
          ids_BT[row, column] = spelling.bos
        documents_BT[row, part] = number
        keeps_BT[row, column + keep - start : part.stop] = True
        column = part.stop
    key_BTD = _keys(step, settings.dtype, run.params, ids_BT, documents_BT)
    return np.asarray(key_BTD)[keeps_BT]

  return read


@functools.partial(jax.jit, static_argnames=('step', 'dtype'))
def _keys(
  step: Callable[..., Any],
  dtype: str,
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
) -> jax.Array:
  (_, key_BTD), _ = step(params, ids_BT, documents_BT)
  return key_BTD.astype(dtype)


def _passage_bytes(
  spelling: codec.Codec, texts: key_files.Texts, places: key_files.Passages
) -> list[bytes]:
  return [
    spelling.decode(
      texts.ids_N[start : start + length],
      begins=start == texts.offsets[document],
    )
    for document, start, length in zip(*places, strict=True)
  ]


if __name__ == '__main__':
  _given = define_flags()
  command.run(lambda _: main(_given))
