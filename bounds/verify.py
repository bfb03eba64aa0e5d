"""Checks a certificate from the model file and the stream alone.

python -m bounds.verify model.pw certificate.json --stream='texts/*.txt'

Exit code 0 if the file supports what is claimed, else 1 and one sentence.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

from absl import app
from absl import flags

from bounds import bound
from bounds import token_file
from configs import certify
from configs import command
from configs import token_certificate

_STREAM = flags.DEFINE_string(
  'stream', None, 'Split, file or glob; default as the certificate says.'
)

_LARGEST = 1 << 28


def main(argv: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bounds.verify'):
    if len(argv) != 3:
      raise ValueError(
        'give two files: python -m bounds.verify model.pw certificate.json'
      )
    claim = certify.read(argv[2])
    bound.check_delta(claim['delta'])
    data = _read(pathlib.Path(argv[1]))
    stream = certify.claimed_stream(claim, _STREAM.value)
    rule = certify.certify
    if data.startswith(token_file.MAGIC):
      rule = functools.partial(token_certificate.certified, claim)
    found = certify.check(claim, data, stream, rule)
  print(
    f'accepted: {found.bound.rounded_up()} bits per byte at confidence'
    f' {1 - claim["delta"]:.4g} (claimed {claim["bits_per_byte"]})\n'
    f'  {len(data)} bytes of file, {stream.bytes} bytes of stream in'
    f' {len(stream.documents)} documents\n'
    f'  empirical risk {found.bound.terms["empirical_risk"]!r}, guessing'
    f' {found.evidence.vacuous:.3f}'
  )


def _read(path: pathlib.Path) -> bytes:
  with path.open('rb') as file:
    data = file.read(_LARGEST + 1)
  if len(data) > _LARGEST:
    raise ValueError(
      f'{path} has more than {_LARGEST} bytes, as no model file has'
    )
  return data


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f'bounds.verify: {" ".join(str(error).split())}')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
