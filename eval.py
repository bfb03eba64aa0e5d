"""Scores a run's model on a split and writes one JSON report.

  python eval.py --checkpoint=runs/demo --split=test
"""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P

from configs import base
from configs import cluster
from configs import command
from configs import restore
from data import text
from evals import position_plot
from evals import references
from models import forward
from training import manifest
from training import processes
from training import sharding

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default newest.')
_SPLIT = flags.DEFINE_enum('split', 'test', text.SPLITS, 'Split to score.')
_OUT = flags.DEFINE_string(
  'out', None, 'Report file; default report.json in the run directory.'
)
_LAMBDA = flags.DEFINE_string('lambda', None, restore.LIMIT_HELP)
_CLUSTER = cluster.define_flags()


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('eval.py'):
    if not _CHECKPOINT.value:
      raise ValueError(
        '--checkpoint is missing; name a run directory, the --workdir of'
        ' train.py.'
      )
    cluster.join(_CLUSTER)
    report = evaluate(
      _CHECKPOINT.value, _STEP.value, _SPLIT.value, _LAMBDA.value
    )
    processes.first('write the report', lambda: _finish(report))


def _finish(report: dict[str, Any]) -> None:
  """Writes the report and its picture, and prints what matters."""
  out = pathlib.Path(_OUT.value or f'{_CHECKPOINT.value}/report.json')
  out.parent.mkdir(parents=True, exist_ok=True)
  manifest.write_file(out, json.dumps(report, indent=2) + '\n')
  curve = position_plot.points(report)
  if curve:
    picture = out.with_suffix('.by_position.svg')
    drawn = position_plot.draw({f'step {report["step"]}': curve})
    manifest.write_file(picture, drawn)
  print(table(report, _SPLIT.value))
  print(f'report: {out}')


def evaluate(
  directory: str, step: int | None, split: str, limit: str | None = None
) -> dict[str, Any]:
  """Every evaluator of the run's config, and of text references.

  The processes of a job share the batches of the evaluators that score whole
  documents, and all of them repeat what others do; process 0 computes the
  references. The devices of a process share the rows of a batch.
  """
  run = restore.restore(directory, step=step, limit=limit)
  config = run.config
  processes.first('prepare the data', config.data.prepare)
  documents = config.data.open(split)
  report: dict[str, Any] = {
    'checkpoint': str(directory),
    'step': run.step,
    'parameters': sum(x.size for x in jax.tree.leaves(run.params)),
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'corpus': documents.metadata,
  }
  apply = forward.pure(config.model)
  for evaluator in config.evals:
    began = time.monotonic()
    mesh = _devices_for(evaluator)
    whole = jax.sharding.NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
      params = jax.device_put(run.params, whole)
      found = evaluator.run(apply, params, documents)
    spent = report.get(f'eval/{split}/seconds', 0.0)
    found['seconds'] = spent + time.monotonic() - began
    report |= {f'eval/{split}/{name}': x for name, x in found.items()}
    settings = base.to_json(evaluator)['fields']
    for name, x in settings.items():
      # That of the first evaluator stays where two have the same.
      report.setdefault(f'eval/{split}/{name}', x)
  if not isinstance(documents, text.Corpus):
    return report
  compared = processes.told_by_first(
    'compress the text', lambda: _compared(config, documents)
  )
  return report | {
    f'eval/{split}/reference/{name}': x
    for name, x in json.loads(compared).items()
  }


def _devices_for(evaluator: Any) -> jax.sharding.Mesh:
  """As many devices of this process as an evaluator's rows divide over."""
  rows, devices = getattr(evaluator, 'batch_size', 1), jax.local_devices()
  ways = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
  return sharding.MeshShape(data=ways).build(devices[:ways])


def _compared(config: base.Config, documents: text.Corpus) -> bytes:
  """JSON of the references on a split."""
  found = references.references(
    np.asarray(documents.bytes), np.asarray(config.data.open('train').bytes)
  )
  return json.dumps(found).encode()


def table(report: dict[str, Any], split: str) -> str:
  """Bits per byte of the model and of what it is compared with.

  Of other data than text, every score with its standard error.
  """
  head = f'eval/{split}/'
  if f'{head}bits_per_byte' not in report:
    return '\n'.join(_scores(report, head))
  rows = [
    (f'model at step {report["step"]}', report[f'{head}bits_per_byte']),
    ('gzip -9', report[f'{head}reference/gzip_9']),
    ('xz -9', report[f'{head}reference/xz_9']),
    ('order-3 k-gram', report[f'{head}reference/kgram_3']),
    (
      'order-3 k-gram, read the train split',
      report[f'{head}reference/kgram_3_primed'],
    ),
  ]
  lines = [
    f'{report[f"{head}bytes"]} bytes in {report[f"{head}documents"]} documents'
    f' of split {split!r}',
    f'{"":38}bits per byte',
  ]
  error = report[f'{head}bits_per_byte_stderr']
  for name, value in rows:
    known = error is not None and name.startswith('model')
    note = f' +- {error:.3f}' if known else ''
    lines.append(f'{name:37} {value:.3f}{note}')
  tokens = report.get(f'{head}tokens')
  if tokens:
    per_token = report[f'{head}bits_per_token']
    lines.append(f'{tokens} tokens, {per_token:.3f} bits per token')
  return '\n'.join(lines)


def _scores(report: dict[str, Any], head: str) -> list[str]:
  """A line for every score, without the ends of its interval."""
  lines = []
  for name, value in report.items():
    is_more = name.endswith(('_stderr', '_low', '_high'))
    if not name.startswith(head) or not isinstance(value, float) or is_more:
      continue
    error = report.get(f'{name}_stderr')
    note = '' if error is None else f' +- {error:.4f}'
    lines.append(f'{name.removeprefix(head):37} {value:.4f}{note}')
  return lines


if __name__ == '__main__':
  command.run(main)
