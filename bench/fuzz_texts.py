"""Targets of bench.fuzz that are texts: flags, JSON, certificates, codes."""

import base64
import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bounds import bound
from bounds import codec as bound_codec
from bounds import counts
from bounds import header as headers
from bounds import quantise
from bounds import structure as structures
from bounds import token_file
from configs import base
from configs import certify
from configs import predictor
from configs import restore
from configs import streams
from data import codec
from data import event_cells
from data import event_schema
from data import event_tokens
from data import json_text
from data import png
from data import tokens
from models import lm
from models import ngrams
from models import unlimited
from samplers import chain
from samplers import constraints
from training import manifest
from training import workdir


class Target(NamedTuple):
  """Something that reads bytes.

  seeds: valid inputs; they may need a folder to be written in.
  read: reads an input, for which it may use the folder.
  named: what every message of its refusals has to name.
  kind: of the damage, see mutations.damaged.
  repaired: what an attacker does so that checksums are right again.
  refusals: classes of errors besides ValueError that its callers expect.
  """

  name: str
  seeds: Callable[[pathlib.Path], Sequence[bytes]]
  read: Callable[[bytes, pathlib.Path], Any]
  named: str
  kind: str = 'bytes'
  repaired: Callable[[bytes], bytes] | None = None
  refusals: tuple[type[Exception], ...] = ()


def as_argument(data: bytes) -> str:
  """Bytes of a command line as Python shows them."""
  return data.decode('utf-8', 'surrogateescape')


@functools.cache
def _config() -> base.Config:
  return base.load('configs/tiny.py')


def _write(folder: pathlib.Path, name: str, data: bytes) -> pathlib.Path:
  path = folder / name
  path.write_bytes(data)
  return path


def _read_sampler(data: bytes, _: pathlib.Path) -> None:
  constraints.check(chain.parse(as_argument(data)).rules, 260)


def _read_assignment(data: bytes, _: pathlib.Path) -> None:
  base.override(_config(), as_argument(data).split('\n'))


def _read_limit(data: bytes, _: pathlib.Path) -> None:
  unlimited.parse(as_argument(data))


def _read_prompt(data: bytes, _: pathlib.Path) -> None:
  spelling = codec.Bytes()
  found = spelling.decode(spelling.prompt(data), begins=True)
  assert found == data, 'a prompt is not what it was'


def _read_merges(data: bytes, _: pathlib.Path) -> None:
  spelling = tokens.Bpe(vocabulary_size=300, merges=as_argument(data))
  _ = spelling.tokens


def _read_config(data: bytes, _: pathlib.Path) -> None:
  tree = json_text.parse(data, 'config', 'take another')
  restore.checked(tree, 'config')


def _read_certificate(data: bytes, folder: pathlib.Path) -> None:
  path = _write(folder, 'certificate.json', data)
  text = _write(folder, 'text.txt', b'some text')
  claim = certify.read(str(path))
  bound.check_delta(claim['delta'])
  certify.claimed_stream(claim, str(text))


def _read_schema(data: bytes, folder: pathlib.Path) -> None:
  schema = event_schema.Schema.load(_write(folder, 'schema.json', data))
  schema.check(['user', 'when', 'amount', 'shop', 'bad'], 'schema.json')
  assert event_schema.Schema.from_json(schema.to_json()) == schema
  column = pa.array(['2020-01-31 08:00:00', '1', ''])
  event_cells.times([column], 'when', schema.time_format)


def _read_event_tokenizer(data: bytes, _: pathlib.Path) -> None:
  found = event_tokens.Tokenizer.from_json(data)
  again = event_tokens.Tokenizer.from_json(found.to_json())
  assert again == found and found.vocabulary > 0


def _read_run_config(data: bytes, folder: pathlib.Path) -> None:
  _write(folder, 'config.json', data)
  workdir.read_config(folder)


def _read_manifest(data: bytes, folder: pathlib.Path) -> None:
  place = folder / 'step'
  place.mkdir(exist_ok=True)
  _write(place, 'arrays', b'some numbers')
  _write(place, manifest.NAME, data)
  fields = {'step': int, 'extra': dict, 'config': dict, 'leaves': dict}
  manifest.verify(place, fields)


def _signed(data: bytes) -> bytes:
  """A manifest whose hash is right."""
  body = data.partition(b'\n')[2]
  return hashlib.sha256(body).hexdigest().encode() + b'\n' + body


def _manifest(folder: pathlib.Path) -> list[bytes]:
  place = folder / 'seed'
  place.mkdir()
  _write(place, 'arrays', b'some numbers')
  tree = {
    'step': 3, 'extra': {'rows': 4}, 'config': {'class': 'a.B', 'fields': {}},
    'leaves': {'params/embed': ['float32', [3, 4]], 'step': ['int32', []]},
  }  # fmt: skip
  manifest.write(place, tree)
  return [(place / manifest.NAME).read_bytes()]


def _tensors() -> list[quantise.Coded]:
  rng = np.random.default_rng(0)
  return [
    quantise.Deadzone(1.1)(rng.standard_normal((9, 7))),
    quantise.Uniform(0.1, per_row=True)(rng.standard_cauchy((3, 4, 2))),
    quantise.Codebook(3)(rng.standard_normal((4, 5))),
    quantise.Uniform(1.0)(np.array(0.3)),
  ]


def _sealed(data: bytes) -> bytes:
  """A file whose length and checksum are right, around what was its body."""
  magic = data[:2] if data[:2] in (b'PW', b'PK', b'PT') else b'PW'
  return bound_codec.sealed(data[4:-4], magic)


def _read_model_file(data: bytes, _: pathlib.Path) -> None:
  for tensor in bound_codec.decode(data).tensors:
    tensor.decode()


def _counts(_: pathlib.Path) -> list[bytes]:
  class_N = np.frombuffer(b'abracadabra, abracadabra' * 20, np.uint8) % 96
  place_N = np.arange(len(class_N))
  found = []
  for order in (0, 2):
    options = counts.Options(alphabet=1, classes=98, order=order)
    table = counts.count(class_N.astype(np.int32), place_N, options)
    found.append(counts.encode(table, options))
  return found


def _read_counts(data: bytes, _: pathlib.Path) -> None:
  levels, options = counts.decode(data)
  counts.predict(levels, options.weight / 4)


_DIGEST = '0123456789abcdef' * 4


def _read_token_file(data: bytes, _: pathlib.Path) -> None:
  bound_codec.decode(token_file.unpack(data, _DIGEST))


@functools.cache
def _network() -> lm.ByteLM:
  return lm.ByteLM(
    width=8, layers=1, heads=2, key_value_heads=2, hidden=12,
    ngrams=ngrams.NgramEmbedding(sizes=(2,), rows=11),
  )  # fmt: skip


@functools.cache
def _model_file() -> bytes:
  """A small network in a file."""
  rng = np.random.default_rng(0)
  coded = {
    name: quantise.Uniform(0.5)(rng.standard_normal(shape))
    for name, shape in predictor.shapes_of(_network()).items()
  }
  header = headers.Header('bytes', 3, 4, 16, 8, base.to_json(_network()))
  return predictor.encode(coded, header)


def _networks(_: pathlib.Path) -> list[bytes]:
  tree = base.to_json(_network())
  structure = base.to_json(structures.Shared())
  both = tree | {'structure': structure}
  return [json.dumps(x).encode() for x in (tree, both)]


def _read_network(data: bytes, _: pathlib.Path) -> None:
  """JSON of a network as the notes of a file with the arrays of another."""
  deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
  notes = bytes([0, 3, 4, 16, 0, 8, 0])
  notes += deflate.compress(data) + deflate.flush()
  file = bound_codec.decode(_model_file())
  if len(notes) <= bound_codec.MAX_NOTES:
    predictor.decode(bound_codec.encode(file.tensors, notes))


def _read_packed(data: bytes, _: pathlib.Path) -> None:
  """A tokenizer as a stored config or a certificate has it."""
  tree = {
    'class': 'data.tokenizer_json.TokenizerJson',
    'fields': {
      'vocabulary_size': 400,
      'bos': 1,
      'stops': [2],
      'packed': base64.b85encode(data).decode(),
    },
  }
  _ = base.from_json(tree).file


_SCHEMA = event_schema.Schema(
  'user',
  'when',
  (
    event_schema.Field('amount', 'number'),
    event_schema.Field('shop', 'category', ('a', 'b')),
    event_schema.Field('bad', 'label'),
  ),
)
EVENT_TOKENIZER = {
  'entity': 'user',
  'time': 'when',
  'fitted_on': '',
  'version': 1,
  'columns': [
    {'name': 'amount', 'kind': 'number', 'code': 'Bins', 'mean': 0.5,
     'edges': [1.0, 2.0, 4.0], 'samples': [[1.0, 1.5], [2.0]], 'scale': 1.0,
     'spread': 1.0},
    {'name': 'card', 'kind': 'id', 'code': 'Recents', 'depth': 16,
     'samples': ['c1', 'c2']},
    {'name': 'bad', 'kind': 'label', 'code': 'Words', 'masked': True,
     'words': ['no', 'yes']},
  ],
}  # fmt: skip
_STREAM = streams.Stream('text', (np.frombuffer(b'some text', np.uint8),))
_CLAIM = {
  'format': certify.FORMAT,
  'version': certify.VERSION,
  'bits_per_byte': 2.5,
  'delta': 0.05,
  'file': {'bytes': 3, 'bits': 24, 'sha256': 'ab'},
  'stream': {
    'name': 'train',
    'max_bytes': None,
    'documents': 1,
    'bytes': 9,
    'symbols': 10,
    'corpus': {
      'class': 'data.text.Text',
      'fields': {
        'source': {
          'class': 'data.sources.TextFiles', 'fields': {'pattern': 'a/*'},
        },
        'validation_fraction': 0.05,
        'codec': {'class': 'data.codec.Bytes', 'fields': {}},
      },
    },
    'sha256': _STREAM.sha256,
  },
}  # fmt: skip


def _png(_: pathlib.Path) -> list[bytes]:
  """Three rows of two pixels, each made from others in another way."""
  sizes = bytes([0, 0, 0, 2, 0, 0, 0, 3, 8, 0, 0, 0, 0])
  rows = zlib.compress(bytes([1, 1, 2, 3, 4, 5, 4, 6, 7]))
  parts = [b'\x89PNG\r\n\x1a\n']
  for kind, content in ((b'IHDR', sizes), (b'IDAT', rows), (b'IEND', b'')):
    checksum = zlib.crc32(kind + content).to_bytes(4, 'big')
    parts += [len(content).to_bytes(4, 'big'), kind, content, checksum]
  return [b''.join(parts)]


def _read_png(data: bytes, _: pathlib.Path) -> None:
  png.decode([data], (3, 2, 1), 'file ')


def _texts(*texts: str) -> Callable[[pathlib.Path], list[bytes]]:
  return lambda _: [text.encode() for text in texts]


def _json(*trees: Any) -> Callable[[pathlib.Path], list[bytes]]:
  return _texts(*map(json.dumps, trees))


TARGETS = (
  Target(
    'sampler',
    _texts(
      'temperature(0.8)|top_k(40)|top_p(0.95)', 'greedy',
      'xtc(0.5, threshold=0.1)|deny(0-3 255)', 'bias(10:-2 97-122:0.5)',
      'llama.cpp: top_p(0.9)|temperature(0.8)|mirostat(5)', 'hf: top_h(0.4)',
      'dry(0.8, base=1.75, breakers=10 32)|min_length(3, ids=2)',
    ),
    _read_sampler, '',
  ),
  Target(
    'set',
    _texts(
      'model.width=96\noptimizer.learning_rate=3e-3', 'steps=100',
      'mesh.data=-1', 'model.masks.0.window=none', 'evals.0.window=32',
      'sampler.rules.0.temperature=0.7', 'data.directory=/tmp/x',
      'model.ngrams.sizes=(3,4)', 'shardings=()', 'seed=0',
    ),
    _read_assignment, '',
  ),
  Target('lambda', _texts('10,512', '10,512,4', 'off'), _read_limit, ''),
  Target('prompt', _texts('def read(', 'é\n日本'), _read_prompt, ''),
  Target('merges', _texts('36 36,108 105', '4 5,260 6'), _read_merges,
         'merges'),
  Target(
    'config', lambda _: [json.dumps(base.to_json(_config())).encode()],
    _read_config, 'config', 'json',
  ),
  Target('config.json', _json({'class': 'a', 'fields': {}}), _read_run_config,
         'config.json', 'json'),
  Target('certificate', _json(_CLAIM), _read_certificate, '', 'json'),
  Target('schema', _texts(_SCHEMA.to_json()), _read_schema, 'schema.json',
         'json'),
  Target('event tokenizer', _json(EVENT_TOKENIZER), _read_event_tokenizer,
         'tokenizer', 'json'),
  Target('manifest', _manifest, _read_manifest, '', 'bytes', _signed,
         (manifest.Damaged,)),
  Target('model.pw', lambda _: [bound_codec.encode(_tensors(), b'notes')],
         _read_model_file, 'file', 'bytes', _sealed),
  Target('counts', _counts, _read_counts, '', 'bytes', _sealed),
  Target(
    'token file',
    lambda _: [token_file.pack(bound_codec.encode(_tensors()[:1]), _DIGEST)],
    _read_token_file, 'file', 'bytes', _sealed,
  ),
  Target('png', _png, _read_png, 'file 0'),
  Target('network', _networks, _read_network, '', 'json'),
  Target('packed tokenizer', lambda _: [zlib.compress(b'{"a": 1}' * 99)],
         _read_packed, 'packed'),
)  # fmt: skip
