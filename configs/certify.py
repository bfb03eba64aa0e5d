"""The certificate of a file on a stream, and its check from the file alone."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from bounds import bound as bounds_lib
from bounds import certificate
from bounds import counts
from configs import base
from configs import field_types
from configs import kgrams
from configs import predictor
from configs import streams
from data import json_text
from data import text
from models import forward

FORMAT = 'patchwork certificate'
VERSION = 1
_LONGEST_NAME = 1000
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
  no_certificate = (
    f'{path} is no certificate: it is not the JSON that python -m bounds writes'
  )
  try:
    claim = json_text.parse(pathlib.Path(path).read_bytes(), path, 'name one')
  except ValueError as error:
    raise ValueError(no_certificate) from error
  if not isinstance(claim, dict) or claim.get('format') != FORMAT:
    raise ValueError(no_certificate)
  if claim.get('version') != VERSION:
    raise ValueError(
      f'{path} has version {str(claim.get("version"))[:20]}, this verifier'
      f' reads {VERSION}; use the release that wrote it'
    )
  for name in ('bits_per_byte', 'delta'):
    if not field_types.fits(claim.get(name), float):
      raise ValueError(
        f'{path} is no certificate: it lacks a finite number {name}'
      )
  said, file = claim.get('stream'), claim.get('file')
  if not isinstance(said, dict) or not isinstance(file, dict):
    raise ValueError(f'{path} is no certificate: it names no stream or no file')
  most = said.get('max_bytes')
  if most is not None and (type(most) is not int or most < 1):
    raise ValueError(
      f'{path} is no certificate: max_bytes={repr(most)[:40]} must be null or'
      ' at least 1'
    )
  return claim


def claimed_stream(
  claim: dict[str, Any], name: str | None = None
) -> streams.Stream:
  """The stream of a certificate, or another; ValueError if it has changed."""
  said = claim['stream']
  stream = streams.open_stream(
    name or _name(said),
    _corpus(said.get('corpus')),
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


def _name(said: dict[str, Any]) -> str:
  name = said.get('name')
  if not isinstance(name, str) or '\0' in name or len(name) > _LONGEST_NAME:
    raise ValueError(
      f'the certificate names the stream {str(name)[:40]!r}, which is no split'
      ' and no path; give it with --stream'
    )
  return name


def _corpus(tree: Any) -> Any:
  """The corpus that a certificate describes; ValueError for anything else."""
  if tree is None:
    return None
  check_corpus(tree)
  corpus = base.from_json(tree, 'stream.corpus')
  if not isinstance(corpus, text.Text):
    raise ValueError(
      f'the certificate names {type(corpus).__name__} where a corpus belongs'
    )
  if not pathlib.Path(corpus.directory).expanduser().is_dir():
    # It may not say where folders are made.
    default = text.Text().directory
    corpus = dataclasses.replace(corpus, directory=default)
  return corpus


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
      raise ValueError(
        f'the certificate names {str(name)[:80]!r} where a corpus belongs'
      )
    for value in tree.values():
      check_corpus(value)
  elif isinstance(tree, list):
    for value in tree:
      check_corpus(value)
