"""Diversity against risk of truncation rules, as a table and a plot.

python -m bench.diversity --checkpoint=runs/demo

Every rule at the knob where it risks as much as the others, on a model and the
lines of a corpus; see evals.diversity. The corpus is the run's own, another
config's (--config) or files (--files='notes/**/*.txt'). With --samples=64
--judge=runs/hour also what the rules' texts are worth, by themselves and to a
larger model.
"""

import functools
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bench import quality
from bench import tables
from configs import command
from configs import corpora
from configs import output_layer
from configs import restore
from data import codec
from evals import bat_thresholds
from evals import diversity
from evals import support_trie
from models import forward
from samplers import support

_BATCH = 32
# Ids that BAT looks at: of small vocabularies all, of others so many.
_SMALL, _BAT_IDS = 512, 64
_COLOURS = (
  '#d6452c', '#1f77b4', '#2ca02c', '#9467bd', '#8c564b', '#e377c2', '#7f7f7f',
  '#bcbd22', '#17becf', '#ff9f1c', '#003f5c', '#a3a3ff', '#5a8f00',
)  # fmt: skip


class Flags(NamedTuple):
  """The flags of the command."""

  corpus: corpora.Flags
  risks: flags.FlagHolder[list[str]]
  roots: flags.FlagHolder[int]
  depth: flags.FlagHolder[int]
  columns: flags.FlagHolder[int]
  bat_ids: flags.FlagHolder[int | None]
  samples: flags.FlagHolder[int]
  sample_bytes: flags.FlagHolder[int]
  judge: flags.FlagHolder[str | None]


def define_flags(own: flags.FlagValues = flags.FLAGS) -> Flags:
  """To be called before flags are parsed."""
  whole = functools.partial(flags.DEFINE_integer, flag_values=own)
  corpus = corpora.define_flags(
    own,
    'Run directory.',
    'JSON file; default diversity.json in the run directory.',
  )
  # What the model has not learnt from.
  flags.set_default(corpus.split, 'test')
  return Flags(
    corpus,
    flags.DEFINE_list(
      'risks',
      ['1', '5', '15'],
      'Mean risks to compare at; with few ids, as bytes, take 0.1,0.3,1.',
      flag_values=own,
    ),
    whole('roots', 10, 'First words of lines, the most frequent.', 1),
    whole('depth', 5, 'Levels of words below a root.', 0),
    whole('columns', 20, 'Of the basis of BAT.', 1),
    whole(
      'bat_ids',
      None,
      'BAT looks at so many of the most probable ids; 0: none. Default: all of'
      f' a vocabulary of at most {_SMALL}, {_BAT_IDS} of a larger one.',
      0,
    ),
    whole('samples', 0, 'Texts to draw by every rule; 0: none.', 0),
    whole('sample_bytes', 256, 'Of each text.', 1),
    flags.DEFINE_string(
      'judge',
      None,
      'Run directory of a larger model, which scores these texts.',
      flag_values=own,
    ),
  )


def measure(
  run: restore.Run,
  nodes: Sequence[support_trie.Node],
  columns: int,
  ids: int | None,
) -> tuple[dict[str, diversity.Rule], np.ndarray]:
  """Every rule on the laws of a model at these nodes, and what is optimal.

  columns, ids: as --columns and --bat_ids.
  """
  laws = diversity.sort(logits(run, [node.context for node in nodes]))
  best_N = diversity.optimal(laws, [node.support for node in nodes])
  found = dict(diversity.rules(laws))
  if ids is None:
    size = laws.order_NV.shape[1]
    ids = size if size <= _SMALL else _BAT_IDS
  if ids:
    output_VD = output_layer.find(run.config.model, run.params)
    basis_VC = support.columns(output_VD, columns)
    found |= bat_thresholds.rules(basis_VC, laws, ids=ids)
  return found, best_N


def logits(run: restore.Run, contexts: Sequence[np.ndarray]) -> np.ndarray:
  """[N, V]: of what follows each context at the beginning of a document."""
  apply = jax.jit(forward.pure(run.config.model))
  longest = 1 + max(map(len, contexts))
  parts = []
  for start in range(0, len(contexts), _BATCH):
    part = contexts[start : start + _BATCH]
    ids_BT = np.full((_BATCH, longest), codec.PADDING, np.int32)
    lengths_B = np.ones(_BATCH, np.int32)
    ids_BT[:, 0] = run.config.data.codec.bos
    for row, ids in enumerate(part):
      ids_BT[row, 1 : 1 + len(ids)] = ids
      lengths_B[row] += len(ids)
    documents_BT = (np.arange(longest)[None] < lengths_B[:, None]) * 1
    logits_BTV = apply(
      run.params, jnp.asarray(ids_BT), jnp.asarray(documents_BT, jnp.int32)
    )
    last_BV = np.asarray(logits_BTV)[np.arange(_BATCH), lengths_B - 1]
    parts.append(last_BV[: len(part)])
  return np.concatenate(parts)


def read_risks(texts: Sequence[str]) -> tuple[float, ...]:
  """ValueError unless they are numbers above 0."""
  try:
    risks = tuple(map(float, texts))
  except ValueError:
    risks = ()
  if not risks or not min(risks) > 0:
    raise ValueError(
      f'--risks={",".join(texts)} must be numbers above 0, as 1,5,15'
    )
  return risks


def markdown(found: Mapping[str, Mapping[float, diversity.Match]]) -> str:
  """One row per rule; for each risk its knob, recall and error of the risk."""
  risks = list(next(iter(found.values())))
  heads = ''.join(
    f' risk {risk:g}: knob | recall | risk error |' for risk in risks
  )
  lines = [f'| rule |{heads}', '|---|' + '---|' * 3 * len(risks)]
  for name, row in found.items():
    cells = ''.join(
      f' {m.knob:.3g} | {m.recall:.3f} +- {m.recall_error:.3f} |'
      f' {m.risk_error:.2f} |'
      for m in row.values()
    )
    lines.append(f'| {name} |{cells}')
  return '\n'.join(lines)


def plot(found: Mapping[str, diversity.Rule], best_N: np.ndarray) -> str:
  """Recall over risk as an SVG picture, the risk on a logarithmic axis."""
  low, high, parts = 0.01, 30.0, []

  def place(risk: float, recall: float) -> str:
    share = np.log(max(risk, low) / low) / np.log(high / low)
    return f'{60 + 560 * share:.1f},{360 - 330 * recall:.1f}'

  for risk in (0.01, 0.1, 1.0, 10.0):
    x = place(risk, 0).split(',')[0]
    parts.append(f'<path d="M{x} 30V360" stroke="#ddd"/>')
    parts.append(f'<text x="{x}" y="376" text-anchor="middle">{risk:g}</text>')
  for recall in (0.0, 0.25, 0.5, 0.75, 1.0):
    y = place(low, recall).split(',')[1]
    parts.append(f'<path d="M60 {y}H620" stroke="#ddd"/>')
    parts.append(f'<text x="52" y="{y}" text-anchor="end">{recall:g}</text>')
  for number, (name, rule) in enumerate(found.items()):
    colour = _COLOURS[number % len(_COLOURS)]
    points = ' '.join(
      place(risk, recall)
      for risk, recall in diversity.curve(rule, best_N)
      if low <= risk <= high
    )
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    y = 40 + 16 * number
    parts.append(f'<path d="M635 {y}h20" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<text x="660" y="{y + 4}">{html.escape(name)}</text>')
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 400"'
    ' font-family="sans-serif" font-size="11">'
    '<rect width="780" height="400" fill="#fff"/>'
    + ''.join(parts)
    + '<text x="340" y="394" text-anchor="middle">mean risk</text>'
    '<text x="14" y="195" transform="rotate(-90 14 195)"'
    ' text-anchor="middle">mean recall</text></svg>\n'
  )


def read_corpus(run: restore.Run, given: corpora.Flags) -> list[np.ndarray]:
  """The documents that the flags name, as bytes; ValueError if they cannot."""
  if given.files.value and given.config.value:
    raise ValueError('--files and --config exclude each other; drop one')
  return [
    np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
    for _, part in corpora.read(run, given)
  ]


def named(given: corpora.Flags) -> str:
  """Which corpus it is, for the report."""
  if given.files.value:
    return f'files {given.files.value!r}'
  split = f'split {given.split.value!r}'
  return f'{split} of {given.config.value}' if given.config.value else split


def report(given: Flags) -> None:
  checkpoint = given.corpus.checkpoint.value
  if not checkpoint:
    raise ValueError(
      '--checkpoint is missing; name a run directory, the --workdir of'
      ' train.py.'
    )
  risks = read_risks(given.risks.value)
  run = restore.restore(checkpoint)
  documents = read_corpus(run, given.corpus)
  samples = given.samples.value
  judge = quality.read_judge(given.judge.value, run, samples)
  begun = quality.cut(documents, samples, given.sample_bytes.value)
  trie = support_trie.Trie(roots=given.roots.value, depth=given.depth.value)
  nodes = trie.nodes(documents, run.config.data.codec)
  found, best_N = measure(run, nodes, given.columns.value, given.bat_ids.value)
  matches = diversity.table(found, best_N, risks)
  out = pathlib.Path(given.corpus.out.value or f'{checkpoint}/diversity.json')
  out.parent.mkdir(parents=True, exist_ok=True)
  facts = {
    'checkpoint': str(checkpoint),
    'corpus': named(given.corpus),
    'contexts': len(nodes),
    'lines': sum(node.lines for node in nodes),
    'rules': {
      name: {f'{risk:g}': m._asdict() for risk, m in row.items()}
      for name, row in matches.items()
    },
  }
  picture = out.with_suffix('.svg')
  picture.write_text(plot(found, best_N), 'utf-8')
  print(f'{len(nodes)} contexts of {named(given.corpus)}\n')
  print(markdown(matches))
  if begun is not None:
    facts['samples'] = list(quality.rows(run, judge, begun, matches))
    print(f'\n{tables.markdown(facts["samples"])}', end='')
  out.write_text(json.dumps(facts, indent=2) + '\n', 'utf-8')
  print(f'\nreport: {out}, {picture}')


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bench.diversity'):
    report(_FLAGS)


if __name__ == '__main__':
  _FLAGS = define_flags()
  command.run(main)
