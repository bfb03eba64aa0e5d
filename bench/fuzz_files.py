"""Targets of bench.fuzz that are files: weights, tables, data, checkpoints."""

import csv
import functools
import gzip
import io
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import fuzz_texts
from data import builder
from data import event_corpus
from data import event_inspect
from data import event_layouts
from data import event_reader
from data import event_schema
from data import event_tokens
from data import sources
from data import text
from data import tokenizer_json
from released import blt
from released import fields
from released import llama
from released import tensor_files
from samplers import ngram_tables
from training import checkpoint
from training import manifest

COLUMNS = ['user', 'when', 'amount', 'shop', 'online', 'bad']
_SCHEMA = event_schema.Schema(
  'user',
  'when',
  (
    event_schema.Field('amount', 'number'),
    event_schema.Field('shop', 'id'),
    event_schema.Field('online', 'bool'),
    event_schema.Field('bad', 'label'),
  ),
)
_NINE_IDS = ngram_tables.Vocabulary(9, '0a' * 32)


def _fresh(folder: pathlib.Path, name: str) -> pathlib.Path:
  """An empty folder."""
  place = folder / name
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir()
  return place


def _write(folder: pathlib.Path, name: str, data: bytes) -> pathlib.Path:
  path = folder / name
  path.write_bytes(data)
  return path


def _safetensors(folder: pathlib.Path) -> list[bytes]:
  place = _fresh(folder, 'seed')
  planned = {
    'a': tensor_files.Planned('F32', (3, 4)),
    'b.weight': tensor_files.Planned('BF16', (5,)),
    'c': tensor_files.Planned('F16', ()),
  }
  tensor_files.write(
    place,
    planned,
    lambda name: [
      np.ones(planned[name].shape, tensor_files.DTYPES[planned[name].dtype])
    ],
  )
  return [(place / tensor_files.SINGLE).read_bytes()]


def _read_safetensors(data: bytes, folder: pathlib.Path) -> None:
  _write(folder, tensor_files.SINGLE, data)
  for stored in tensor_files.scan(folder).values():
    if stored.dtype in tensor_files.DTYPES:
      tensor_files.read(stored)


def _index(_: pathlib.Path) -> list[bytes]:
  files = {'a': 'one.safetensors', 'b.weight': 'one.safetensors'}
  return [json.dumps({'metadata': {}, 'weight_map': files}).encode()]


def _read_index(data: bytes, folder: pathlib.Path) -> None:
  place = folder / 'indexed'
  if not place.exists():
    place.mkdir()
    _write(place, 'one.safetensors', _safetensors(folder)[0])
  _write(place, tensor_files.INDEX, data)
  tensor_files.scan(place)


def _part(width: int, **more: Any) -> dict[str, Any]:
  rope = {'rope_type': 'default', 'rope_theta': 500.0}
  return {
    'hidden_size': width, 'num_hidden_layers': 1, 'num_attention_heads': 2,
    'intermediate_size': 20, 'rope_parameters': rope, 'rms_norm_eps': 1e-5,
    **more,
  }  # fmt: skip


def _released(_: pathlib.Path) -> list[bytes]:
  scaled = {
    'rope_type': 'llama3', 'rope_theta': 70.0, 'factor': 8.0,
    'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 24,
  }  # fmt: skip
  trees = (
    _part(16, model_type='llama', vocab_size=260, eos_token_id=[2, 3]),
    _part(16, model_type='mistral', vocab_size=99, sliding_window=5)
    | {'rope_parameters': scaled},
    {
      'model_type': 'blt',
      'vocab_size': 260,
      'encoder_hash_byte_group_size': [4, 3],
      'encoder_hash_byte_group_vocab': 97,
      'max_patch_length': 6,
      'patching_threshold': 1.3,
      'patcher_config': _part(12, sliding_window=7),
      'encoder_config': _part(16, cross_attn_k=2),
      'decoder_config': _part(16, cross_attn_k=2, hidden_size_global=24),
      'global_config': _part(24),
    },
  )
  return [json.dumps(tree).encode() for tree in trees]


def _read_released(data: bytes, folder: pathlib.Path) -> None:
  _write(folder, fields.NAME, data)
  description = fields.read(folder)
  kind = description.get('model_type')
  family = blt if kind == 'blt' else llama
  family.leaves(family.model(description))
  if family is llama:
    llama.marks(description)


@functools.cache
def _tokenizers() -> tuple[bytes, ...]:
  """Of the two kinds that Llama models have, with few tokens."""
  import tokenizers

  letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  vocab = {letter: i for i, letter in enumerate(sorted(letters))}
  bytewise = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocab | {'ab': 256}, merges=[('a', 'b')])
  )
  bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  bytewise.decoder = tokenizers.decoders.ByteLevel()
  bytewise.add_special_tokens(['<s>'])
  bytewise.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 257)]
  )
  names = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
  names += ['▁', 'a', 'b', '▁a']
  spaced = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={name: i for i, name in enumerate(names)}, merges=[('▁', 'a')],
      unk_token='<unk>', fuse_unk=True, byte_fallback=True,
    )
  )  # fmt: skip
  spaced.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
  spaced.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('▁', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  spaced.add_special_tokens(['<unk>', '<s>', '</s>'])
  return bytewise.to_str().encode(), spaced.to_str().encode()


def _read_tokenizer(data: bytes, folder: pathlib.Path) -> None:
  path = _write(folder, tokenizer_json.NAME, data)
  found = tokenizer_json.read(path, vocabulary_size=300, bos=1, stops=(2,))
  said = b'abab \xff\xc3\xa9'
  assert found.decode(found.encode(said)) == said, 'text is lost'


def _table() -> list[list[str]]:
  rng = np.random.default_rng(0)
  return [
    [f'u{i % 3}', f'2020-01-{i + 1:02d} 08:00:00', f'${rng.integers(99)}.50',
     f's{rng.integers(4)}', 'Yes' if i % 2 else 'No', 'no']
    for i in range(9)
  ]  # fmt: skip


def _csv(_: pathlib.Path) -> list[bytes]:
  found = []
  quoted = [[*row[:3], 'x, "y"\nz', *row[4:]] for row in _table()]
  for lines in (_table(), quoted):
    file = io.StringIO(newline='')
    csv.writer(file).writerows([COLUMNS, *lines])
    found.append(file.getvalue().encode())
  return found


def _read_table(path: pathlib.Path) -> None:
  reader = event_reader.Reader(path, _SCHEMA)
  for _ in reader.chunks():
    pass
  reader.check(0.5)
  reader.check_filled()
  event_inspect.propose(path).to_json()


def _read_csv(data: bytes, folder: pathlib.Path) -> None:
  _read_table(_write(folder, 'events.csv', data))


def _packed(folder: pathlib.Path) -> list[bytes]:
  found = [gzip.compress(data, mtime=0) for data in _csv(folder)]
  return [*found, gzip.compress(b'user,when\n' + b'a,b\n' * 2**18, mtime=0)]


def _read_packed(data: bytes, folder: pathlib.Path) -> None:
  _read_table(_write(folder, 'events.csv.gz', data))


def _parquet(folder: pathlib.Path) -> list[bytes]:
  columns = dict(zip(COLUMNS, zip(*_table(), strict=True), strict=True))
  texts = pa.table({name: list(column) for name, column in columns.items()})
  typed = texts.set_column(2, 'amount', pa.array(np.arange(9) / 4))
  time_E = np.arange(9) * 10**12
  typed = typed.set_column(1, 'when', pa.array(time_E, pa.timestamp('us')))
  typed = typed.set_column(4, 'online', pa.array([True] * 8 + [None]))
  shop = typed.column('shop').combine_chunks().dictionary_encode()
  typed = typed.set_column(3, 'shop', shop)
  found = []
  for table, codec in ((texts, 'none'), (typed, 'snappy'), (typed, 'zstd')):
    path = folder / 'seed.parquet'
    pq.write_table(table, path, compression=codec)
    found.append(path.read_bytes())
  return found


def _read_parquet(data: bytes, folder: pathlib.Path) -> None:
  _read_table(_write(folder, 'events.parquet', data))


def _read_lines(data: bytes, folder: pathlib.Path) -> None:
  path = _write(folder, 'a.jsonl', data)
  for _ in sources.JsonLines(str(path)).documents():
    pass


def _read_column(data: bytes, folder: pathlib.Path) -> None:
  path = _write(folder, 'a.parquet', data)
  for _ in sources.ParquetColumn(str(path), 'shop').documents():
    pass


def _reviews(_: pathlib.Path) -> list[bytes]:
  review = {'reviewerID': 'a', 'asin': 'b', 'verified': True, 'overall': 5.0,
            'unixReviewTime': 1_400_000_000}  # fmt: skip
  return [(json.dumps(review) + '\n').encode() * 3]


def _read_reviews(data: bytes, folder: pathlib.Path) -> None:
  for _ in event_layouts.amazon_rows(_write(folder, 'reviews.json', data)):
    pass


def _offsets(folder: pathlib.Path) -> list[bytes]:
  np.save(folder / 'seed.npy', np.array([0, 3, 3, 9], np.int64))
  return [(folder / 'seed.npy').read_bytes()]


def _read_offsets(data: bytes, folder: pathlib.Path) -> None:
  split = folder / 'train'
  split.mkdir(exist_ok=True)
  _write(split, 'bytes.bin', b'some text')
  _write(split, 'offsets.npy', data)
  corpus = text.Corpus(split)
  for index in range(min(len(corpus), 10)):
    _ = corpus[index]


def _read_events(data: bytes, folder: pathlib.Path) -> None:
  split = folder / 'train'
  split.mkdir(exist_ok=True)
  tree = json.dumps(fuzz_texts.EVENT_TOKENIZER)
  tokenizer = event_tokens.Tokenizer.from_json(tree)
  stored = json.dumps({'tokenizer': tokenizer.digest}).encode()
  _write(split, 'corpus.json', stored)
  sizes = {'ids': 54, 'values': 108, 'times': 72, 'scored': 9}
  for name, size in sizes.items():
    _write(split, f'{name}.bin', bytes(size))
  _write(split, 'offsets.npy', data)
  event_corpus.EventCorpus.load(split, tokenizer)


def _store(folder: pathlib.Path) -> list[bytes]:
  store = ngram_tables.build([np.array([1, 2, 3, 1, 2, 4, 1, 2, 3])])
  ngram_tables.save(folder / 'seed.npz', store, _NINE_IDS)
  packed = folder / 'packed.npz'
  np.savez_compressed(packed, a=np.zeros(2**20, np.uint32))
  return [(folder / 'seed.npz').read_bytes(), packed.read_bytes()]


def _read_store(data: bytes, folder: pathlib.Path) -> None:
  ngram_tables.load(_write(folder, 'store.npz', data), _NINE_IDS)


def _as_json(root: pathlib.Path) -> bytes:
  """Every file below a folder, see mutations.damaged."""
  files = {
    str(path.relative_to(root)): path.read_bytes().decode('latin-1')
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }
  return json.dumps(files).encode()


def _unpack(data: bytes, folder: pathlib.Path) -> None:
  for name, content in json.loads(data).items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode('latin-1'))


def _checkpoint(folder: pathlib.Path) -> list[bytes]:
  state = {'params': {'a': np.ones((2, 3), np.float32)}, 'step': jnp.int32(1)}
  with checkpoint.Checkpoints(folder / 'run', config={}) as checkpoints:
    checkpoints.save(1, state, force=True)
  return [_as_json(folder / 'run' / 'checkpoints' / '1' / 'arrays')]


def _read_checkpoint(data: bytes, folder: pathlib.Path) -> None:
  """Files of arrays that were changed and entered into the manifest anew."""
  place = _fresh(folder, 'run')
  step = place / 'checkpoints' / '1'
  _unpack(data, step / 'arrays')
  leaves = {'params/a': ['float32', [2, 3]], 'step': ['int32', []]}
  told = {'step': 1, 'extra': {}, 'config': {}, 'leaves': leaves}
  manifest.write(step, told)
  checkpoint.load_params(place)


def _dataset(folder: pathlib.Path) -> list[bytes]:
  """A TFDS dataset of three texts."""
  source = sources.JsonLines(
    str(_write(folder, 'a.jsonl', b'{"text": "one"}\n{"text": "two"}\n'))
  )
  config = builder.CorpusConfig(
    name='toy', source=source, splits=('train',), assign=lambda _: 'train'
  )
  made = builder.write(config, folder / 'made')
  return [_as_json(made)]


def _read_dataset(data: bytes, folder: pathlib.Path) -> None:
  place = _fresh(folder, 'sets')
  _unpack(data, place / 'patchwork_text' / 'toy' / '1.0.0')
  source = sources.TfdsText('patchwork_text/toy', data_dir=str(place))
  for _ in source.documents():
    pass


TARGETS: Sequence[fuzz_texts.Target] = (
  fuzz_texts.Target(
    'safetensors', _safetensors, _read_safetensors, tensor_files.SINGLE
  ),
  fuzz_texts.Target(
    'safetensors index', _index, _read_index, 'index', 'json'
  ),
  fuzz_texts.Target('released config', _released, _read_released,
                    fields.NAME, 'json'),
  fuzz_texts.Target('tokenizer.json', lambda _: _tokenizers(), _read_tokenizer,
                    tokenizer_json.NAME, 'json'),
  fuzz_texts.Target('csv', _csv, _read_csv, 'events.csv'),
  fuzz_texts.Target('csv.gz', _packed, _read_packed, 'events.csv.gz'),
  fuzz_texts.Target('parquet', _parquet, _read_parquet, 'events.parquet'),
  fuzz_texts.Target('json lines', lambda _: [b'{"text": "a"}\n{"text": ""}\n'],
                    _read_lines, 'a.jsonl'),
  fuzz_texts.Target('parquet text', _parquet, _read_column, 'a.parquet'),
  fuzz_texts.Target('reviews', _reviews, _read_reviews, 'reviews.json'),
  fuzz_texts.Target('text corpus', _offsets, _read_offsets, 'offsets.npy'),
  fuzz_texts.Target('event corpus', _offsets, _read_events, 'train'),
  fuzz_texts.Target('checkpoint', _checkpoint, _read_checkpoint, '', 'files'),
  fuzz_texts.Target('tfds', _dataset, _read_dataset, '', 'files'),
  fuzz_texts.Target('n-gram store', _store, _read_store, 'store.npz'),
)  # fmt: skip
