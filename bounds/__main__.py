"""Certifies a checkpoint: compresses it to a file and bounds that file's risk.

python -m bounds --checkpoint=runs/demo --bits=3 --out=runs/demo/certificate
python -m bounds --checkpoint=runs/small --minutes=5 --out=runs/certified
python -m bounds --config=configs/certified.py --minutes=45 --out=runs/certified
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from absl import logging

from bounds import bound
from bounds import certificate
from bounds import header as headers
from bounds import report
from bounds import structure as structures
from configs import base
from configs import certify
from configs import command
from configs import compress
from configs import predictor
from configs import restore
from configs import streams
from configs import sweep
from training import manifest

_CHECKPOINT = flags.DEFINE_list(
  'checkpoint', [], 'Run directory; with --sweep any number, by commas.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default newest.')
_CONFIG = flags.DEFINE_string(
  'config', None, 'Experiment to train from the start instead of a checkpoint.'
)
_SET = flags.DEFINE_multi_string('set', [], 'path=value in that experiment.')
_OUT = flags.DEFINE_string('out', None, 'Directory for what is made.')
_BITS = flags.DEFINE_float(
  'bits', None,
  'Bits per weight to round to, 3 by default; training begins at 1.5.',
)  # fmt: skip
_STRUCTURE = flags.DEFINE_string(
  'structure', 'none', 'What is free: none (all), shared:BLOCKS or lora:RANK.'
)
_MINUTES = flags.DEFINE_float(
  'minutes', 0.0, 'Minutes of training on the certificate; 0 only rounds.'
)
_STREAM = flags.DEFINE_string(
  'stream', 'train', 'Split of the corpus of the run, or a file or glob.'
)
_MAX_BYTES = flags.DEFINE_integer(
  'max_bytes', None, 'Certify only the first so many bytes of the stream.',
  lower_bound=1,
)  # fmt: skip
_HELD_OUT = flags.DEFINE_string(
  'held_out', 'validation', "Split, file or glob to score besides; '' for none."
)
_DELTA = flags.DEFINE_float('delta', 0.05, 'One minus the confidence.')
_ALPHABET = flags.DEFINE_string(
  'alphabet', 'ascii', "'ascii' (99 symbols and an escape) or 'bytes' (257)."
)
_WINDOW = flags.DEFINE_integer('window', 2048, 'Bytes a network reads at once.')
_STRIDE = flags.DEFINE_integer('stride', 1536, 'New ones of them each time.')
_SWEEP = flags.DEFINE_bool(
  'sweep', False, 'Bound several roundings, networks and prefixes instead.'
)
_LADDER = flags.DEFINE_bool('ladder', False, 'Print all bounds on the file.')


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bounds'):
    bound.check_delta(_DELTA.value)
    if not _OUT.value:
      raise ValueError('--out is missing; name a directory for the certificate')
    runs = _runs()
    run = runs[0]
    stream = streams.open_stream(
      _STREAM.value, run.config.data, max_bytes=_MAX_BYTES.value
    )
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    if _STREAM.value != 'train':
      print(
        f'the network was trained on split train, not on {stream.name}: the'
        ' certificate is valid for this stream all the same'
      )
    if _SWEEP.value:
      print(_swept(runs, stream, out))
    else:
      print(_certified(run, stream, out))


def _runs() -> list[restore.Run]:
  """The networks to begin with, from checkpoints or fresh."""
  names = _CHECKPOINT.value
  if bool(names) == bool(_CONFIG.value):
    raise ValueError(
      'name either --checkpoint, the --workdir of train.py, or --config, an'
      ' experiment to train from the start'
    )
  if len(names) > 1 and not _SWEEP.value:
    raise ValueError(
      f'--checkpoint names {len(names)} runs; one is certified at a time'
      ' (--sweep compares several)'
    )
  if names:
    runs = [restore.restore(name, step=_STEP.value) for name in names]
  elif _SWEEP.value or not _MINUTES.value:
    raise ValueError(
      '--config needs --minutes to train in, and no --sweep; 45 minutes on two'
      ' cores give the best certificate'
    )
  else:
    config = base.override(base.load(_CONFIG.value), _SET.value)
    ids_BT = jnp.zeros((1, 8), jnp.int32)
    variables = config.model.init(jax.random.key(config.seed), ids_BT)
    runs = [restore.Run(config, variables['params'], 0)]
  for run in runs:
    _check_model(run.config)
  return runs


def _check_model(config: base.Config) -> None:
  size = getattr(config.model, 'vocabulary_size', None)
  if size != 260:
    raise ValueError(
      f'the network predicts one of {size} ids and not bytes (260 ids), so its'
      ' alphabet has no map to bytes; choose a checkpoint over bytes'
    )


def _method() -> Any:
  if not _MINUTES.value:
    return compress.PostTraining(_BITS.value or 3.0)
  return compress.OnCertificate(
    seconds=60 * _MINUTES.value,
    plain=0.4 if _CONFIG.value else 0.0,
    bits=_BITS.value or 1.5,
  )


def _target(stream: streams.Stream) -> compress.Target:
  return compress.Target(
    _ALPHABET.value,
    stream.bytes + len(stream.documents),
    _DELTA.value,
    structures.parse(_STRUCTURE.value),
  )


def _header(run: restore.Run) -> headers.Header:
  """The header of a file before its smoothing is chosen."""
  structure = structures.parse(_STRUCTURE.value)
  return headers.Header(
    _ALPHABET.value, 0, 0, _WINDOW.value, _STRIDE.value,
    base.to_json(run.config.model),
    None if structure == structures.PLAIN else base.to_json(structure),
  )  # fmt: skip


def _swept(
  runs: list[restore.Run], stream: streams.Stream, out: pathlib.Path
) -> str:
  """Writes sweep.json and sweep.md; returns the table."""
  found = []
  for row in sweep.rows(
    _CHECKPOINT.value, runs, stream, _header(runs[0]), _target(stream)
  ):
    found.append(row)
    logging.info('swept %s', row)
  text = json.dumps([row._asdict() for row in found], indent=2) + '\n'
  manifest.write_file(out / 'sweep.json', text)
  manifest.write_file(out / 'sweep.md', sweep.table(found) + '\n')
  manifest.write_file(out / 'sweep.svg', report.sweep_plot(found))
  return f'{sweep.table(found)}\n{out}: sweep.json sweep.md sweep.svg'


def _certified(
  run: restore.Run, stream: streams.Stream, out: pathlib.Path
) -> str:
  """Writes the file, the certificate and the report; returns a summary."""
  began = time.monotonic()
  target, header = _target(stream), _header(run)
  coded = _method()(run.config, run.params, target)
  draft = predictor.decode(predictor.encode(coded, header))
  logging.info('scoring %d bytes with a file of %d', stream.bytes, draft.size)
  seen = certify.evidence(draft, stream)
  base_code, slope_code = certificate.choose_smoothing(
    seen, draft.bits, _DELTA.value
  )
  # Smoothing is applied to what the same weights say, so nothing is rescored.
  final = dataclasses.replace(header, base=base_code, slope=slope_code)
  data = predictor.encode(coded, final)
  decoded = predictor.decode(data)
  found = certificate.certify(seen, decoded.header, decoded.bits, _DELTA.value)
  certified = certify.Certified(decoded, seen, found)
  claim = certify.to_json(
    certified, data, stream, delta=_DELTA.value, corpus=run.config.data,
    max_bytes=_MAX_BYTES.value,
  )  # fmt: skip
  return _written(run, certified, claim, data, out, began)


def _written(
  run: restore.Run,
  certified: certify.Certified,
  claim: dict[str, Any],
  data: bytes,
  out: pathlib.Path,
  began: float,
) -> str:
  decoded, seen, _ = certified
  delta = claim['delta']
  rungs = certificate.Ladder(delta, short=not _LADDER.value)(
    seen, decoded.header, decoded.bits
  )
  claim['ladder'] = {
    name: {'value': x.value} | dict(x.terms) for name, x in rungs.items()
  }
  claim['errors'] = {
    name: x.value
    for name, x in certificate.errors(seen, decoded.bits, delta).items()
  }
  if _HELD_OUT.value:
    other = streams.open_stream(_HELD_OUT.value, run.config.data)
    claim['held_out'] = {
      'stream': other.name,
      'bytes': other.bytes,
      'bits_per_byte': certify.held_out(decoded, other),
    }
  curve = certificate.curve(
    seen, decoded.header, decoded.bits, delta,
    claim['bound']['slack'] / seen.per_byte,
  )  # fmt: skip
  claim['made_by'] = {
    'from': _CONFIG.value or _CHECKPOINT.value[0],
    'step': run.step,
    'seconds': round(time.monotonic() - began, 1),
    'method': base.to_json(_method()),
  }
  summary = report.summary(claim)
  (out / 'model.pw').write_bytes(data)
  manifest.write_file(
    out / 'certificate.json', json.dumps(claim, indent=2) + '\n'
  )
  manifest.write_file(out / 'report.svg', report.plot(claim, seen, curve))
  manifest.write_file(out / 'report.md', report.page(claim))
  return f'{summary}\n{out}: model.pw certificate.json report.md report.svg'


if __name__ == '__main__':
  command.run(main)
