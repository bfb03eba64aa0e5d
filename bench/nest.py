"""Nearest-neighbour decoding against plain decoding, and what mixing is worth.

  python -m bench.nest --checkpoint=runs/demo

First the bits per byte of documents near a key store and far from it, each byte
given those before it: by the model alone, and mixed with the keys of passages
that the bytes before call for (`bench.mixing`). Then speed, and what is made
after beginnings of near documents, by both ways (arXiv 2405.19325).
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from bench import mixing
from bench import quality
from bench import scoring
from bench import tables
from bench import timing
from configs import command
from configs import neighbours
from configs import prompts
from configs import restore
from evals import sample_quality
from models import forward
from samplers import chain
from samplers import engines
from samplers import key_store
from samplers import loop
from samplers import nearest
from samplers import retrieval
from training import host
from training import manifest

# What suits bytes, with much, some and little taken that the model doubts.
_BYTES = (
  'alpha=-0.1, tau=0.2, near_temperature=0.3, delta=0.7, span=8, passages=8'
)
_RULES = tuple(f'{_BYTES}, gamma={gamma}' for gamma in (0.005, 0.05, 0.5))


class Flags(NamedTuple):
  """The flags of the command."""

  checkpoint: flags.FlagHolder[str | None]
  judge: flags.FlagHolder[str | None]
  splits: flags.FlagHolder[list[str]]
  store: flags.FlagHolder[str | None]
  windows: flags.FlagHolder[int]
  prompt_bytes: flags.FlagHolder[int]
  new: flags.FlagHolder[int]
  texts: flags.FlagHolder[int]
  rounds: flags.FlagHolder[int]
  sampler: flags.FlagHolder[str]
  rule: flags.FlagHolder[list[str]]


def define_flags(own: flags.FlagValues = flags.FLAGS) -> Flags:
  """To be called before flags are parsed."""
  whole = functools.partial(
    flags.DEFINE_integer, lower_bound=1, flag_values=own
  )
  string = functools.partial(flags.DEFINE_string, flag_values=own)
  several = functools.partial(flags.DEFINE_list, flag_values=own)
  return Flags(
    string('checkpoint', None, 'Run directory.'),
    string('judge', None, 'Run of a larger model that scores what is made.'),
    several('splits', 'validation,test', 'Whose documents are taken.'),
    string('store', None, 'Key store; default nest_keys in the run directory.'),
    whole('windows', 48, 'Pieces of documents that the mixture is scored on.'),
    whole('prompt_bytes', 256, 'That are given, of a piece or of a text.'),
    whole('new', 128, 'Bytes that are scored, and tokens that are made.'),
    whole('texts', 4, 'Made side by side.'),
    whole('rounds', 3, 'Timed rounds.'),
    string('sampler', 'temperature(0.8)|top_p(0.95)', 'Of both sides.'),
    flags.DEFINE_multi_string(
      'rule', list(_RULES), 'As --nest_rule of sample.py.', flag_values=own
    ),
  )


def main(given: Flags) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('bench.nest'):
    if not given.checkpoint.value:
      raise ValueError(
        '--checkpoint is missing; name a run directory, the --workdir of'
        ' train.py.'
      )
    run = restore.restore(given.checkpoint.value)
    judge = quality.read_judge(given.judge.value, run, given.texts.value)
    sides = mixing.divide(_documents(run, given.splits.value))
    path = given.store.value or f'{given.checkpoint.value}/nest_keys'
    if not (pathlib.Path(path) / manifest.NAME).exists():
      options = key_store.Options(dtype='float32')
      key_store.build(pathlib.Path(path), run, sides.stored, options, say=print)
    rules = {text: neighbours.parse(text) for text in given.rule.value}
    corpus = neighbours.Corpus(
      neighbours.open_store(path, run), nearest.Nest(), retrieval.Retrieval()
    )
    size = given.prompt_bytes.value, given.new.value
    named = {
      'near': mixing.cut(sides.near, given.windows.value, *size),
      'far': mixing.cut(sides.far, given.windows.value, *size),
    }
    print(
      f'\n{given.windows.value} pieces of {size[1]} bytes after {size[0]};'
      f' store: {sum(len(t) for _, t in sides.stored):,} bytes of'
      f' {len(sides.stored)} documents.\n'
    )
    print(
      tables.markdown(list(mixing.mixtures(run, corpus, named))), flush=True
    )
    begun = mixing.cut(sides.near, given.texts.value, *size)
    contest = Contest(
      run, judge, corpus.store, chain.parse(given.sampler.value), size[1]
    )
    print(
      f'{given.texts.value} texts of {size[1]} tokens, prompt and retrieval'
      f' included; {given.sampler.value}.\n'
    )
    rows = contest.rows(rules, begun, given.rounds.value)
    print(tables.markdown(list(rows)))


def _documents(
  run: restore.Run, splits: Sequence[str]
) -> list[tuple[str, bytes]]:
  found = []
  for split in splits:
    corpus = run.config.data.open(split)
    texts = (bytes(corpus[i]) for i in range(len(corpus)))
    found += zip(corpus.names, texts, strict=True)
  return found


class Contest(NamedTuple):
  """A model, the store it may copy from, and what both sides do."""

  run: restore.Run
  judge: restore.Run | None
  store: Any
  sampler: chain.Chain
  tokens: int

  def rows(
    self, rules: Mapping[str, Any], begun: quality.Begun, rounds: int
  ) -> Iterator[dict[str, object]]:
    """One for the documents, one for plain decoding, one per rule."""
    runs = {'plain': lambda: self.plain(begun.prompts)}
    for name, (rule, search) in rules.items():
      corpus = neighbours.Corpus(self.store, rule, search)
      runs[name] = functools.partial(self.nest, corpus, begun.prompts)
    seconds = timing.interleaved(runs, rounds)
    yield self._row('the documents', begun, begun.ends)
    for name, make in runs.items():
      texts, state = make()
      made = sum(map(len, texts))
      row = self._row(name, begun, texts)
      row['bytes/s'] = timing.spread([made / s for s in seconds[name]])
      row['times plain'] = timing.ratio(seconds['plain'], seconds[name])
      if state is not None:
        copied, spans = int(state.accepted_B.sum()), int(state.spans_B.sum())
        total = int(state.target.length_B.sum())
        row['mean span'] = f'{copied / max(spans, 1):.1f}'
        row['copied'] = f'{copied / total:.0%}'
        row['tokens/round'] = f'{total / int(state.rounds_B.sum()):.2f}'
      yield row

  def plain(self, heads: Sequence[bytes]) -> tuple[list[bytes], None]:
    """What the sampler makes of every beginning."""
    model, rows = self._model(), self._rows(heads)
    state = loop.generate(
      forward.step(model),
      self.run.params,
      model.init_cache(len(heads), rows[0].shape[1] + self.tokens),
      *rows,
      self.sampler,
      num_tokens=self.tokens,
    )
    return self._texts(heads, state), None

  def nest(
    self, corpus: neighbours.Corpus, heads: Sequence[bytes]
  ) -> tuple[list[bytes], Any]:
    """The same with a corpus, and the state at its end."""
    plan = engines.Plan(self._rows(heads), self.tokens, self.tokens)
    engine = neighbours.engine(
      corpus, self._model(), self.run.params, plan, heads, self.sampler
    )
    state = engine.go_on(engine.state)
    return self._texts(heads, state.target), state

  def _model(self) -> Any:
    model = self.run.config.model
    return model.clone(wait=1) if getattr(model, 'wait', 1) > 1 else model

  def _rows(self, heads: Sequence[bytes]) -> Any:
    return prompts.rows(self.run.config.data.codec, heads, 1, 0)

  def _texts(self, heads: Sequence[bytes], state: loop.State) -> list[bytes]:
    loop.check(state)
    return prompts.made(
      self.run.config.data.codec, heads, 1, state.ids_BN, state.length_B
    )

  def _row(
    self, name: str, begun: quality.Begun, texts: Sequence[bytes]
  ) -> dict[str, object]:
    row: dict[str, object] = {'decoding': name}
    blank = ('bytes/s', 'times plain', 'mean span', 'copied', 'tokens/round')
    row |= dict.fromkeys(blank, '-')
    for label, run in (('model', self.run), ('judge', self.judge)):
      if run is not None:
        found = sample_quality.score(
          forward.pure(scoring.with_room(run.config.model)),
          run.params,
          run.config.data.codec,
          begun.prompts,
          texts,
        )
        row[f'bits/byte, {label}'] = (
          f'{found.bits_per_byte:.3f} +- {found.error:.3f}'
        )
    row['repeated 4-grams'] = f'{sample_quality.repetition(texts):.3f}'
    row['distinct-2'] = f'{sample_quality.distinct(texts, 2):.3f}'
    return row


if __name__ == '__main__':
  _given = define_flags()
  command.run(lambda _: main(_given))
