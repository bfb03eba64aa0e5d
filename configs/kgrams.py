"""Tables of counts on a stream: made, and read back from their file."""

from typing import NamedTuple

import numpy as np

from bounds import alphabet as alphabets
from bounds import certificate
from bounds import counts
from configs import streams


class Symbols(NamedTuple):
  """Classes of a stream, and the place of each in its document."""

  class_N: np.ndarray
  place_N: np.ndarray


def symbols(stream: streams.Stream, alphabet: str) -> Symbols:
  """The stream as a table reads it."""
  sizes = [len(document) + 1 for document in stream.documents]
  return Symbols(
    alphabets.named(alphabet).class_of[stream.symbols],
    np.concatenate([np.arange(size) for size in sizes]),
  )


def alphabet_of(options: counts.Options) -> str:
  """The alphabet's name; ValueError if it is not one of this release."""
  names = list(alphabets.ALPHABETS)
  if options.alphabet >= len(names):
    raise ValueError(
      f'file has alphabet {options.alphabet}, this decoder knows {len(names)};'
      ' use the release that wrote it'
    )
  name = names[options.alphabet]
  if alphabets.ALPHABETS[name].size != options.classes:
    raise ValueError(
      f'damaged file: {options.classes} classes do not fit alphabet {name}'
    )
  return name


def evidence(
  data: bytes, stream: streams.Stream, seen: Symbols | None = None
) -> tuple[certificate.Evidence, counts.Options]:
  """What a decoded file of counts says of a stream, and its options."""
  levels, options = counts.decode(data)
  name = alphabet_of(options)
  seen = seen or symbols(stream, name)
  predictions = counts.predict(levels, options.weight / 4)
  found = certificate.Evidence(
    *counts.score(levels, predictions, *seen),
    options.classes,
    streams.spelling_bits(stream, name),
    stream.bytes,
  )
  return found, options
