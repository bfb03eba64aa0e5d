"""Builds the n-gram store that superposed decoding tells drafts apart by.

python -m samplers.ngram_store --checkpoint=runs/demo --out=runs/ngrams.npz
python -m samplers.ngram_store --checkpoint=runs/demo --out=/tmp/notes.npz \\
  --files='notes/**/*.txt'

It counts what follows every one to five ids of a corpus: the run's own train
split, another config's or files, in the ids of the run's codec. A store takes
12 bytes for every different context and n-gram: take part of a large corpus.
"""

import time
from collections.abc import Iterator

import numpy as np
from absl import flags

from configs import command
from configs import corpora
from configs import restore
from samplers import ngram_tables
from training import host


def define_flags(own: flags.FlagValues = flags.FLAGS) -> corpora.Flags:
  """To be called before flags are parsed."""
  return corpora.define_flags(
    own, 'Run directory, whose codec it is.', 'File of the store, in .npz.'
  )


def main(given: corpora.Flags) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('samplers.ngram_store'):
    corpora.check(given, 'a file, as ngrams.npz')
    path = ngram_tables.checked(given.out.value)
    if path.exists():
      raise ValueError(
        f'--out={path} is there already; remove it or name another'
      )
    run = restore.restore(given.checkpoint.value)
    spelling, began = run.config.data.codec, time.monotonic()
    documents = corpora.spelled(spelling, corpora.read(run, given))
    counts: list[int] = []

    def ids() -> Iterator[np.ndarray]:
      for _, ids_N in documents:
        counts.append(len(ids_N))
        yield ids_N

    store = ngram_tables.build(
      ids(),
      say=lambda line: print(
        f'{line}, {time.monotonic() - began:.0f} s', flush=True
      ),
    )
    ngram_tables.save(path, store, corpora.vocabulary(spelling))
    print(
      f'{path}: {sum(counts):,} ids of {len(counts):,} documents,'
      f' {len(store.contexts.count_M):,} contexts,'
      f' {len(store.pairs.count_M):,} n-grams,'
      f' {path.stat().st_size / 1e6:.1f} MB'
    )


if __name__ == '__main__':
  _given = define_flags()
  command.run(lambda _: main(_given))
