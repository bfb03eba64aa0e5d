"""What other models score on a config's events, on the same splits and labels.

python -m bench.event_peers --config=configs/events_card.py --out=runs/peers
python -m bench.event_peers --config=... --set data.users=2000 \\
  --peers=prior,trees,stacked --revealed

Writes peers.json, peers.svg and a file of test probabilities per peer to --out;
a peer that is there, of the same events, is not trained again. `python -m
evals.events score` writes the file of a run for --probabilities, which is then
compared with every peer by pairs of resampled entities. Every peer sees what a
model sees: the past of an event, with --revealed its labels, and the event's
other columns.
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from bench import event_gru
from bench import event_plot
from bench import event_trees
from configs import base
from configs import command
from evals import event_ceilings
from evals import event_metrics

PEERS = {
  'prior': event_trees.Prior(),
  'logistic': event_trees.Logistic(),
  'trees_of_rows': event_trees.Trees(lags=False),
  'trees': event_trees.Trees(),
  'stacked': event_trees.Stacked(),
  'gru': event_gru.Gru(),
}
CEILING = 'exact filter'
_COLUMNS = (
  'auc', 'average_precision', 'recall_at_fpr_0.1%', 'recall_at_fpr_1%', 'f1',
  'log_loss', 'regret', 'brier', 'ece',
)  # fmt: skip
_COMPARED = ('average_precision', 'auc', 'log_loss')


class Splits:
  """The three splits of a source, with the ceiling where it is known.

  positive: as in event_features.labels. fresh_users: of a synthetic stream, to
    train on instead of its train split.
  """

  def __init__(
    self,
    source: Any,
    *,
    revealed: bool,
    positive: Sequence[str] = (),
    fresh_users: int = 0,
  ) -> None:
    self.revealed = revealed
    corpora = [source.open(s) for s in ('train', 'validation', 'test')]
    if fresh_users:
      corpora[0] = source.fresh(0, fresh_users)
    self.train, self.validation, self.test = (
      event_trees.Split.of(corpus, positive) for corpus in corpora
    )
    self._positive = positive
    # What the scores of a peer depend on.
    content = corpora[2].metadata['content_sha256']
    self.identity = [content, revealed, list(positive), fresh_users]

  @functools.cached_property
  def ceiling_E(self) -> np.ndarray | None:
    """The exact filter's probabilities of all test events."""
    corpus = self.test.corpus
    found = event_ceilings.exact(
      corpus, corpus.num_events, revealed=self.revealed
    )
    if found is None:
      return None
    words = corpus.tokenizer.label.code.words
    members_K = np.isin(words, self._positive or words[-1:])
    return found.p_EK[:, members_K].sum(1)

  def scores(
    self,
    probability_E: np.ndarray,
    threshold: float,
    ceiling_E: np.ndarray | None = None,
  ) -> event_metrics.Scores:
    """Scores of test probabilities of all events."""
    test, used_E = self.test, self.test.used_E
    counts_N = np.diff(test.corpus.offsets_N1)
    entity_E = np.repeat(np.arange(len(counts_N)), counts_N)
    return event_metrics.Scores(
      probability_E[used_E],
      test.label_E[used_E],
      entity_E[used_E],
      threshold,
      None if ceiling_E is None else ceiling_E[used_E],
    )

  def threshold(self, predict: Callable[..., np.ndarray]) -> float:
    """That of the highest F1 on the validation split."""
    used_E = self.validation.used_E
    return event_metrics.best_threshold(
      predict(self.validation)[used_E], self.validation.label_E[used_E]
    )

  def given(self, paths: str) -> event_metrics.Scores:
    """Scores of a file of test probabilities of the scored events.

    paths: of the file; behind a colon that of the validation split's, from
      which the threshold of F1 comes, else it is a half.
    """
    path, _, other = paths.partition(':')
    threshold = 0.5
    if other:
      threshold = self.threshold(lambda split: _read(other, split))
    return self.scores(_read(path, self.test), threshold, self.ceiling_E)


def _read(path: str, split: event_trees.Split) -> np.ndarray:
  """Probabilities of all events from a file of the scored ones."""
  found_E = np.load(path, allow_pickle=False)
  scored = int(split.used_E.sum())
  if found_E.shape != (scored,):
    raise ValueError(
      f'{path} has {found_E.size} probabilities and split'
      f' {split.corpus.split!r} {scored} scored events; write it with'
      ' `python -m evals.events score` from a run on the same data.'
    )
  probability_E = np.full(len(split.used_E), np.nan)
  probability_E[split.used_E] = found_E
  return probability_E


def run(
  splits: Splits,
  peers: Sequence[str],
  folder: pathlib.Path,
  replicates: int,
) -> dict[str, dict[str, float]]:
  """Scores of every peer, from files where they are there."""
  folder.mkdir(parents=True, exist_ok=True)
  ceiling_E = splits.ceiling_E
  report = {}
  if ceiling_E is not None:
    scores = splits.scores(ceiling_E, 0.5, ceiling_E)
    report[CEILING] = scores.report(replicates)
    np.save(folder / f'{CEILING}.npy', ceiling_E)
  for name in peers:
    path, facts = folder / f'{name}.npy', folder / f'{name}.json'
    if not _is_kept(facts, splits.identity):
      began = time.monotonic()
      predict = PEERS[name].fit(
        splits.train, splits.validation, revealed=splits.revealed
      )
      trained = time.monotonic()
      threshold = splits.threshold(predict)
      scored = time.monotonic()
      np.save(path, predict(splits.test))
      events = len(splits.test.label_E)
      stored = {
        'identity': splits.identity,
        'threshold': threshold,
        'training_seconds': trained - began,
        'scored_events_per_second': events / (time.monotonic() - scored),
      }
      facts.write_text(json.dumps(stored), 'utf-8')
    stored = json.loads(facts.read_text('utf-8'))
    p_E = np.load(path, allow_pickle=False)
    scores = splits.scores(p_E, stored['threshold'], ceiling_E)
    del stored['identity']
    report[name] = stored | scores.report(replicates)
    print(f'{name}: {report[name]["average_precision"]:.4f}', file=sys.stderr)
  return report


def _is_kept(facts: pathlib.Path, identity: list[Any]) -> bool:
  """Whether a peer was scored on the same events; facts are written last."""
  if not facts.exists():
    return False
  return json.loads(facts.read_text('utf-8')).get('identity') == identity


def table(report: dict[str, dict[str, float]]) -> str:
  """The scores as Markdown, each with its entity-bootstrap error."""
  rows = report.values()
  columns = [c for c in _COLUMNS if all(c in scores for scores in rows)]
  return _markdown('model', columns, '.4f', report)


def paired(name: str, found: dict[str, dict[str, float]]) -> str:
  """Our scores less those of others as Markdown, with paired errors."""
  return _markdown(f'{name} less', _COMPARED, '+.4f', found)


def _markdown(
  corner: str,
  columns: Sequence[str],
  style: str,
  rows: dict[str, dict[str, float]],
) -> str:
  head = [corner, *columns]
  lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
  for name, scores in rows.items():
    cells = [f'{scores[c]:{style}} +- {scores[f"{c}_stderr"]:.4f}'
             for c in columns]  # fmt: skip
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def differences(
  splits: Splits,
  ours: event_metrics.Scores,
  peers: Sequence[str],
  folder: pathlib.Path,
  replicates: int,
) -> dict[str, dict[str, float]]:
  """Our scores less those of each peer in the folder, drawn by pairs."""
  found = {}
  for name in peers:
    p_E = np.load(folder / f'{name}.npy', allow_pickle=False)
    theirs = splits.scores(p_E, 0.5, splits.ceiling_E)
    found[name] = event_metrics.compare(ours, theirs, replicates)
  return found


def main(_: Sequence[str]) -> None:
  """Trains and scores; prints the tables."""
  command.quiet()
  with command.explained('bench.event_peers'):
    unknown = set(_PEERS.value) - set(PEERS)
    if unknown:
      raise ValueError(f'--peers={sorted(unknown)}; choose of {list(PEERS)}.')
    config = base.override(base.load(_CONFIG.value), _SET.value)
    splits = Splits(
      config.data,
      revealed=_REVEALED.value,
      positive=_POSITIVE.value,
      fresh_users=_FRESH.value,
    )
    folder = pathlib.Path(_OUT.value).expanduser()
    report = run(splits, _PEERS.value, folder, _REPLICATES.value)
    tables, peers = [], list(report)
    for entry in _PROBABILITIES.value:
      name, _, paths = entry.partition('=')
      ours = splits.given(paths)
      report[name] = ours.report(_REPLICATES.value)
      found = differences(splits, ours, peers, folder, _REPLICATES.value)
      tables.append(paired(name, found))
    text = json.dumps(report, indent=2)
    (folder / 'peers.json').write_text(text, 'utf-8')
    picture = event_plot.draw(report, 'average_precision')
    (folder / 'peers.svg').write_text(picture, 'utf-8')
    print('\n'.join([table(report), *tables]))


if __name__ == '__main__':
  _CONFIG = flags.DEFINE_string('config', None, 'Experiment on events.')
  _SET = flags.DEFINE_multi_string('set', [], 'path=value in that experiment.')
  _PEERS = flags.DEFINE_list('peers', list(PEERS), f'Some of {list(PEERS)}.')
  _OUT = flags.DEFINE_string('out', None, 'Directory for what is made.')
  _REVEALED = flags.DEFINE_bool('revealed', False, 'Show past labels.')
  _PROBABILITIES = flags.DEFINE_list(
    'probabilities', [],
    'name=FILE.npy of other models: one probability per scored test event;'
    ' name=FILE.npy:FILE.npy with those of validation events, for F1.',
  )  # fmt: skip
  _POSITIVE = flags.DEFINE_list(
    'positive', [], 'Values of the label to tell from others; else the last.'
  )
  _FRESH = flags.DEFINE_integer(
    'fresh_users', 0, 'Train on so many users beyond the splits of a stream.'
  )
  _REPLICATES = flags.DEFINE_integer('replicates', 200, 'Of the bootstrap.')
  flags.mark_flags_as_required(['config', 'out'])
  command.run(main)
