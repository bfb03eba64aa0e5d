"""Flags of sample.py that choose another way to decode than drawing."""

import functools
from typing import NamedTuple

from absl import flags

from configs import settings
from samplers import beam
from samplers import contrastive
from samplers import superposed


class Flags(NamedTuple):
  """The ways, each of them with what belongs to it alone."""

  draft: flags.FlagHolder[str | None]
  draft_tokens: flags.FlagHolder[int]
  beams: flags.FlagHolder[int | None]
  length_power: flags.FlagHolder[float]
  contrastive: flags.FlagHolder[float | None]
  candidates: flags.FlagHolder[int]
  superposed: flags.FlagHolder[int | None]
  superposed_rule: flags.FlagHolder[str]
  ngrams: flags.FlagHolder[str | None]
  reset: flags.FlagHolder[int]
  nest: flags.FlagHolder[str | None]
  nest_rule: flags.FlagHolder[str]


_WAYS = 'draft', 'beams', 'contrastive', 'superposed', 'nest'
_SEARCHES = 'beams', 'contrastive', 'superposed'
# The way that a flag says something of.
_OWNERS = {
  'draft_tokens': 'draft',
  'length_power': 'beams',
  'candidates': 'contrastive',
  'superposed_rule': 'superposed',
  'ngrams': 'superposed',
  'reset': 'superposed',
  'nest_rule': 'nest',
}


def define_flags(**own: flags.FlagValues) -> Flags:
  """To be called by a script before flags are parsed.

  own: `flag_values` where they are not those of the process.
  """
  string = functools.partial(flags.DEFINE_string, **own)
  whole = functools.partial(flags.DEFINE_integer, **own)
  real = functools.partial(flags.DEFINE_float, **own)
  return Flags(
    string(
      'draft',
      None,
      "Run of a smaller model that drafts, same law; 'self': a BLT's byte"
      ' layers.',
    ),
    whole('draft_tokens', 4, 'Tokens per draft.', lower_bound=1),
    whole(
      'beams',
      None,
      'Beam search with so many; shows the num_samples best texts.',
    ),
    real(
      'length_power', 1.0, 'Of beams: log p over the length to this power.'
    ),
    real('contrastive', None, 'Contrastive search with this alpha, as 0.6.'),
    whole('candidates', 5, 'Of contrastive search: tokens that are looked at.'),
    whole(
      'superposed', None, 'Superposed decoding with so many drafts, as 3.'
    ),
    string(
      'superposed_rule',
      '',
      "Of --superposed: its settings, as 'alpha=0.54, temperature=0.5', which"
      ' suit bytes.',
    ),
    string(
      'ngrams',
      None,
      'Of --superposed: file of n-gram counts, by samplers.ngram_store; made'
      " from the run's train split if it is not there.",
    ),
    whole(
      'reset',
      10,
      'Of --superposed: one draft goes on after so many; 0 is never.',
      lower_bound=0,
    ),
    string(
      'nest',
      None,
      'Key store of samplers.key_store, whose corpus is copied from.',
    ),
    string(
      'nest_rule', '', "Of --nest: its settings, as 'gamma=0.1, passages=20'."
    ),
  )


def check(given: Flags, *, samples: int, sampler: str | None) -> None:
  """ValueError for flags that contradict each other or have no use.

  samples: --num_samples; sampler: --sampler.
  """
  found = [name for name in _WAYS if getattr(given, name).value is not None]
  if len(found) > 1:
    first, second = found[:2]
    raise ValueError(f'--{first} and --{second} exclude each other; drop one')
  for name, owner in _OWNERS.items():
    flag = getattr(given, name)
    if owner not in found and (flag.present or flag.value != flag.default):
      raise ValueError(
        f'--{name}={flag.value} says how --{owner} works, which is not given;'
        ' give that too or drop this'
      )
  if is_search(given) and sampler:
    raise ValueError(
      f'--{found[0]} draws nothing, so that --sampler has no use'
    )
  if given.superposed.value is not None:
    if not given.ngrams.value:
      raise ValueError('--superposed needs --ngrams, a file of n-gram counts')
    superposed_rule(given)
  for name in ('superposed', 'beams'):
    count = getattr(given, name).value
    if count is not None and count < samples:
      raise ValueError(
        f'--{name}={count} must be at least --num_samples={samples}, of which'
        f' every one is a {"beam" if name == "beams" else "draft"}'
      )
  if given.beams.value is not None:
    beam.check(given.beams.value, given.length_power.value)
  if given.contrastive.value is not None:
    contrastive.check(given.contrastive.value, given.candidates.value)
    if samples > 1:
      raise ValueError('--contrastive gives one text; drop --num_samples')


def is_search(given: Flags) -> bool:
  """Is the text looked for, and nothing drawn?"""
  return any(getattr(given, name).value is not None for name in _SEARCHES)


def superposed_rule(given: Flags) -> superposed.Superposed:
  """How --superposed scores drafts; ValueError names what is wrong."""
  values = settings.parse(
    given.superposed_rule.value,
    'superposed',
    [superposed.Superposed],
    omit=('drafts', 'reset'),
  )
  return superposed.Superposed(
    drafts=given.superposed.value, reset=given.reset.value or None, **values
  )
