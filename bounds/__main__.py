"""Certifies a checkpoint: compresses it to a file and bounds that file's risk.

python -m bounds --checkpoint=runs/demo --bits=3 --out=runs/demo/certificate
python -m bounds --checkpoint=runs/small --minutes=5 --out=runs/certified
python -m bounds --config=configs/certified.py --minutes=25 --out=runs/certified

With --sweep, tables and plots: networks rounded to 1 to 6 bits per weight, or
structures at one file size, each trained for --minutes.

python -m bounds --checkpoint=runs/demo,runs/small --sweep --out=runs/sweep
python -m bounds --config=configs/certified_small.py --minutes=2 --sweep \\
  --max_bytes=3000000 --out=runs/structures
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from absl import logging

from bounds import bound
from bounds import certificate
from bounds import header as headers
from bounds import report
from bounds import structure as structures
from configs import base
from configs import certify
from configs import cluster
from configs import command
from configs import compress
from configs import equal_size
from configs import predictor
from configs import restore
from configs import streams
from configs import sweep
from configs import token_certificate
from evals import shares
from training import manifest
from training import processes

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
  'structure', 'none',
  'What the file holds: none (all weights), shared:BLOCKS, lora:RANK or'
  ' sublora:RANK.',
)  # fmt: skip
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
_WINDOW = flags.DEFINE_integer(
  'window', None,
  'What a network reads at once; default 61440 if its attention is local, else'
  ' 2048.',
)  # fmt: skip
_STRIDE = flags.DEFINE_integer(
  'stride', None, 'New ones of them each time; default most of the window.'
)
_DRAWS = flags.DEFINE_integer(
  'draws', None,
  'Of networks over tokens: estimate the risk from so many drawn ones.',
  lower_bound=1,
)  # fmt: skip
_SWEEP = flags.DEFINE_bool(
  'sweep', False,
  'Instead bound prefixes of the stream, of several roundings of every'
  ' --checkpoint, or of several structures of --config at one file size.',
)  # fmt: skip
_LADDER = flags.DEFINE_bool('ladder', False, 'Print all bounds on the file.')
_CLUSTER = cluster.define_flags()

# The split that training reads.
_TRAINED_ON = 'train'


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bounds'):
    bound.check_delta(_DELTA.value)
    if not _OUT.value:
      raise ValueError('--out is missing; name a directory for the certificate')
    cluster.join(_CLUSTER)
    runs = _runs()
    data = runs[0].config.data
    processes.first('prepare the data', lambda: _open_both(data))
    stream, other = _open_both(data)
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    if _STREAM.value != 'train' and processes.is_first():
      print(
        f'the network was trained on split {_TRAINED_ON}, not on'
        f' {stream.name}: the certificate is valid for this stream all the same'
      )
    if _SWEEP.value:
      processes.first('sweep', lambda: print(_swept(runs, stream, other, out)))
      return
    certify_run = _certified
    if token_certificate.is_over_tokens(runs[0].config):
      certify_run = _rounded_tokens
    summary = certify_run(runs[0], stream, other, out)
    if processes.is_first():
      print(summary)


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
  elif not _MINUTES.value:
    raise ValueError(
      '--config needs --minutes to train in; 25 minutes on two cores give the'
      ' best certificate, 2 for each file a --sweep'
    )
  else:
    config = base.override(base.load(_CONFIG.value), _SET.value)
    runs = [restore.Run(config, equal_size.fresh(config), 0)]
  for run in runs:
    _check_model(run.config)
  return runs


def _check_model(config: base.Config) -> None:
  if token_certificate.is_over_tokens(config):
    given = (
      ('--minutes', _MINUTES.value),
      ('--sweep', _SWEEP.value),
      ('--structure', _STRUCTURE.value != 'none'),
    )
    for name, is_given in given:
      if is_given:
        raise ValueError(
          f'{name} is for networks over bytes; one over tokens is only rounded,'
          ' so drop it'
        )
    return
  if _DRAWS.value:
    raise ValueError('--draws is for networks over tokens; all bytes are read')
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


def _reading(model: Any) -> tuple[int, int]:
  """Window and stride, by flags or as long as takes linear time."""
  masks = getattr(model, 'masks', ())
  local = masks and all(mask.window and not mask.top_k for mask in masks)
  window = _WINDOW.value
  if window is None:
    window = 61440 if local and model.max_length is None else 2048
  stride = (4 if local else 3) * window // (5 if local else 4)
  return window, stride if _STRIDE.value is None else _STRIDE.value


def _header(run: restore.Run) -> headers.Header:
  """The header of a file before its smoothing is chosen."""
  structure = structures.parse(_STRUCTURE.value)
  return headers.Header(
    _ALPHABET.value, 0, 0, *_reading(run.config.model),
    base.to_json(run.config.model),
    None if structure == structures.PLAIN else base.to_json(structure),
  )  # fmt: skip


def _swept(
  runs: list[restore.Run],
  stream: streams.Stream,
  other: streams.Stream | None,
  out: pathlib.Path,
) -> str:
  """Writes sweep.json, tables, plots and all files; returns the table.

  Of a job of several processes only the first one works at it.
  """
  config, target = runs[0].config, _target(stream)
  names = list(dict.fromkeys(_CHECKPOINT.value))
  if _CONFIG.value:
    jobs = equal_size.jobs(config, _method(), _header(runs[0]), target)
    print(
      f'{len(jobs)} files of {_MINUTES.value:g} minutes each, and their scoring'
    )
  else:
    found = dict(zip(_CHECKPOINT.value, runs, strict=True))
    several = [(found[name], _header(found[name])) for name in names]
    jobs = sweep.roundings(names, several, target)
  setting = {
    'networks': [base.to_json(run.config.model) for run in runs],
    'method': base.to_json(_method()) if _CONFIG.value else names,
    'stream': stream.sha256,
    'held_out': _HELD_OUT.value,
    'delta': _DELTA.value,
    'alphabet': _ALPHABET.value,
    'window': [_WINDOW.value, _STRIDE.value],
  }
  whole = sweep.Sweep(
    stream, other, _DELTA.value, out, setting, config.data, _MAX_BYTES.value
  )
  with shares.alone():
    rows = whole.run(jobs)
  manifest.write_file(out / 'sweep.md', sweep.table(rows) + '\n')
  plots = sweep.plots(rows)
  for name, text in plots.items():
    manifest.write_file(out / name, text)
  return f'{sweep.table(rows)}\n{out}: sweep.json sweep.md {" ".join(plots)}'


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
  began, busy = time.monotonic(), time.process_time()
  yield
  logging.info(
    '%s took %.1f s, %.1f s of CPU time', what, time.monotonic() - began,
    time.process_time() - busy,
  )  # fmt: skip


def _open_both(data: Any) -> tuple[streams.Stream, streams.Stream | None]:
  """The stream to certify, and the one held out if any."""
  stream = streams.open_stream(_STREAM.value, data, max_bytes=_MAX_BYTES.value)
  if not _HELD_OUT.value:
    return stream, None
  return stream, streams.open_stream(_HELD_OUT.value, data, flag='held_out')


def _certified(
  run: restore.Run,
  stream: streams.Stream,
  other: streams.Stream | None,
  out: pathlib.Path,
) -> str:
  """Writes the file, the certificate and the report; returns a summary.

  Process 0 trains and codes; all processes of a job share the scoring.
  """
  began = time.monotonic()
  target, header, coded = _target(stream), _header(run), {}

  def file() -> bytes:
    with _timed('training and rounding'):
      coded.update(_method()(run.config, run.params, target))
    return predictor.encode(coded, header)

  draft = predictor.decode(processes.told_by_first('train and round', file))
  with _timed(f'scoring {stream.bytes} bytes with a file of {draft.size}'):
    seen = certify.evidence(draft, stream)
  with _timed('choosing the smoothing'):
    base_code, slope_code = certificate.choose_smoothing(
      seen, draft.bits, _DELTA.value
    )
  # Smoothing is applied to what the same weights say, so nothing is rescored.
  final = dataclasses.replace(header, base=base_code, slope=slope_code)
  data = processes.told_by_first(
    'code the network', lambda: predictor.encode(coded, final)
  )
  decoded = predictor.decode(data)
  found = certificate.certify(seen, decoded.header, decoded.bits, _DELTA.value)
  certified = certify.Certified(decoded, seen, found)
  claim = certify.to_json(
    certified, data, stream, delta=_DELTA.value, corpus=run.config.data,
    max_bytes=_MAX_BYTES.value,
  )  # fmt: skip
  return _written(run, certified, claim, data, other, out, began)


def _rounded_tokens(
  run: restore.Run,
  stream: streams.Stream,
  other: streams.Stream | None,
  out: pathlib.Path,
) -> str:
  settings = token_certificate.Settings(
    compress.PostTraining(_BITS.value or 3.0).bits, _DELTA.value,
    *_reading(run.config.model), _DRAWS.value, _MAX_BYTES.value,
  )  # fmt: skip
  name = _CHECKPOINT.value[0]
  return token_certificate.make(run, name, stream, other, settings, out)


def _written(
  run: restore.Run,
  certified: certify.Certified,
  claim: dict[str, Any],
  data: bytes,
  other: streams.Stream | None,
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
  if other is not None:
    with _timed(f'scoring {other.bytes} bytes held out'):
      claim['held_out'] = certify.held_out(
        other, certify.evidence(decoded, other), decoded.header.smoothing
      )
  curve = certificate.curve(
    seen, decoded.header, decoded.bits, delta,
    claim['bound']['slack'] / seen.per_byte,
  )  # fmt: skip
  claim['made_by'] = {
    'from': _CONFIG.value or _CHECKPOINT.value[0],
    'step': run.step,
    'trained_on': _TRAINED_ON,
    'seconds': round(time.monotonic() - began, 1),
    'method': base.to_json(_method()),
  }

  def write() -> None:
    (out / 'model.pw').write_bytes(data)
    text = json.dumps(claim, indent=2) + '\n'
    manifest.write_file(out / 'certificate.json', text)
    manifest.write_file(out / 'report.svg', report.plot(claim, seen, curve))
    manifest.write_file(out / 'report.md', report.page(claim))

  processes.first('write the certificate', write)
  names = 'model.pw certificate.json report.md report.svg'
  return f'{report.summary(claim)}\n{out}: {names}'


if __name__ == '__main__':
  command.run(main)
