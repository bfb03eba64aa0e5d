"""Superposed Decoding against as many nucleus samples, of a trained model.

  python -m bench.superposed --checkpoint=runs/demo

Time of k drafts from one pass per token (arXiv 2405.18400), and of k samples by
top-p, one after another or as rows of one batch; and what the model itself
finds their perplexity. What drafts cost besides passes does not grow with the
model, so the time is also of wider models of the same kind, whose parameters
are random. Bytes are far surer than tokens, so the temperature of drafts is not
the published one.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from bench import quality
from bench import tables
from bench import timing
from configs import command
from configs import corpora
from configs import prompts
from configs import restore
from data import text
from evals import sample_quality
from models import forward
from models import lm
from models import superposition
from samplers import chain
from samplers import loop
from samplers import ngram_tables
from samplers import superposed
from training import host

_NUCLEUS = 'top_p(0.9)'
# Rows at a time that are timed.
_BATCHES = (1, 8)
_HEAD_WIDTH = 64


class Flags(NamedTuple):
  """The flags of the command."""

  checkpoint: flags.FlagHolder[str | None]
  split: flags.FlagHolder[str]
  drafts: flags.FlagHolder[int]
  new: flags.FlagHolder[int]
  reset: flags.FlagHolder[int]
  alpha: flags.FlagHolder[float]
  temperature: flags.FlagHolder[float]
  wider: flags.FlagHolder[list[str]]
  prompts: flags.FlagHolder[int]
  rounds: flags.FlagHolder[int]
  ngrams: flags.FlagHolder[str | None]
  ngram_bytes: flags.FlagHolder[int]


class Contest(NamedTuple):
  """A model and what both sides do with it.

  tokens: made per text. nucleus: the chain that draws.
  """

  run: restore.Run
  store: ngram_tables.Store
  rule: superposed.Superposed
  tokens: int
  nucleus: chain.Chain


def define_flags(own: flags.FlagValues = flags.FLAGS) -> Flags:
  """To be called before flags are parsed."""
  whole = functools.partial(flags.DEFINE_integer, flag_values=own)
  real = functools.partial(flags.DEFINE_float, flag_values=own)
  string = functools.partial(flags.DEFINE_string, flag_values=own)
  return Flags(
    string('checkpoint', None, 'Run directory.'),
    flags.DEFINE_enum(
      'split', 'test', text.SPLITS, 'Of the prompts.', flag_values=own
    ),
    whole('drafts', 3, 'k.', lower_bound=1),
    whole('new', 10, 'Tokens per text.', lower_bound=1),
    whole('reset', 0, 'One draft goes on after so many; 0: never.'),
    real('alpha', 0.54, "Share of the n-grams in a draft's score."),
    real('temperature', 0.5, "Of the model in a draft's score."),
    flags.DEFINE_list(
      'wider',
      ['512x8', '1024x8'],
      'Width x layers of the other models that are timed.',
      flag_values=own,
    ),
    whole('prompts', 64, 'Prompts that perplexity is of.', lower_bound=1),
    whole('rounds', 7, 'Timed rounds.', lower_bound=1),
    string('ngrams', None, 'Store; default ngrams.npz in the run directory.'),
    whole('ngram_bytes', 4_000_000, 'Of the train split.', lower_bound=1),
  )


def main(given: Flags) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('bench.superposed'):
    contest, begun = prepare(given)
    print(
      f'{given.drafts.value} texts of {given.new.value} tokens after a prompt'
      f' of {quality.PROMPT_BYTES} bytes, which is read too. Speed:\nmedian'
      f' (low-high) of {given.rounds.value} interleaved rounds.\n'
    )
    timed = []
    for name, one in (('the run', contest), *widened(contest, given)):
      for row in speeds(one, begun.prompts, given.rounds.value):
        timed.append({'model': name} | row)
    print(tables.markdown(timed))
    print(
      f'Perplexity per token under the model, {len(begun.prompts)} prompts;'
      ' bits per byte +- over texts.\n'
    )
    print(tables.markdown(list(perplexities(contest, begun))))


def prepare(given: Flags) -> tuple[Contest, quality.Begun]:
  """Reads the run, and builds its n-gram store if there is none."""
  checkpoint = given.checkpoint.value
  if not checkpoint:
    raise ValueError(
      '--checkpoint is missing; name a run directory, the --workdir of'
      ' train.py.'
    )
  rule = superposed.Superposed(
    drafts=given.drafts.value,
    alpha=given.alpha.value,
    temperature=given.temperature.value,
    reset=given.reset.value or None,
  )
  run = restore.restore(checkpoint)
  data = run.config.data
  data.prepare()
  begun = quality.cut(
    data.open(given.split.value), given.prompts.value, 4 * given.new.value
  )

  def documents() -> Iterator[np.ndarray]:
    corpus = data.open('train')
    named = zip(corpus.names, corpus, strict=True)
    some = corpora.first_bytes(named, given.ngram_bytes.value)
    return (ids_N for _, ids_N in corpora.spelled(data.codec, some))

  store = ngram_tables.load_or_build(
    given.ngrams.value or f'{checkpoint}/ngrams.npz',
    corpora.vocabulary(data.codec),
    documents,
    say=print,
  )
  store = jax.tree.map(jax.numpy.asarray, store)
  nucleus = chain.parse(_NUCLEUS)
  return Contest(run, store, rule, given.new.value, nucleus), begun


def widened(contest: Contest, given: Flags) -> Iterator[tuple[str, Contest]]:
  """The same with wider byte models, one after the other."""
  run = contest.run
  if not isinstance(run.config.model, lm.ByteLM):
    return
  for shape in given.wider.value:
    found = re.fullmatch(r'(\d+)x(\d+)', shape)
    width, layers = map(int, found.groups()) if found else (0, 0)
    if not layers or not width or width % _HEAD_WIDTH:
      raise ValueError(
        f'--wider={shape} must be a multiple of {_HEAD_WIDTH} and a number of'
        ' layers, as 512x8.'
      )
    heads = width // _HEAD_WIDTH
    model = run.config.model.clone(
      width=width,
      layers=layers,
      heads=heads,
      key_value_heads=heads,
      hidden=3 * width,
    )
    ids_BT = jax.numpy.zeros((1, 1), int)
    params = jax.jit(model.init)(jax.random.key(0), ids_BT)['params']
    config = dataclasses.replace(run.config, model=model)
    yield (
      f'{width} x {layers}',
      contest._replace(run=run._replace(config=config, params=params)),
    )


def speeds(
  contest: Contest, texts: Sequence[bytes], rounds: int
) -> Iterator[dict[str, object]]:
  """One row per number of prompts at a time."""
  count = contest.rule.drafts
  for batch in _BATCHES:
    some = [texts[i % len(texts)] for i in range(batch)]
    seconds = timing.interleaved(
      {
        'superposed': lambda some=some: draft(contest, some),
        'after another': lambda some=some: [
          sample(contest, some, 1) for _ in range(count)
        ],
        'together': lambda some=some: sample(contest, some, count),
      },
      rounds,
    )
    mine = timing.spread(seconds['superposed']).median
    yield {
      'prompts': batch,
      'superposed, ms': f'{1e3 * mine:.2f}',
      'speed over samples one after another': timing.ratio(
        seconds['after another'], seconds['superposed']
      ),
      'over samples in one batch': timing.ratio(
        seconds['together'], seconds['superposed']
      ),
    }


def perplexities(
  contest: Contest, begun: quality.Begun
) -> Iterator[dict[str, object]]:
  """Of all drafts and all samples, of the first of each prompt, the best."""
  count = contest.rule.drafts
  heads = [text for text in begun.prompts for _ in range(count)]
  for name, texts in (
    (f'superposed, {count} drafts', draft(contest, begun.prompts)),
    (f'{_NUCLEUS}, {count} samples', sample(contest, begun.prompts, count)),
  ):
    every = _score(contest, heads, texts)
    first = _score(contest, begun.prompts, texts[::count])
    chosen = _score(contest, begun.prompts, _best(contest, heads, texts))
    yield {
      'texts': name,
      'perplexity': f'{every.perplexity:.2f}',
      'of the first of each prompt': f'{first.perplexity:.2f}',
      'of the best of each prompt': f'{chosen.perplexity:.2f}',
      'bits per byte': f'{every.bits_per_byte:.3f} +- {every.error:.3f}',
      'distinct-2': f'{sample_quality.distinct(texts, 2):.3f}',
    }


def draft(contest: Contest, texts: Sequence[bytes]) -> list[bytes]:
  """The k drafts of every text, best first."""
  run, size = contest.run, contest.tokens
  rows, state = _read(contest, texts, 1)
  found = superposed.search(
    forward.step(_model(run)),
    superposed.Mixer(*superposition.mixing(_model(run))),
    run.params,
    state,
    rows[:2],
    contest.store,
    contest.rule,
    num_tokens=size,
  )
  ids_BN = np.asarray(found.ids_BMN)[:, : contest.rule.drafts].reshape(-1, size)
  lengths_B = np.full(len(ids_BN), size)
  return prompts.made(
    run.config.data.codec, texts, contest.rule.drafts, ids_BN, lengths_B
  )


def sample(contest: Contest, texts: Sequence[bytes], count: int) -> list[bytes]:
  """So many samples of every text."""
  run = contest.run
  _, state = _read(contest, texts, count)
  state = loop.decode(
    forward.step(_model(run)),
    run.params,
    state,
    contest.nucleus,
    num_steps=contest.tokens,
  )
  return prompts.made(
    run.config.data.codec, texts, count, state.ids_BN, state.length_B
  )


def _read(contest: Contest, texts: Sequence[bytes], count: int) -> Any:
  """The rows of the prompts, and the state after them."""
  run, size = contest.run, contest.tokens
  rows = prompts.rows(run.config.data.codec, texts, count, 0)
  model = _model(run)
  cache = model.init_cache(len(rows[0]), rows[0].shape[1] + size)
  state = loop.prefill(
    forward.step(model), run.params, cache, *rows, capacity=size
  )
  return rows, state


def _model(run: restore.Run) -> Any:
  """The model, with the logits of every step at once."""
  model = run.config.model
  return model.clone(wait=1) if getattr(model, 'wait', 1) > 1 else model


def _score(
  contest: Contest, heads: Sequence[bytes], texts: Sequence[bytes]
) -> sample_quality.Score:
  return sample_quality.score(
    forward.pure(contest.run.config.model),
    contest.run.params,
    contest.run.config.data.codec,
    heads,
    texts,
  )


def _best(
  contest: Contest, heads: Sequence[bytes], texts: Sequence[bytes]
) -> list[bytes]:
  """Of the texts of each prompt the one that the model finds likeliest."""
  spelling, count = contest.run.config.data.codec, contest.rule.drafts
  nats_N = sample_quality.nats(
    forward.pure(contest.run.config.model),
    contest.run.params,
    [spelling.prompt(head) for head in heads],
    [spelling.encode(text) for text in texts],
  )
  places = np.argmin(nats_N.reshape(-1, count), axis=1)
  return [texts[i * count + place] for i, place in enumerate(places)]


if __name__ == '__main__':
  _given = define_flags()
  command.run(lambda _: main(_given))
