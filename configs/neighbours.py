"""Key stores of runs: whose one is, decoding with it, what came from where."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import restore
from configs import settings
from data import codec
from models import key_states
from samplers import chain
from samplers import engines
from samplers import key_files
from samplers import nearest
from samplers import nest
from samplers import retrieval
from training import manifest


class Corpus(NamedTuple):
  """A store, and how it is used: numbers of the mixture and of the search."""

  store: key_files.Store
  rule: nearest.Nest
  search: retrieval.Retrieval


class Span(NamedTuple):
  """A run of a text's ids that a document has too.

  first, count: of the ids of the text. offset: of its bytes in the document.
  """

  first: int
  count: int
  document: str
  offset: int
  text: bytes


def read(directory: str, run: restore.Run, text: str) -> Corpus:
  """A store with what a line as `gamma=0.1, passages=20` says; ValueError."""
  return Corpus(open_store(directory, run), *parse(text))


def parse(text: str) -> tuple[nearest.Nest, retrieval.Retrieval]:
  """Fields by name, all others as they are; ValueError names a wrong one."""
  kinds = nearest.Nest, retrieval.Retrieval
  values = settings.parse(text, 'nest', kinds)
  return tuple(
    kind(
      **{
        f.name: values[f.name]
        for f in dataclasses.fields(kind)
        if f.name in values
      }
    )
    for kind in kinds
  )


def engine(
  corpus: Corpus,
  model: Any,
  params: Any,
  plan: engines.Plan,
  texts: Sequence[bytes],
  sampler: chain.Chain,
) -> engines.Engine:
  """What decodes with a corpus; texts: the prompt of every row."""
  source = engines.Source(key_states.step(model), params, model.init_cache)
  find = retrieval.finder(corpus.store, corpus.search, corpus.rule.span)
  return engines.nests(
    source,
    plan,
    sampler,
    lambda mean_BD: find(texts, mean_BD),
    corpus.rule,
    recent=corpus.store.settings.passage,
  )


def fingerprint(run: restore.Run) -> str:
  """Of a model and its parameters, whatever files they were read from."""
  digest = hashlib.sha256(json.dumps(identity(run.config.model)).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(run.params):
    array = np.asarray(leaf)
    head = f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'
    digest.update(head.encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))
  return digest.hexdigest()


def identity(value: Any) -> Any:
  """JSON of all fields that are not as they are by default.

  So a field that is new in the code makes no other model of an old one.
  """
  if isinstance(value, tuple):
    return [identity(item) for item in value]
  if not dataclasses.is_dataclass(value):
    return value
  changed = {}
  for field in dataclasses.fields(value):
    found, default = getattr(value, field.name), field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    if field.name not in ('parent', 'name') and found != default:
      changed[field.name] = identity(found)
  return [type(value).__name__, changed]


def open_store(directory: str, run: restore.Run) -> key_files.Store:
  """The store in a directory; ValueError unless it is whole and of this run."""
  path = pathlib.Path(directory)
  if not (path / manifest.NAME).exists():
    unfinished = any(path.glob('keys-*.bin'))
    raise ValueError(
      f'{path} is no key store' + (' yet' if unfinished else '') + '; make one'
      f' with python -m samplers.key_store --checkpoint=DIR --out={path}'
    )
  try:
    header = manifest.verify(path)
  except manifest.Damaged as error:
    raise ValueError(
      f'key store {path} is damaged: {error}; remove it and build it again'
    ) from error
  if 'settings' not in header:
    raise ValueError(f'{path} is no key store; name a folder that is one')
  try:
    held = key_files.checked(path, header)
  except ValueError as error:
    raise ValueError(
      f'key store {path} is damaged: {error}; remove it and build it again'
    ) from error
  size = run.config.model.vocabulary_size
  if held.vocabulary_size != size:
    raise ValueError(
      f'key store {path} is of a vocabulary of {held.vocabulary_size} ids'
      f' and the model has {size}; build one with this model'
    )
  if held.model != fingerprint(run):
    raise ValueError(
      f'key store {path} is of another model or of other parameters, so that'
      ' its keys mean nothing to this one; build one with this checkpoint'
    )
  return key_files.Store(path, header)


def spans(
  store: key_files.Store, spelling: codec.Codec, state: nest.State
) -> list[list[Span]]:
  """What every text has of the corpus, in its order."""
  parts = state.target.ids_BN, state.document_BN, state.offset_BN
  rows = zip(*map(np.asarray, parts), state.target.length_B, strict=True)
  return [
    list(_spans(store, spelling, *(x[:length] for x in row)))
    for *row, length in rows
  ]


def described(found: Sequence[Span]) -> list[str]:
  """A line of text for each."""
  return [
    f'ids {span.first}-{span.first + span.count - 1}: {span.document} at byte'
    f' {span.offset}: {span.text.decode("utf-8", "replace")!r}'
    for span in found
  ]


def as_json(found: Sequence[Span]) -> list[dict[str, Any]]:
  return [
    span._replace(text=span.text.decode('utf-8', 'replace'))._asdict()
    for span in found
  ]


def _spans(
  store: key_files.Store,
  spelling: codec.Codec,
  ids_N: np.ndarray,
  document_N: np.ndarray,
  offset_N: np.ndarray,
) -> Iterator[Span]:
  # A run goes on where the next id is the next one of the same document.
  is_next_N = (np.diff(document_N) == 0) & (np.diff(offset_N) == 1)
  borders = [0, *np.flatnonzero(~is_next_N) + 1, len(ids_N)]
  for first, stop in itertools.pairwise(borders):
    if first < stop and document_N[first] >= 0:
      place = int(document_N[first]), int(offset_N[first])
      yield Span(
        int(first),
        int(stop - first),
        store.names[place[0]],
        _byte_offset(store, spelling, *place),
        spelling.decode(ids_N[first:stop], begins=place[1] == 0),
      )


def _byte_offset(
  store: key_files.Store, spelling: codec.Codec, document: int, offset: int
) -> int:
  """Of an id of a document."""
  ids_N, offsets = store.texts
  before_N = ids_N[offsets[document] : offsets[document] + offset]
  total = int(spelling.lengths_V[before_N].sum())
  return max(total - len(spelling.lead), 0)
