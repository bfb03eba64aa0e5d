"""Certificates of models over a released tokenizer's tokens.

python -m bounds --checkpoint=runs/llama --bits=4 --draws=10000 --out=DIR

What is bounded is the mean loss of the next token over the stream, given the
true text before it; per byte it is divided by the bytes of the stream.
"""

import dataclasses
import functools
import json
import pathlib
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bounds import bound as bounds_lib
from bounds import certificate
from bounds import header as headers
from bounds import quantise
from bounds import token_file
from bounds import token_risk
from configs import base
from configs import certify
from configs import compress
from configs import predictor
from configs import restore
from configs import streams
from configs import token_claim
from data import codec
from data import tokenizer_json
from evals import token_scores
from models import forward
from training import manifest
from training import processes

# Rows scored at a time: part of what is computed, so always the same.
_BATCH_ROWS = 2


class Settings(NamedTuple):
  """Choices of the command.

  bits: per weight after coding. window, stride: tokens read at once, and new
  ones of them. draws: tokens that the risk is estimated from; None for all.
  """

  bits: float
  delta: float
  window: int
  stride: int
  draws: int | None
  max_bytes: int | None


def is_over_tokens(config: base.Config) -> bool:
  """Whether a run reads tokens; ValueError for tokens learned from its text."""
  spelling = getattr(config.data, 'codec', codec.Bytes())
  if isinstance(spelling, codec.Bytes):
    return False
  if not isinstance(spelling, tokenizer_json.TokenizerJson):
    raise ValueError(
      f'the network predicts tokens of {type(spelling).__name__}, which were'
      ' learned from the train split and would have to be in the file; choose a'
      ' checkpoint over bytes or one imported with its tokenizer.json'
    )
  return True


def make(
  run: restore.Run,
  name: str,
  stream: streams.Stream,
  held_out: streams.Stream | None,
  settings: Settings,
  out: pathlib.Path,
) -> str:
  """Writes the file, the certificate and the report; returns a summary.

  name: of the run, for the certificate.
  """
  began = time.monotonic()
  spelling = run.config.data.codec
  ids = _ids(spelling, stream)
  # Nothing looks at it before the weights are fixed.
  draw = _draw(settings.draws, sum(map(len, ids)))
  header = headers.Header(
    'bytes', 0, 0, settings.window, settings.stride,
    base.to_json(run.config.model),
  )  # fmt: skip
  pack = functools.partial(
    _packed, functools.cache(lambda: _rounded(run, settings.bits)), spelling
  )
  data = pack(header)
  decoded = _decode(data, spelling)
  seen = _evidence(decoded, ids, stream, spelling, draw)
  # Smoothing is applied to what the same weights say, so nothing is rescored.
  if draw is None:
    codes = certificate.choose_smoothing(seen, 8 * len(data), settings.delta)
  else:
    # The length of the file depends on the code by a few bytes at most.
    drawn = _drawn(seen, ids)
    codes = token_risk.choose(drawn, 8 * len(data), settings.delta), 0
  header = dataclasses.replace(header, base=codes[0], slope=codes[1])
  data = pack(header)
  found = _bound(seen, ids, header, 8 * len(data), settings.delta, draw)
  claim = token_claim.to_json(
    certify.Certified(decoded._replace(header=header), seen, found),
    data, stream, tokens=sum(map(len, ids)), corpus=run.config.data,
    delta=settings.delta, max_bytes=settings.max_bytes, draw=draw,
  )  # fmt: skip
  if held_out is not None:
    claim['held_out'] = _held_out(decoded, header, held_out, spelling, draw)
  claim['made_by'] = {
    'from': name,
    'step': run.step,
    'seconds': round(time.monotonic() - began, 1),
    'method': base.to_json(compress.PostTraining(settings.bits)),
  }
  processes.first('write the certificate', lambda: _write(claim, data, out))
  text = token_claim.summary(claim)
  return f'{text}\n{out}: model.pw certificate.json report.md'


def _rounded(run: restore.Run, bits: float) -> dict[str, quantise.Coded]:
  return compress.quantised_to(predictor.flat(run.params), bits)


def _packed(
  rounded: Callable[[], dict[str, quantise.Coded]],
  spelling: codec.Codec,
  header: headers.Header,
) -> bytes:
  """The file of rounded weights, as process 0 of a job makes it."""
  return processes.told_by_first(
    'round and code',
    lambda: token_file.pack(
      predictor.encode(rounded(), header), spelling.digest
    ),
  )


def _write(claim: dict[str, Any], data: bytes, out: pathlib.Path) -> None:
  (out / 'model.pw').write_bytes(data)
  text = json.dumps(claim, indent=2) + '\n'
  manifest.write_file(out / 'certificate.json', text)
  manifest.write_file(out / 'report.md', token_claim.page(claim))


def certified(
  claim: dict[str, Any], data: bytes, stream: streams.Stream, delta: float
) -> certify.Certified:
  """Recomputes a certificate from the file, the tokenizer and the stream.

  ValueError for a claim that names no tokenizer or no possible draw.
  """
  spelling = token_claim.tokens_of(claim)
  decoded = _decode(data, spelling)
  ids = _ids(spelling, stream)
  draw = token_claim.draw_of(claim, sum(map(len, ids)))
  seen = _evidence(decoded, ids, stream, spelling, draw)
  found = _bound(seen, ids, decoded.header, 8 * len(data), delta, draw)
  return certify.Certified(decoded, seen, found)


def _ids(spelling: codec.Codec, stream: streams.Stream) -> list[np.ndarray]:
  """The tokens of every document, with its stop."""
  stop = np.array(spelling.stops[:1], np.int32)
  return [
    np.concatenate([spelling.encode(np.ascontiguousarray(text)), stop])
    for text in stream.documents
  ]


def _draw(count: int | None, tokens: int) -> dict[str, int] | None:
  """A fresh draw of tokens; ValueError for more than there are.

  The processes of a job get that of process 0.
  """
  if count is None:
    return None
  if count > tokens:
    raise ValueError(
      f'--draws={count} exceeds the {tokens} tokens of the stream; leave it out'
      ' to read them all'
    )
  seed = processes.told_by_first(
    'draw tokens', lambda: secrets.randbits(62).to_bytes(8)
  )
  return {'count': count, 'seed': int.from_bytes(seed)}


def _places(draw: dict[str, int] | None, tokens: int) -> np.ndarray | None:
  if draw is None:
    return None
  rng = np.random.default_rng(draw['seed'])
  return np.sort(rng.choice(tokens, draw['count'], replace=False))


def _decode(data: bytes, spelling: codec.Codec) -> predictor.Predictor:
  """The predictor of a file, charged for all of it."""
  decoded = predictor.decode(token_file.unpack(data, spelling.digest))
  ids = getattr(decoded.model, 'vocabulary_size', None)
  if ids != spelling.vocabulary_size:
    raise ValueError(
      f'damaged file: its network predicts one of {ids} ids, the tokenizer has'
      f' {spelling.vocabulary_size}'
    )
  return decoded._replace(size=len(data))


def _evidence(
  decoded: predictor.Predictor,
  ids: list[np.ndarray],
  stream: streams.Stream,
  spelling: codec.Codec,
  draw: dict[str, int] | None,
) -> certificate.Evidence:
  """What the network says of the tokens drawn, or of all."""
  apply, header = forward.pure(decoded.model), decoded.header
  with jax.default_matmul_precision('highest'):
    _check_causal(apply, decoded.params, header.window, spelling)
    found = token_scores.scores(
      apply, decoded.params, ids, bos=spelling.bos, window=header.window,
      stride=header.stride, batch_size=_BATCH_ROWS,
      drawn=_places(draw, sum(map(len, ids))),
    )  # fmt: skip
  if not np.isfinite(found.probability_N.sum() + found.entropy_N.sum()):
    raise ValueError(
      f'the network gives NaN on stream {stream.name}; round it to more --bits'
    )
  # The share of the bytes that tokens drawn stand for on average.
  share = len(found.probability_N) / sum(map(len, ids))
  return certificate.Evidence(
    *found, spelling.vocabulary_size, 0.0, stream.bytes * share
  )


def _check_causal(
  apply: Any, params: Any, window: int, spelling: codec.Codec
) -> None:
  """ValueError if later tokens change what is said of earlier ones."""
  rng = np.random.default_rng(0)
  shape = (_BATCH_ROWS, window)
  ids_BT = rng.integers(spelling.vocabulary_size, size=shape, dtype=np.int32)
  half = window // 2
  other_BT = ids_BT.copy()
  other_BT[:, half:] = rng.integers(
    spelling.vocabulary_size, size=other_BT[:, half:].shape
  )
  same_BT = np.ones_like(ids_BT)
  one, other = (
    token_scores.score(apply, params, x_BT, same_BT, same_BT)[:2]
    for x_BT in (ids_BT, other_BT)
  )
  for x_BT, y_BT in zip(one, other, strict=True):
    x_BT, y_BT = x_BT[:, :half], y_BT[:, :half]
    if not np.allclose(x_BT, y_BT, rtol=1e-3, atol=1e-6, equal_nan=True):
      raise ValueError(
        'the network sees what it predicts: later tokens change what it says of'
        ' earlier ones, so nothing can be certified of it'
      )


def _drawn(
  seen: certificate.Evidence, ids: list[np.ndarray]
) -> token_risk.Draw:
  return token_risk.Draw(seen.probability_N, sum(map(len, ids)), seen.classes)


def _bound(
  seen: certificate.Evidence,
  ids: list[np.ndarray],
  header: headers.Header,
  file_bits: int,
  delta: float,
  draw: dict[str, int] | None,
) -> bounds_lib.Bound:
  """The main certificate, in bits per byte."""
  if draw is None:
    return certificate.certify(seen, header, file_bits, delta)
  if header.slope:
    raise ValueError(
      f'file has slope {header.slope} of smoothing, but a drawn risk is bounded'
      ' at a constant alpha only; certify it anew'
    )
  found = token_risk.certify(_drawn(seen, ids), header.base, file_bits, delta)
  return certificate.in_bytes(seen, found)


def _held_out(
  decoded: predictor.Predictor,
  header: headers.Header,
  stream: streams.Stream,
  spelling: codec.Codec,
  draw: dict[str, int] | None,
) -> dict[str, Any]:
  """What is measured of another stream, of as many tokens, with no bound."""
  ids = _ids(spelling, stream)
  tokens = sum(map(len, ids))
  if draw is not None:
    draw = draw | {'count': min(draw['count'], tokens)}
  seen = _evidence(decoded, ids, stream, spelling, draw)
  losses_N = certificate.smooth(seen, *header.smoothing).losses_N
  return {
    'stream': stream.name,
    'bytes': stream.bytes,
    'bits_per_byte': seen.in_bytes(float(losses_N.mean())),
  }
