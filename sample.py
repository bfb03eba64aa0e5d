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
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import command
from configs import neighbours
from configs import output_layer
from configs import prompts
from configs import restore
from configs import traces
from data import codec
from models import forward
from models import patched
from models import superposition
from samplers import bat
from samplers import chain
from samplers import constraints
from samplers import contrastive
from samplers import engines
from samplers import ngram_store
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
_DRAFT = flags.DEFINE_string(
  'draft',
  None,
  "Run of a smaller model that drafts, same law; 'self': a BLT's byte layers.",
)
_DRAFT_TOKENS = flags.DEFINE_integer(
  'draft_tokens', 4, 'Tokens per draft.', lower_bound=1
)
_BEAMS = flags.DEFINE_integer(
  'beams', None, 'Beam search with so many; shows the num_samples best texts.'
)
_LENGTH_POWER = flags.DEFINE_float(
  'length_power', 1.0, 'Of beams: log p over the length to this power.'
)
_CONTRASTIVE = flags.DEFINE_float(
  'contrastive', None, 'Contrastive search with this alpha, as 0.6.'
)
_CANDIDATES = flags.DEFINE_integer(
  'candidates', 5, 'Of contrastive search: tokens that are looked at.'
)
_SUPERPOSED = flags.DEFINE_integer(
  'superposed', None, 'Superposed decoding with so many drafts, as 3.'
)
_NGRAMS = flags.DEFINE_string(
  'ngrams',
  None,
  "Of --superposed: file of n-gram counts, made from the run's train split if"
  ' it is not there.',
)
_RESET = flags.DEFINE_integer(
  'reset', 10, 'Of --superposed: one draft goes on after so many; 0 is never.'
)
_NEST = flags.DEFINE_string(
  'nest', None, 'Key store of samplers.key_store, whose corpus is copied from.'
)
_NEST_RULE = flags.DEFINE_string(
  'nest_rule', '', "Of --nest: its settings, as 'gamma=0.1, passages=20'."
)
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
  check_ways()
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
  draft = read_draft(config, params, longest) if _DRAFT.value else None
  sampler = sampler or config.sampler
  constraints.check(sampler.rules, name.vocabulary_size)
  rules = bat.attach(
    sampler.rules, lambda: output_layer.find(config.model, params)
  )
  sampler = dataclasses.replace(sampler, rules=rules)
  corpus = None
  if _NEST.value:  # Keys are of the parameters as they are stored.
    run = restore.restore(_CHECKPOINT.value, limit=_LAMBDA.value)
    corpus = neighbours.read(_NEST.value, run, _NEST_RULE.value)
  job = config.model, params, sampler, name, texts, stops, draft
  return Job(*job, config.data, corpus)


def check_ways() -> None:
  """ValueError for flags that contradict each other."""
  ways = {
    '--draft': _DRAFT.value,
    '--beams': _BEAMS.value,
    '--contrastive': _CONTRASTIVE.value,
    '--superposed': _SUPERPOSED.value,
    '--nest': _NEST.value,
  }
  if _TRACE.value and pathlib.Path(_TRACE.value).suffix != '.json':
    raise ValueError(
      f'--trace={_TRACE.value} must end in .json; its page ends in .html'
    )
  given = [name for name, value in ways.items() if value is not None]
  if len(given) > 1:
    raise ValueError(f'{given[0]} and {given[1]} exclude each other; drop one')
  if is_search() and _SAMPLER.value:
    raise ValueError(f'{given[0]} draws nothing, so that --sampler has no use')
  drafts = _SUPERPOSED.value
  if drafts is not None:
    if not _NGRAMS.value:
      raise ValueError('--superposed needs --ngrams, a file of n-gram counts')
    if not drafts >= _NUM_SAMPLES.value:
      raise ValueError(
        f'--superposed={drafts} must be at least --num_samples='
        f'{_NUM_SAMPLES.value}, of which every one is a draft'
      )
  if _BEAMS.value is not None and _BEAMS.value < _NUM_SAMPLES.value:
    raise ValueError(
      f'--beams={_BEAMS.value} must be at least --num_samples='
      f'{_NUM_SAMPLES.value}, of which every one is a beam'
    )
  if _CONTRASTIVE.value is not None:
    contrastive.check(_CONTRASTIVE.value, _CANDIDATES.value)
    if _NUM_SAMPLES.value > 1:
      raise ValueError('--contrastive gives one text; drop --num_samples')


def read_draft(config: Any, params: Any, longest: int) -> engines.Source:
  """What --draft names; ValueError if it does not fit the model."""
  if _DRAFT.value == 'self':
    step = patched.ahead(unhurried(config.model))
    return engines.Source(step, params, lambda *_: None)
  run = restore.for_decoding(_DRAFT.value)
  if run.config.data.codec != config.data.codec:
    raise ValueError(
      f'--draft={_DRAFT.value} has another vocabulary than --checkpoint='
      f'{_CHECKPOINT.value}; train it on the same data.codec'
    )
  check_window(run.config.model, longest)
  return read_model(unhurried(run.config.model), run.params)


def check_window(model: Any, longest: int) -> None:
  """ValueError if a prompt of so many ids and the rest do not fit a model."""
  drafted = _DRAFT_TOKENS.value + 1 if _DRAFT.value else 0
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
  at_once = _BEAMS.value is not None or _SUPERPOSED.value is not None
  rows = prompts.rows(
    job.codec, job.prompts, 1 if at_once else count, _SEED.value
  )
  plan = engines.Plan(rows, _NUM_BYTES.value, _CHUNK, job.codec.stops)
  source = read_model(job.model, job.params)
  if job.draft is None and not is_search() and job.corpus is None:
    return engines.draws(source, plan, job.sampler)
  model = unhurried(job.model)
  if job.corpus is not None:
    texts = [text for text in job.prompts for _ in range(count)]
    return neighbours.engine(
      job.corpus, model, job.params, plan, texts, job.sampler
    )
  source = read_model(model, job.params)
  if _BEAMS.value is not None:
    return engines.beams(
      source,
      plan,
      count=_BEAMS.value,
      shown=count,
      length_power=_LENGTH_POWER.value,
    )
  if _SUPERPOSED.value is not None:
    rule = superposed.Superposed(
      drafts=_SUPERPOSED.value, reset=_RESET.value or None
    )
    mixer = superposed.Mixer(*superposition.mixing(job.model))
    store = ngram_store.load_or_build(
      _NGRAMS.value,
      job.codec.vocabulary_size,
      lambda: [job.codec.encode(text) for text in job.data.open('train')],
    )
    return engines.superposes(source, mixer, plan, store, rule, shown=count)
  if _CONTRASTIVE.value is not None:
    return engines.contrasts(
      source._replace(step=forward.hidden_step(unhurried(job.model))),
      plan,
      alpha=_CONTRASTIVE.value,
      candidates=_CANDIDATES.value,
    )
  return engines.drafts(
    source, job.draft, plan, job.sampler, draft_tokens=_DRAFT_TOKENS.value
  )


def is_search() -> bool:
  """Is the text looked for, and nothing drawn?"""
  return any(w.value is not None for w in (_BEAMS, _CONTRASTIVE, _SUPERPOSED))


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
  for row in range(1, len(texts)):
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


def write_trace(job: Job, seen: engines.Seen, sources: Any) -> None:
  """Writes the JSON file and the page of --trace."""
  count, model = _NUM_SAMPLES.value, unhurried(job.model)
  rows = prompts.rows(job.codec, job.prompts, count, _SEED.value)
  is_apart = is_search() or job.corpus is not None
  found = trace.replay(
    forward.step(model),
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
