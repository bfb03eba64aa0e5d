"""Certifies a table of counts: the certificate that a network has to beat.

python -m bounds.kgram --order=3 --least=16 --out=runs/kgram
python -m bounds.verify runs/kgram/kgram.pk runs/kgram/kgram.json
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from bounds import alphabet as alphabets
from bounds import bound
from bounds import certificate
from bounds import counts
from bounds import header as headers
from configs import certify
from configs import command
from configs import kgrams
from configs import streams
from training import manifest

_STREAM = flags.DEFINE_string(
  'stream', 'train', 'Split of the standard library, or a file or glob.'
)
_MAX_BYTES = flags.DEFINE_integer(
  'max_bytes', None, 'Only the first so many bytes.', lower_bound=1
)
_ORDERS = flags.DEFINE_list('order', ['1', '2', '3'], 'Orders to try.')
_LEAST = flags.DEFINE_list(
  'least', ['8', '16', '64'],
  'Occurrences that contexts and successors need to be listed; all are tried.',
)  # fmt: skip
_WEIGHT = flags.DEFINE_integer(
  'weight', 3, 'Weight of shorter contexts, in quarters.', lower_bound=1
)
_DELTA = flags.DEFINE_float('delta', 0.05, 'One minus the confidence.')
_ALPHABET = flags.DEFINE_string('alphabet', 'ascii', "'ascii' or 'bytes'.")
_HELD_OUT = flags.DEFINE_string(
  'held_out', 'validation', "Split, file or glob to score besides; '' for none."
)
_OUT = flags.DEFINE_string('out', None, 'Directory; by default only printed.')


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bounds.kgram'):
    bound.check_delta(_DELTA.value)
    alphabets.named(_ALPHABET.value)
    stream = streams.open_stream(_STREAM.value, max_bytes=_MAX_BYTES.value)
    seen = kgrams.symbols(stream, _ALPHABET.value)
    best, best_data = {}, b''
    for order in _numbers(_ORDERS):
      for least in _numbers(_LEAST) if order else [1]:
        claim, data = _certified(stream, seen, order, least)
        print(_line(claim), flush=True)
        if not best or claim['bits_per_byte'] < best['bits_per_byte']:
          best, best_data = claim, data
    if _HELD_OUT.value:
      other = streams.open_stream(_HELD_OUT.value, flag='held_out')
      found, options = kgrams.evidence(best_data, other)
      smoothing = headers.smoothing_of(options.base, options.slope)
      best['held_out'] = certify.held_out(other, found, smoothing)
    print('best: ' + _line(best))
    if _OUT.value:
      out = pathlib.Path(_OUT.value)
      out.mkdir(parents=True, exist_ok=True)
      (out / 'kgram.pk').write_bytes(best_data)
      text = json.dumps(best, indent=2) + '\n'
      manifest.write_file(out / 'kgram.json', text)


def _numbers(flag: flags.FlagHolder[list[str]]) -> list[int]:
  if not all(value.isdecimal() for value in flag.value):
    text = ','.join(flag.value)
    raise ValueError(f'--{flag.name}={text} must be numbers, as 1,2,3')
  return [int(value) for value in flag.value]


def _certified(
  stream: streams.Stream, symbols: kgrams.Symbols, order: int, least: int
) -> tuple[dict[str, Any], bytes]:
  """The certificate of one table, from its decoded file."""
  delta, name = _DELTA.value, _ALPHABET.value
  code = list(alphabets.ALPHABETS).index(name)
  size = alphabets.named(name).size
  options = counts.Options(code, size, order, least, _WEIGHT.value)
  levels = counts.count(*symbols, options)
  data = counts.encode(levels, options)
  seen, _ = kgrams.evidence(data, stream, symbols)
  base, slope = certificate.choose_smoothing(seen, 8 * len(data), delta)
  data = counts.encode(
    levels, dataclasses.replace(options, base=base, slope=slope)
  )
  found = certificate.betting_bound(seen, base, slope, 8 * len(data), delta)
  claim = certify.to_json(
    certify.Certified(None, seen, found), data, stream,
    delta=delta, max_bytes=_MAX_BYTES.value,
  )  # fmt: skip
  return claim | {'counts': {'order': order, 'least': least}}, data


def _line(claim: dict[str, Any]) -> str:
  made, held = claim['counts'], ''
  if 'held_out' in claim:
    bits = claim['held_out']['bits_per_byte']
    held = f', held out ({claim["held_out"]["stream"]}) {bits:.4f}'
  return (
    f'order {made["order"]}, counts from {made["least"]}:'
    f' {claim["bits_per_byte"]:.4f} bits per byte certified, risk'
    f' {claim["bound"]["empirical_risk"]:.4f}, file'
    f' {claim["file"]["bytes"]} bytes{held}'
  )


if __name__ == '__main__':
  command.run(main)
