"""One model read in several ways far beyond the rows that it was trained on.

  python -m bench.lengths --checkpoint=runs/unlimited --read=off --read=10,512

Prints, as Markdown, what evals.by_position and evals.passkey of the run's
config find, and what a byte costs to decode after --position=1024 others, say;
writes JSON and the picture of the curves.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from bench import long
from bench import timing
from configs import base
from configs import command
from configs import restore
from data import text
from evals import by_position
from evals import passkey
from evals import position_plot
from models import forward
from training import host
from training import manifest

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
_READ = flags.DEFINE_multi_string(
  'read', ['off', '10,512'], 'As --lambda of eval.py; repeat for several ways.'
)
_SPLIT = flags.DEFINE_enum('split', 'test', text.SPLITS, 'Split to read.')
_SET = flags.DEFINE_multi_string('set', [], 'path=value in the config.')
_POSITION = flags.DEFINE_multi_integer(
  'position', [], 'Time decoding after so many bytes; repeat it.', lower_bound=1
)
_OUT = flags.DEFINE_string(
  'out', None, 'JSON file; default lengths.json in the run directory.'
)

_KINDS = (by_position.BitsByPosition, passkey.Passkey)
# Of decoding: bytes made, each time anew.
_NEW_BYTES = 256
_ROUNDS = 5


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.use_cores()
  with command.explained('bench.lengths'):
    if not _CHECKPOINT.value:
      raise ValueError('--checkpoint is missing; name a run directory')
    found = {
      way: measure(
        _CHECKPOINT.value, way, _SPLIT.value, _SET.value, _POSITION.value
      )
      for way in _READ.value
    }
    out = pathlib.Path(_OUT.value or f'{_CHECKPOINT.value}/lengths.json')
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_file(out, json.dumps(found, indent=2) + '\n')
    curves = {way: position_plot.points(one) for way, one in found.items()}
    if any(curves.values()):
      manifest.write_file(out.with_suffix('.svg'), position_plot.draw(curves))
  print(table(found))
  print(f'report: {out}')


def measure(
  directory: str,
  way: str,
  split: str,
  assignments: Sequence[str],
  places: Sequence[int] = (),
) -> dict[str, Any]:
  """The evaluators that look at lengths, of a run read in one way.

  places: positions from which decoding is timed, in microseconds per byte.
  """
  run = restore.restore(directory, limit=way)
  config = base.override(run.config, assignments)
  chosen = [one for one in config.evals if isinstance(one, _KINDS)]
  if not (chosen or places):
    raise ValueError(
      f'{directory} has no evaluator of positions or passkeys; put'
      ' evals.by_position.BitsByPosition or evals.passkey.Passkey into the'
      ' evals of its config, or give a --position.'
    )
  began = time.monotonic()
  found: dict[str, Any] = {}
  if places:
    found |= _decoding(config.model, run.params, places)
  if chosen:
    config.data.prepare()
    documents = config.data.open(split)
  for evaluator in chosen:
    found |= evaluator.run(forward.pure(config.model), run.params, documents)
  return found | {'seconds': time.monotonic() - began}


def _decoding(
  model: Any, params: Any, places: Sequence[int]
) -> dict[str, float]:
  found = {}
  costs = long.decoding(model, params, places, _NEW_BYTES, _ROUNDS)
  for place, (seconds, cache_bytes) in costs.items():
    median = timing.spread(seconds).median
    found[f'decoding/{place}/microseconds'] = 1e6 * median
    found[f'decoding/{place}/cache_bytes'] = cache_bytes
  return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """A row per length, a column per way to read."""
  names = {
    'bits_per_byte': 'bits per byte up to',
    'ratio': 'to the first group, up to',
    'mean': 'passkeys found in texts of',
    'microseconds': 'us per byte decoded after',
    'cache_bytes': 'bytes of cache after',
  }
  keys = {key: None for one in found.values() for key in one}
  lines = [
    '| | ' + ' | '.join(found) + ' |',
    '|---' * (len(found) + 1) + '|',
  ]
  for key in keys:
    head, _, name = key.rpartition('/')
    if name not in names:
      continue
    values = [one.get(key) for one in found.values()]
    shown = [
      '' if v is None else f'{v:,}' if isinstance(v, int) else f'{v:.3f}'
      for v in values
    ]
    stop = int(head.rpartition('/')[2])
    cells = [f'{names[name]} {stop:,}', *shown]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  command.run(main)
