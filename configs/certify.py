"""The certificate of a file on a stream, and its check from the file alone."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from bounds import bound as bounds_lib
from bounds import certificate
from bounds import counts
from configs import base
from configs import kgrams
from configs import predictor
from configs import streams
from models import forward

FORMAT = 'patchwork certificate'
VERSION = 1
# Another machine may round logits differently.
TOLERANCE = 1e-4


class Certified(NamedTuple):
  """A certificate and what it was computed from; None for a table of counts."""

  predictor: predictor.Predictor | None
  evidence: certificate.Evidence
  bound: bounds_lib.Bound


def certify(data: bytes, stream: streams.Stream, delta: float) -> Certified:
  """Decodes a file and scores the stream with nothing else."""
  if data.startswith(counts.MAGIC):
    seen, options = kgrams.evidence(data, stream)
    found = certificate.betting_bound(
      seen, options.base, options.slope, 8 * len(data), delta
    )
    return Certified(None, seen, found)
  decoded = predictor.decode(data)
  seen = evidence(decoded, stream)
  found = certificate.certify(seen, decoded.header, decoded.bits, delta)
  return Certified(decoded, seen, found)


def evidence(
  decoded: predictor.Predictor, stream: streams.Stream
) -> certificate.Evidence:
  """What a decoded file says of a stream, read as its header says."""
  header = decoded.header
  return streams.evidence(
    forward.pure(decoded.model), decoded.params, stream,
    alphabet=header.alphabet, window=header.window, stride=header.stride,
  )  # fmt: skip


def risk(seen: certificate.Evidence, smoothing: tuple[float, float]) -> float:
  """Bits per byte of what was seen, smoothed by a header's base and slope."""
  rows = certificate.smooth(seen, *smoothing)
  return seen.in_bytes(float(rows.losses_N.mean()))


def held_out(
  stream: streams.Stream,
  seen: certificate.Evidence,
  smoothing: tuple[float, float],
) -> dict[str, str | int | float]:
  """What a certificate says of another stream, with no bound to it."""
  bits = risk(seen, smoothing)
  return {'stream': stream.name, 'bytes': stream.bytes, 'bits_per_byte': bits}


def to_json(
  certified: Certified,
  data: bytes,
  stream: streams.Stream,
  *,
  delta: float,
  corpus: Any = None,
  max_bytes: int | None = None,
) -> dict[str, Any]:
  """All that is claimed, and what a verifier needs beside the file."""
  found, seen = certified.bound, certified.evidence
  claim = {
    'format': FORMAT,
    'version': VERSION,
    'bits_per_byte': float(found.rounded_up(4)),
    'vacuous_from': seen.vacuous,
    'delta': delta,
    'file': {
      'bytes': len(data),
      'bits': 8 * len(data),
      'sha256': hashlib.sha256(data).hexdigest(),
    },
    'stream': {
      'name': stream.name,
      'max_bytes': max_bytes,
      'corpus': None if corpus is None else base.to_json(corpus),
      'documents': len(stream.documents),
      'bytes': stream.bytes,
      'symbols': len(seen.probability_N),
      'sha256': stream.sha256,
    },
    'bound': {'rule': 'bounds.betting.Betting', 'value': found.value}
    | dict(found.terms),
  }
  if certified.predictor is not None:
    header = certified.predictor.header
    claim['smoothing'] = {
      'alphabet': header.alphabet,
      'classes': seen.classes,
      'base': header.smoothing[0],
      'slope': header.smoothing[1],
      'window': header.window,
      'stride': header.stride,
    }
  return claim


def read(path: str) -> dict[str, Any]:
  """A certificate from disk; ValueError unless it is one we can check."""
  try:
    claim = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    known = claim['format'] == FORMAT
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f'{path} is no certificate: it is not the JSON that python -m bounds'
      ' writes'
    ) from error
  if not known or claim.get('version') != VERSION:
    raise ValueError(
      f'{path} has version {claim.get("version")}, this verifier reads'
      f' {VERSION}; use the release that wrote it'
    )
  for name in ('bits_per_byte', 'delta'):
    if type(claim.get(name)) not in (int, float):
      raise ValueError(f'{path} is no certificate: it lacks a number {name}')
  said, file = claim.get('stream'), claim.get('file')
  if not isinstance(said, dict) or not isinstance(file, dict):
    raise ValueError(f'{path} is no certificate: it names no stream or no file')
  most = said.get('max_bytes')
  if most is not None and (type(most) is not int or most < 1):
    raise ValueError(
      f'{path} is no certificate: max_bytes={most!r} must be null or at least 1'
    )
  return claim


def claimed_stream(
  claim: dict[str, Any], name: str | None = None
) -> streams.Stream:
  """The stream of a certificate, or another; ValueError if it has changed."""
  said = claim['stream']
  corpus = said.get('corpus')
  check_corpus(corpus)
  stream = streams.open_stream(
    name or str(said.get('name')),
    None if corpus is None else base.from_json(corpus, 'stream.corpus'),
    max_bytes=said.get('max_bytes'),
  )
  if stream.sha256 != said.get('sha256'):
    raise ValueError(
      f'stream {stream.name} differs from the one that was certified'
      f' ({stream.bytes} bytes in {len(stream.documents)} documents, not'
      f' {said.get("bytes")} in {said.get("documents")}, or other text): its'
      ' SHA-256 does not match; give the original with --stream'
    )
  return stream


def check(
  claim: dict[str, Any],
  data: bytes,
  stream: streams.Stream,
  rule: Callable[[bytes, streams.Stream, float], Certified] = certify,
) -> Certified:
  """Recomputes a certificate; ValueError if less can be certified.

  Everything comes from the file and the stream; of the claim only delta, the
  value and the file's hash are read.
  """
  delta = claim['delta']
  bounds_lib.check_delta(delta)
  found = rule(data, stream, delta)
  if hashlib.sha256(data).hexdigest() != claim['file'].get('sha256'):
    raise ValueError(
      f'the certificate is that of another file of'
      f' {claim["file"].get("bytes")} bytes: its SHA-256 does not match; give'
      ' the model.pw that was written beside it'
    )
  if not found.bound.value <= claim['bits_per_byte'] + TOLERANCE:
    raise ValueError(
      f'the certificate claims {claim["bits_per_byte"]} bits per byte, but the'
      f' file supports {found.bound.rounded_up(4)} on this stream; it belongs'
      ' to another file or was changed'
    )
  return found


def check_corpus(tree: Any) -> None:
  """Only corpora may be named where a corpus is."""
  if isinstance(tree, dict):
    name = tree.get('class', 'data.')
    if not isinstance(name, str) or not name.startswith('data.'):
      raise ValueError(f'the certificate names {name!r} where a corpus belongs')
    for value in tree.values():
      check_corpus(value)
  elif isinstance(tree, list):
    for value in tree:
      check_corpus(value)
