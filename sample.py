"""Continues prompts with the model of a run, printing text as it is made.

python sample.py --checkpoint=runs/demo --prompt='def read(' --num_bytes=400

Other ways than drawing: --beams, --contrastive, --superposed; --draft draws
faster; --nest copies from a corpus and says from where.
"""

import codecs
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import command
from configs import corpora
from configs import neighbours
from configs import output_layer
from configs import prompts
from configs import restore
from configs import traces
from configs import ways
from data import codec
from models import forward
from models import patched
from models import superposition
from samplers import barring
from samplers import bat
from samplers import chain
from samplers import constraints
from samplers import engines
from samplers import ngram_tables
from samplers import stop_strings
from samplers import superposed
from samplers import trace
from training import host

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
_PROMPT = flags.DEFINE_multi_string(
  'prompt', [''], 'Text to continue; repeat the flag for several prompts.'
)
_NUM_BYTES = flags.DEFINE_integer(
  'num_bytes', 256, 'Bytes to make per sample.', lower_bound=1
)
_NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples', 1, 'Samples per prompt.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Same seed, same text.')
_SAMPLER = flags.DEFINE_string(
  'sampler', None, "As 'temperature(0.8)|top_p(0.95)'; or else the run's."
)
_STOP = flags.DEFINE_multi_string(
  'stop', [], 'Text that ends a sample and is not shown; may be repeated.'
)
_LAMBDA = flags.DEFINE_string('lambda', None, restore.LIMIT_HELP)
_WAY = ways.define_flags()
_TRACE = flags.DEFINE_string(
  'trace',
  None,
  'JSON file for entropy, kept ids and probability per token;'
  ' a page to look at is written beside it.',
)

# Bytes between two prints: small enough to feel live, large enough to be fast.
_CHUNK = 16


class Job(NamedTuple):
  """What to sample from, and what to continue."""

  model: Any
  params: Any
  sampler: chain.Chain
  codec: codec.Codec
  prompts: list[bytes]
  stops: stop_strings.StopStrings
  draft: engines.Source | None
  data: Any
  corpus: neighbours.Corpus | None


def prepare() -> Job:
  """Reads the flags and the checkpoint; ValueError if they do not fit."""
  if not _CHECKPOINT.value:
    raise ValueError(
      '--checkpoint is missing; name a run directory, the --workdir of'
      ' train.py.'
    )
  ways.check(_WAY, samples=_NUM_SAMPLES.value, sampler=_SAMPLER.value)
  if _TRACE.value and pathlib.Path(_TRACE.value).suffix != '.json':
    raise ValueError(
      f'--trace={_TRACE.value} must end in .json; its page ends in .html'
    )
  sampler = _SAMPLER.value and chain.parse(_SAMPLER.value)
  # Command-line bytes that are no UTF-8 arrive as surrogates.
  texts = [p.encode('utf-8', 'surrogateescape') for p in _PROMPT.value]
  stops = stop_strings.StopStrings(
    tuple(s.encode('utf-8', 'surrogateescape') for s in _STOP.value)
  )
  config, params, _ = restore.for_decoding(_CHECKPOINT.value, _LAMBDA.value)
  name = config.data.codec
  longest = max(len(name.prompt(text)) for text in texts) - 1
  check_window(config.model, longest)
  draft = read_draft(config, params, longest) if _WAY.draft.value else None
  sampler = sampler or config.sampler
  constraints.check(sampler.rules, name.vocabulary_size)
  rules = bat.attach(
    sampler.rules, lambda: output_layer.find(config.model, params)
  )
  sampler = dataclasses.replace(sampler, rules=rules)
  corpus = None
  if _WAY.nest.value:  # Keys are of the parameters as they are stored.
    run = restore.restore(_CHECKPOINT.value, limit=_LAMBDA.value)
    corpus = neighbours.read(_WAY.nest.value, run, _WAY.nest_rule.value)
  job = config.model, params, sampler, name, texts, stops, draft
  return Job(*job, config.data, corpus)


def read_draft(config: Any, params: Any, longest: int) -> engines.Source:
  """What --draft names; ValueError if it does not fit the model."""
  if _WAY.draft.value == 'self':
    step = patched.ahead(unhurried(config.model))
    return engines.Source(step, params, lambda *_: None)
  run = restore.for_decoding(_WAY.draft.value)
  if run.config.data.codec != config.data.codec:
    raise ValueError(
      f'--draft={_WAY.draft.value} has another vocabulary than --checkpoint='
      f'{_CHECKPOINT.value}; train it on the same data.codec'
    )
  check_window(run.config.model, longest)
  return read_model(unhurried(run.config.model), run.params)


def check_window(model: Any, longest: int) -> None:
  """ValueError if a prompt of so many ids and the rest do not fit a model."""
  drafted = _WAY.draft_tokens.value + 1 if _WAY.draft.value else 0
  window = model.max_length
  if window is not None and 1 + longest + _NUM_BYTES.value + drafted > window:
    room = window - 1 - longest - drafted
    way_out = f'pass --num_bytes={room} or less' if room > 0 else 'shorten it'
    extra = f', {drafted} drafted' if drafted else ''
    raise ValueError(
      f'--prompt of {longest} ids, its start mark{extra} and '
      f"--num_bytes={_NUM_BYTES.value} exceed the model's window of {window}; "
      f'{way_out}'
    )


def start(job: Job) -> engines.Engine:
  """Feeds every prompt, once per sample; what goes on."""
  count = _NUM_SAMPLES.value
  at_once = _WAY.beams.value is not None or _WAY.superposed.value is not None
  rows = prompts.rows(
    job.codec, job.prompts, 1 if at_once else count, _SEED.value
  )
  plan = engines.Plan(
    rows, _NUM_BYTES.value, _CHUNK, job.codec.stops, barred(job)
  )
  source = read_model(job.model, job.params)
  if job.draft is None and not ways.is_search(_WAY) and job.corpus is None:
    return engines.draws(source, plan, job.sampler)
  model = unhurried(job.model)
  if job.corpus is not None:
    texts = [text for text in job.prompts for _ in range(count)]
    return neighbours.engine(
      job.corpus, model, job.params, plan, texts, job.sampler
    )
  source = read_model(model, job.params)
  if _WAY.beams.value is not None:
    return engines.beams(
      source,
      plan,
      count=_WAY.beams.value,
      shown=count,
      length_power=_WAY.length_power.value,
    )
  if _WAY.superposed.value is not None:
    rule = ways.superposed_rule(_WAY)
    mixer = superposed.Mixer(*superposition.mixing(job.model))
    store = read_ngrams(job)
    return engines.superposes(source, mixer, plan, store, rule, shown=count)
  if _WAY.contrastive.value is not None:
    return engines.contrasts(
      source._replace(step=forward.hidden_step(unhurried(job.model))),
      plan,
      alpha=_WAY.contrastive.value,
      candidates=_WAY.candidates.value,
    )
  return engines.drafts(
    source, job.draft, plan, job.sampler, draft_tokens=_WAY.draft_tokens.value
  )


def read_ngrams(job: Job) -> ngram_tables.Store:
  """What --ngrams names, made from the train split if it is not there."""

  def documents() -> Iterator[np.ndarray]:
    corpus = job.data.open('train')
    named = zip(corpus.names, corpus, strict=True)
    return (ids_N for _, ids_N in corpora.spelled(job.codec, named))

  return ngram_tables.load_or_build(
    _WAY.ngrams.value,
    corpora.vocabulary(job.codec),
    documents,
    say=lambda line: print(line, file=sys.stderr, flush=True),
  )


def barred(job: Job) -> bytes:
  """Ids that no text may have."""
  return barring.silent(job.codec.lengths_V, job.codec.stops)


def unhurried(model: Any) -> Any:
  """The model with the logits of every step at once, if it is not like that."""
  return model.clone(wait=1) if getattr(model, 'wait', 1) > 1 else model


def read_model(model: Any, params: Any) -> engines.Source:
  return engines.Source(forward.step(model), params, model.init_cache)


def write(job: Job) -> None:
  """Streams the first sample, then prints the others and the speed."""
  engine = start(job)
  state, seen = engine.state, engine.see(engine.state)
  text = codecs.getincrementaldecoder('utf-8')('replace')
  show(header(job, 0) + text.decode(job.prompts[0]))
  shown, progress = 0, []
  made = prompts.Growing(
    job.codec, job.prompts, _NUM_SAMPLES.value, job.stops, _NUM_BYTES.value
  )
  texts = made.texts
  # An id may stand for several bytes, so there may be enough before the end.
  while not np.all(seen.done_B) and min(map(len, texts)) < _NUM_BYTES.value:
    state = engine.go_on(state)
    seen = engine.see(state)
    made.add(seen.ids_BN, seen.length_B)
    if made.stopped_B.any():
      state = engine.stop(state, made.stopped_B)
      seen = engine.see(state)
    # What may begin a stop string waits; the end shows it.
    show(text.decode(texts[0][shown : made.certain[0]]))
    shown = made.certain[0]
    progress.append((time.perf_counter(), sum(map(len, texts))))
  show(text.decode(texts[0][shown:], final=True) + '\n')
  missing = set(find_missing(seen))
  for row in sorted(set(range(1, len(texts))) - missing):
    whole = job.prompts[row // _NUM_SAMPLES.value] + texts[row]
    show(header(job, row) + whole.decode('utf-8', 'replace') + '\n')
  (first_time, first), (last_time, last) = progress[0], progress[-1]
  line = f'{last} bytes'
  if last > first:  # The first chunk is mostly compilation.
    speed = (last - first) / (last_time - first_time)
    line += f', {speed:.0f} bytes/s once compiled'
  if job.draft is not None or job.corpus is not None:
    accepted, drafted = (
      int(x.sum()) for x in (state.accepted_B, state.drafted_B)
    )
    line += f', {accepted / max(drafted, 1):.0%} of the drafted tokens accepted'
  print(line, file=sys.stderr)
  sources = None
  if job.corpus is not None:
    sources = neighbours.spans(job.corpus.store, job.codec, state)
    for row, spans in enumerate(sources):
      for told in neighbours.described(spans):
        print(f'{header(job, row)}{told}', file=sys.stderr)
  if _TRACE.value:
    write_trace(job, seen, sources)


def find_missing(seen: engines.Seen) -> list[int]:
  """Rows that a search found no text for; ValueError if it found none."""
  if seen.missing_B is None:
    return []
  rows = np.flatnonzero(seen.missing_B).tolist()
  if len(rows) == len(seen.missing_B):
    raise ValueError(
      'the search found no text that its model and n-grams leave possible; ask'
      ' for more drafts or candidates'
    )
  if rows:
    print(
      f'{len(rows)} of {len(seen.missing_B)} texts are left out, for the search'
      ' found no more that are possible',
      file=sys.stderr,
    )
  return rows


def write_trace(job: Job, seen: engines.Seen, sources: Any) -> None:
  """Writes the JSON file and the page of --trace."""
  count, model = _NUM_SAMPLES.value, unhurried(job.model)
  rows = prompts.rows(job.codec, job.prompts, count, _SEED.value)
  is_apart = ways.is_search(_WAY) or job.corpus is not None
  found = trace.replay(
    barring.over(forward.step(model), barred(job)),
    job.params,
    model.init_cache(len(rows[0]), int(rows[1].max()) + seen.ids_BN.shape[1]),
    rows,
    jnp.asarray(seen.ids_BN),
    jnp.asarray(seen.length_B),
    chain.Chain() if is_apart else job.sampler,
  )
  sampler = _SAMPLER.value or "the run's"
  if is_apart:
    sampler = 'none: what the model alone thinks of the text'
  paths = traces.write(
    _TRACE.value,
    found,
    traces.Texts(job.prompts, count, seen.ids_BN, seen.length_B, sources),
    job.codec,
    title=f'Samples of {_CHECKPOINT.value}',
    sampler=sampler,
  )
  print(f'trace: {paths[0]}, {paths[1]}', file=sys.stderr)


def header(job: Job, row: int) -> str:
  """Names a sample if there are several."""
  if len(job.prompts) * _NUM_SAMPLES.value == 1:
    return ''
  prompt, sample = divmod(row, _NUM_SAMPLES.value)
  return f'--- prompt {prompt + 1}, sample {sample + 1}\n'


def show(text: str) -> None:
  print(text, end='', flush=True)


def main(argv: Sequence[str]) -> None:
  del argv
  command.quiet()
  host.use_cores()
  try:
    with command.explained('sample.py'):
      write(prepare())
  except BrokenPipeError:
    # The reader, as `head`, has enough; keep Python from flushing at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
  command.run(main)
