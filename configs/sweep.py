"""Bounds against bits per weight, network and length of the stream."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bounds import azuma
from bounds import certificate
from bounds import header as headers
from bounds import smoothing
from configs import base
from configs import certify
from configs import compress
from configs import predictor
from configs import restore
from configs import streams

BITS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)


class Row(NamedTuple):
  """One network, rounded, on a prefix of the stream; bits per byte."""

  checkpoint: str
  weights: int
  bits_per_weight: float
  file_bytes: int
  stream_bytes: int
  risk: float
  betting: float
  azuma: float
  vacuous: float


def rows(
  names: list[str],
  runs: list[restore.Run],
  stream: streams.Stream,
  header: headers.Header,
  target: compress.Target,
) -> Iterator[Row]:
  """For every network and every bits per weight, every share of the stream.

  Each prefix is a certificate of its own, with a smoothing of its own.
  """
  for name, run in zip(names, runs, strict=True):
    chosen = dataclasses.replace(header, model=base.to_json(run.config.model))
    for bits in BITS:
      coded = compress.PostTraining(bits)(run.config, run.params, target)
      decoded = predictor.decode(predictor.encode(coded, chosen))
      seen = certify.evidence(decoded, stream)
      weights = sum(tensor.symbols.size for tensor in coded.values())
      for share in SHARES:
        part = prefix(seen, stream, share, chosen.alphabet)
        risk, main, published = _bounds(part, decoded.bits, target.delta)
        yield Row(
          name, weights, bits, decoded.size, part.bytes, risk, main, published,
          part.vacuous,
        )  # fmt: skip


def prefix(
  seen: certificate.Evidence, stream: streams.Stream, share: float, kind: str
) -> certificate.Evidence:
  """The evidence of the first documents, about that share of the symbols."""
  sizes_N = np.array([len(document) + 1 for document in stream.documents])
  ends_N = sizes_N.cumsum()
  whole = int(np.searchsorted(ends_N, share * ends_N[-1], 'left'))
  documents = stream.documents[: whole + 1]
  stop = int(ends_N[len(documents) - 1])
  part = streams.Stream(stream.name, documents)
  return certificate.Evidence(
    seen.probability_N[:stop],
    seen.entropy_N[:stop],
    seen.rank_N[:stop],
    seen.classes,
    streams.spelling_bits(part, kind),
    part.bytes,
  )


def _bounds(
  seen: certificate.Evidence, bits: int, delta: float
) -> tuple[float, float, float]:
  """Risk and betting bound, and the best published Azuma bound."""
  codes = certificate.choose_smoothing(seen, bits, delta)
  found = certificate.betting_bound(seen, *codes, bits, delta)
  index_bits = bits + math.log2(len(smoothing.ALPHAS))
  values = []
  for alpha in smoothing.ALPHAS:
    low, high = smoothing.interval(alpha, seen.classes)
    losses_N = certificate.smooth(seen, alpha, 0.0).losses_N
    rule = azuma.Azuma(delta)
    value = rule(losses_N, index_bits, low=low - 1e-9, high=high + 1e-9).value
    values.append(seen.in_bytes(value))
  return found.terms['empirical_risk'], found.value, min(values)


def table(found: list[Row]) -> str:
  """Rows as Markdown."""
  lines = [
    '| network | weights | bits/weight | file, bytes | stream, bytes | risk |'
    ' betting | Azuma | guessing |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for row in found:
    numbers = (f'{x:.3f}' for x in row[5:])
    lines.append(
      f'| {row.checkpoint} | {row.weights} | {row.bits_per_weight:g} |'
      f' {row.file_bytes} | {row.stream_bytes} | {" | ".join(numbers)} |'
    )
  return '\n'.join(lines)
