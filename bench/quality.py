"""The quality side of bench.diversity: samples of every rule at equal risk.

What they repeat, how they differ, how likely the model itself finds them, and
how likely a larger one that did not draw them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bench import scoring
from configs import output_layer
from configs import prompts
from configs import restore
from evals import diversity
from evals import sample_quality
from models import forward
from samplers import bat
from samplers import chain
from samplers import loop
from samplers import presets

PROMPT_BYTES = 64
# Rules of evals.diversity whose knob is a share of probability.
_SHARES = ('top_p', 'typical', 'top_h', 'top_h_of_100')


class Begun(NamedTuple):
  """Beginnings of texts, and how a corpus goes on from them."""

  prompts: list[bytes]
  ends: list[bytes]


def read_judge(
  directory: str | None, run: restore.Run, samples: int
) -> restore.Run | None:
  """The run in a directory, if there is one; ValueError if it cannot judge."""
  if directory is None:
    return None
  if not samples:
    raise ValueError(
      f'--judge={directory} has nothing to score; add --samples=64.'
    )
  judge = restore.restore(directory)
  own, other = (
    sum(x.size for x in jax.tree.leaves(r.params)) for r in (run, judge)
  )
  if other <= own:
    raise ValueError(
      f'--judge={directory} has {other} parameters and --checkpoint {own}; the'
      ' judge must be the larger model.'
    )
  return judge


def cut(corpus: Sequence[np.ndarray], count: int, size: int) -> Begun | None:
  """So many places of a corpus, evenly spaced, with `size` bytes after each.

  None for no place; ValueError if the corpus has fewer.
  """
  if not count:
    return None
  whole = PROMPT_BYTES + size
  places = [
    (i, start)
    for i in range(len(corpus))
    for start in range(0, len(corpus[i]) - whole + 1, whole)
  ]
  if len(places) < count:
    raise ValueError(
      f'--samples={count} is more than the {len(places)} places of {whole}'
      ' bytes in the split; ask for fewer, or for fewer --sample_bytes.'
    )
  chosen = np.linspace(0, len(places) - 1, count).astype(int)
  found = []
  for i, start in (places[place] for place in chosen):
    window = np.asarray(corpus[i])[start : start + whole].tobytes()
    found.append((window[:PROMPT_BYTES], window[PROMPT_BYTES:]))
  return Begun(*map(list, zip(*found, strict=True)))


def sampler(
  run: restore.Run, name: str, match: diversity.Match
) -> chain.Chain | None:
  """The chain of a rule of evals.diversity at its knob; None if it has none.

  That of eta goes beyond 1, as the rule itself does not, for thresholds that
  are higher than e^-H.
  """
  knob = min(match.knob, 1.0) if name in _SHARES else match.knob
  rule, _, threshold = name.rstrip(')').partition('(')
  is_beyond = 'eta' in (rule, threshold) and knob >= 1
  if rule not in presets.RULES or is_beyond:
    return None
  inside = f'{threshold}={knob}' if threshold else f'{knob}'
  rules = bat.attach(
    chain.parse(f'{rule}({inside})').rules,
    lambda: output_layer.find(run.config.model, run.params),
  )
  return chain.Chain(rules)


def rows(
  run: restore.Run,
  judge: restore.Run | None,
  begun: Begun,
  found: Mapping[str, Mapping[float, diversity.Match]],
) -> Iterator[dict[str, object]]:
  """A row for the corpus's own text, and one per rule and risk.

  found: from evals.diversity.table. judge: the larger model.
  """
  size = len(begun.ends[0])
  yield _row('the split itself', '-', run, judge, begun, begun.ends)
  for risk in next(iter(found.values())):
    for name, matches in found.items():
      chosen = sampler(run, name, matches[risk])
      if chosen is not None:
        texts = draw(run, chosen, begun.prompts, size)
        yield _row(name, f'{risk:g}', run, judge, begun, texts)


def draw(
  run: restore.Run, chosen: chain.Chain, texts: Sequence[bytes], size: int
) -> list[bytes]:
  """What a chain makes of so many bytes after each text, ends left out."""
  model, spelling = run.config.model, run.config.data.codec
  ids_BT, lengths_B, keys_B = prompts.rows(spelling, texts, 1, 0)
  state = loop.generate(
    forward.step(model),
    run.params,
    model.init_cache(len(texts), ids_BT.shape[1] + size),
    ids_BT,
    lengths_B,
    keys_B,
    chosen,
    num_tokens=size,
    stop_ids=spelling.stops,
  )
  loop.check(state)
  made = prompts.made(spelling, texts, 1, state.ids_BN, state.length_B)
  return [part[:size] for part in made]


def _row(
  name: str,
  risk: str,
  run: restore.Run,
  judge: restore.Run | None,
  begun: Begun,
  texts: Sequence[bytes],
) -> dict[str, object]:
  own = _score(run, begun.prompts, texts)
  row: dict[str, object] = {
    'rule': name,
    'risk': risk,
    'repeated 4-grams': f'{sample_quality.repetition(texts):.3f}',
  }
  for size in (1, 2, 3):
    row[f'distinct-{size}'] = f'{sample_quality.distinct(texts, size):.3f}'
  row['self-perplexity'] = f'{own.perplexity:.3f}'
  row['own bits per byte'] = f'{own.bits_per_byte:.3f} +- {own.error:.3f}'
  if judge is not None:
    other = _score(judge, begun.prompts, texts)
    row['bits per byte, larger model'] = (
      f'{other.bits_per_byte:.3f} +- {other.error:.3f}'
    )
  return row


def _score(
  run: restore.Run, texts: Sequence[bytes], ends: Sequence[bytes]
) -> sample_quality.Score:
  model = scoring.with_room(run.config.model)
  return sample_quality.score(
    forward.pure(model), run.params, run.config.data.codec, texts, ends
  )
