"""Bounds of many files on prefixes of a stream, as they are made."""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bounds import alphabet as alphabets
from bounds import azuma
from bounds import certificate
from bounds import chart
from bounds import header as headers
from bounds import quantise
from bounds import smoothing
from configs import certify
from configs import compress
from configs import kept
from configs import predictor
from configs import restore
from configs import streams
from training import manifest

BITS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)


class Row(NamedTuple):
  """One file on a prefix of the stream; all but the sizes in bits per byte."""

  network: str
  weights: int
  bits_per_weight: float
  file_bytes: int
  stream_bytes: int
  risk: float
  held_out: float | None
  betting: float
  azuma: float
  vacuous: float


class Job(NamedTuple):
  """A file to be made: its arrays by path, and its header without smoothing."""

  network: str
  name: str
  make: Callable[[], tuple[dict[str, quantise.Coded], headers.Header]]


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What every file is measured on, and where results go.

  out: directory of sweep.json, from which a sweep that was stopped goes on,
    and of every file with its certificate, as name.pw and name.json.
  setting: JSON of all that decides the results; another one is refused.
  """

  stream: streams.Stream
  held_out: streams.Stream | None
  delta: float
  out: pathlib.Path
  setting: Any
  corpus: Any = None
  max_bytes: int | None = None

  def run(self, jobs: Sequence[Job]) -> list[Row]:
    """The rows of all jobs, made or found."""
    done = self._kept.read(lambda rows: [Row(**row) for row in rows])
    for index, job in enumerate(jobs):
      if job.name in done:
        continue
      began = time.monotonic()
      done[job.name] = self._rows(job)
      self._kept.write(
        {name: [x._asdict() for x in rows] for name, rows in done.items()}
      )
      row = done[job.name][-1]
      held = '' if row.held_out is None else f', held out {row.held_out:.3f}'
      print(
        f'{index + 1}/{len(jobs)} {job.name}: {row.betting:.3f} bits per byte'
        f' certified{held}, file {row.file_bytes} bytes,'
        f' {time.monotonic() - began:.0f} s',
        flush=True,
      )
    return [row for job in jobs for row in done[job.name]]

  @property
  def _kept(self) -> kept.Kept:
    return kept.Kept(
      self.out / 'sweep.json', self.setting, label='files', flag='--out'
    )

  def _rows(self, job: Job) -> list[Row]:
    """Every prefix is a certificate of its own, with its own smoothing."""
    coded, header = job.make()
    draft = predictor.decode(predictor.encode(coded, header))
    seen = certify.evidence(draft, self.stream)
    other = None
    if self.held_out is not None:
      other = certify.evidence(draft, self.held_out)
    weights = sum(tensor.symbols.size for tensor in coded.values())
    rows = []
    for share in SHARES:
      part = prefix(seen, self.stream, share, header.alphabet)
      # Another smoothing may change the length of the file by a byte.
      bits = draft.bits + 8
      base_code, slope = certificate.choose_smoothing(part, bits, self.delta)
      chosen = dataclasses.replace(header, base=base_code, slope=slope)
      size = draft.size + 1
      if share == 1:
        data = predictor.encode(coded, chosen)
        size = len(data)
        self._keep(job.name, data, seen, other)
      found = certificate.certify(part, chosen, 8 * size, self.delta)
      held = None if other is None else certify.risk(other, chosen.smoothing)
      row = Row(
        job.network, weights, 8 * size / weights, size, part.bytes,
        found.terms['empirical_risk'], held, found.value,
        published(part, 8 * size, self.delta), part.vacuous,
      )  # fmt: skip
      rows.append(row)
    return rows

  def _keep(
    self,
    name: str,
    data: bytes,
    seen: certificate.Evidence,
    other: certificate.Evidence | None,
  ) -> None:
    """Writes the file with a certificate for bounds.verify."""
    decoded = predictor.decode(data)
    found = certificate.certify(seen, decoded.header, 8 * len(data), self.delta)
    claim = certify.to_json(
      certify.Certified(decoded, seen, found), data, self.stream,
      delta=self.delta, corpus=self.corpus, max_bytes=self.max_bytes,
    )  # fmt: skip
    if other is not None:
      claim['held_out'] = certify.held_out(
        self.held_out, other, decoded.header.smoothing
      )
    (self.out / f'{name}.pw').write_bytes(data)
    text = json.dumps(claim, indent=2) + '\n'
    manifest.write_file(self.out / f'{name}.json', text)


def roundings(
  names: Sequence[str],
  runs: Sequence[tuple[restore.Run, headers.Header]],
  target: compress.Target,
) -> list[Job]:
  """Every network, rounded to every number of bits per weight.

  runs: with headers whose smoothing is yet to be chosen.
  """

  def job(
    name: str, run: restore.Run, header: headers.Header, bits: float
  ) -> Job:
    def make() -> tuple[dict[str, quantise.Coded], headers.Header]:
      method = compress.PostTraining(bits)
      return method(run.config, run.params, target), header

    return Job(name, f'{slug(name)}-{bits:g}', make)

  return [
    job(name, *run, bits)
    for name, run in zip(names, runs, strict=True)
    for bits in BITS
  ]


def slug(name: str) -> str:
  """A name as a file's."""
  kept = ''.join(x if x.isalnum() else '-' for x in name.lower())
  return '-'.join(filter(None, kept.split('-')))


def prefix(
  seen: certificate.Evidence, stream: streams.Stream, share: float, kind: str
) -> certificate.Evidence:
  """The evidence of the first symbols, a share of all that is fixed before."""
  stop = max(1, round(share * len(seen.probability_N)))
  symbols_N = stream.symbols[:stop]
  return certificate.Evidence(
    seen.probability_N[:stop],
    seen.entropy_N[:stop],
    seen.rank_N[:stop],
    seen.classes,
    alphabets.named(kind).spelling_bits(symbols_N),
    max(1, int((symbols_N != alphabets.END).sum())),
  )


def published(seen: certificate.Evidence, bits: int, delta: float) -> float:
  """The best published Azuma bound over the constant alphas."""
  index_bits = bits + math.log2(len(smoothing.ALPHAS))
  values = []
  for alpha in smoothing.ALPHAS:
    low, high = smoothing.interval(alpha, seen.classes)
    losses_N = certificate.smooth(seen, alpha, 0.0).losses_N
    rule = azuma.Azuma(delta)
    value = rule(losses_N, index_bits, low=low - 1e-9, high=high + 1e-9).value
    values.append(seen.in_bytes(value))
  return min(values)


def table(found: Sequence[Row]) -> str:
  """Rows as Markdown."""
  lines = [
    '| network | weights | bits/weight | file, bytes | stream, bytes | risk |'
    ' held out | betting | Azuma | guessing |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for row in found:
    numbers = ('' if x is None else f'{x:.3f}' for x in row[5:])
    lines.append(
      f'| {row.network} | {row.weights} | {row.bits_per_weight:.2f} |'
      f' {row.file_bytes} | {row.stream_bytes} | {" | ".join(numbers)} |'
    )
  return '\n'.join(lines)


def plots(found: Sequence[Row]) -> dict[str, str]:
  """SVG by file name: the bound against what can be varied."""
  line = max(row.vacuous for row in found)
  whole = max(row.stream_bytes for row in found)
  last = [row for row in found if row.stream_bytes == whole]
  drawn = {
    'bits.svg': ('bits per weight', last, 'bits_per_weight', 'network'),
    'size.svg': ('bytes of the file', last, 'file_bytes', 'network'),
    'stream.svg': ('bytes of the stream', found, 'stream_bytes', 'file'),
  }
  return {
    name: chart.draw(_series(rows, across, of), label, line)
    for name, (label, rows, across, of) in drawn.items()
  }


def _series(rows: Sequence[Row], across: str, of: str) -> list[chart.Series]:
  """A line for every network or every file, and dots for held-out bits."""
  groups: dict[str, list[Row]] = {}
  for row in rows:
    bits = {
      round(x.bits_per_weight, 1) for x in rows if x.network == row.network
    }
    wide = f'{row.network}, {row.bits_per_weight:.1f} bits'
    name = wide if of == 'file' and len(bits) > 1 else row.network
    groups.setdefault(name, []).append(row)
  found = []
  for name, several in groups.items():
    ordered = sorted(several, key=lambda row: getattr(row, across))
    sizes = [getattr(row, across) for row in ordered]
    found.append(chart.Series(name, sizes, [row.betting for row in ordered]))
    held = [x.held_out for x in ordered if x.held_out is not None]
    if len(held) == len(ordered):
      found.append(chart.Series(name, sizes, held, dots=True))
  return found
