"""What is claimed of a model over tokens: as JSON and for people."""

import dataclasses
import json
from typing import Any

from bounds import bound as bounds_lib
from bounds import certificate
from bounds import token_risk
from configs import base
from configs import certify
from configs import streams
from data import codec
from data import tokenizer_json


def to_json(
  certified: certify.Certified,
  data: bytes,
  stream: streams.Stream,
  *,
  tokens: int,
  corpus: Any,
  delta: float,
  max_bytes: int | None,
  draw: dict[str, int] | None,
) -> dict[str, Any]:
  """As certify.to_json, with the tokenizer and the draw."""
  decoded, seen, found = certified
  claim = certify.to_json(
    certified, data, stream, delta=delta,
    corpus=dataclasses.replace(corpus, codec=codec.Bytes()),
    max_bytes=max_bytes,
  )  # fmt: skip
  claim['stream']['symbols'] = tokens
  per_token = bounds_lib.Bound(found.value / seen.per_byte, {})
  claim['bits_per_token'] = float(per_token.rounded_up(4))
  claim['smoothing']['alphabet'] = 'tokens'
  claim |= {'tokens': base.to_json(corpus.codec), 'draw': draw}
  if draw is None:
    rungs = certificate.Ladder(delta, short=True)(
      seen, decoded.header, 8 * len(data)
    )
    claim['ladder'] = {name: x.value for name, x in rungs.items()}
  else:
    claim['bound']['rule'] = 'bounds.subsample.SampledBetting'
    other = token_risk.published(
      token_risk.Draw(seen.probability_N, tokens, seen.classes),
      decoded.header.base,
      8 * len(data),
      delta,
    )
    in_bytes = seen.in_bytes(other.value)
    claim['ladder'] = {'Azuma (published), drawn': in_bytes}
  return claim


def summary(claim: dict[str, Any]) -> str:
  """What was certified, in a few lines."""
  stream, terms = claim['stream'], claim['bound']
  value, line = claim['bits_per_byte'], claim['vacuous_from']
  verdict = 'not vacuous' if value < line else 'VACUOUS: guessing does as well'
  draw = claim['draw']
  read = f'{draw["count"]} drawn' if draw else 'all'
  rate = stream['symbols'] / stream['bytes']
  rows = [
    ('certified bits per byte', f'{value:.4f} ({verdict})'),
    ('certified bits per token', f'{claim["bits_per_token"]:.4f}'),
    ('confidence', f'{100 * (1 - claim["delta"]):.6g} %'),
    (
      f'guessing, {claim["smoothing"]["classes"]} tokens',
      f'{line:.3f} bits per byte, {line / rate:.3f} per token',
    ),
    ('empirical risk of the file', f'{terms["empirical_risk"]:.4f}'),
    ('gap', f'{terms["gap"]:.4f}'),
  ]
  if 'held_out' in claim:
    held = claim['held_out']
    rows.append(
      (f'held out ({held["stream"]})', f'{held["bits_per_byte"]:.4f}')
    )
  rows += [
    ('file', f'{claim["file"]["bytes"]} bytes'),
    (
      'stream',
      f'{stream["name"]}, {stream["bytes"]} bytes, {stream["symbols"]} tokens'
      f' in {stream["documents"]} documents, {read}',
    ),
  ]
  rows += [(name, f'{x:.4f}') for name, x in claim['ladder'].items()]
  return '\n'.join(f'{name:32}{text}' for name, text in rows)


def page(claim: dict[str, Any]) -> str:
  return f"""# Certificate

With confidence {100 * (1 - claim['delta']):.6g} % over the draw of the stream
and of the tokens looked at, the predictor in `model.pw` needs at most
**{claim['bits_per_token']:.4f} bits per token, {claim['bits_per_byte']:.4f}
bits per byte** on average when every token of the stream is drawn anew given
the true text before it. It says nothing about other documents, about text that
the predictor writes itself, or about the network before it was rounded. Neither
the tokenizer nor the seed of the draw may have been chosen by the stream.

```
{summary(claim)}
```

Check it with the file, the certificate and the stream:

```
python -m bounds.verify model.pw certificate.json
```
"""


def tokens_of(claim: dict[str, Any]) -> tokenizer_json.TokenizerJson:
  tree = claim.get('tokens')
  certify.check_corpus(tree)
  spelling = base.from_json(tree, 'tokens')
  if not isinstance(spelling, tokenizer_json.TokenizerJson):
    raise ValueError(
      'the certificate is of a file over tokens but holds no tokenizer; it was'
      ' changed, or belongs to another file'
    )
  return spelling


def draw_of(claim: dict[str, Any], tokens: int) -> dict[str, int] | None:
  draw = claim.get('draw')
  if draw is None:
    return None
  numbers = [draw.get(x) if isinstance(draw, dict) else None
             for x in ('count', 'seed')]  # fmt: skip
  if not all(type(x) is int for x in numbers) or not (
    1 <= numbers[0] <= tokens and 0 <= numbers[1] < 1 << 62
  ):
    raise ValueError(
      f'the certificate has draw={json.dumps(draw)[:60]}; it must be null, or a'
      f' count of 1 to {tokens} tokens and the seed that drew them'
    )
  return dict(zip(('count', 'seed'), numbers, strict=True))
