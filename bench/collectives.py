"""What the devices of a compiled program send one another, from its HLO."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip
_SIZES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2,
  's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip
_HEAD = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:to_apply|calls|body|condition|true_computation|false_computation)='
  r'%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NUMBER = re.compile(r'= s32\[\] constant\((\d+)\)')
_LISTED = re.compile(r'replica_groups=\{(\{[\d,{} ]*\})\}')
_IOTA = re.compile(
  r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_NAMED = re.compile(
  r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]'
  r'(?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}'
)
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_OPERAND = re.compile(r'%([\w.\-]+)')
_PAIRS = re.compile(r'source_target_pairs=\{([\d,{} ]*)\}')


class Collective(NamedTuple):
  """One instruction.

  axes: of the mesh along which devices talk. size: bytes that a device sends
  each time, as training.traffic counts them. times: per run of the program;
  loops: how many loops it is in. where: what it was made of.
  """

  kind: str
  axes: tuple[str, ...]
  size: float
  times: int
  loops: int
  number: str
  where: str

  @property
  def total(self) -> float:
    """Bytes that a device sends per run."""
    return self.size * self.times


def find(text: str, mesh: dict[str, int]) -> list[Collective]:
  """All collectives of a partitioned HLO module over a mesh with these axes.

  An all-reduce of which every device goes on with a slice only counts as the
  reduce-scatter that XLA makes of it for GPUs and TPUs, but not for CPUs.

  Devices are numbered along the axes, the last axis first. Raises ValueError
  for a loop whose number of rounds the text does not say.
  """
  computations = _computations(text)
  entry = re.search(r'^ENTRY %?([\w.\-]+)', text, re.MULTILINE)
  return list(_walk(computations, entry[1], mesh, times=1, loops=0))


def _computations(text: str) -> dict[str, list[str]]:
  """The instructions of every computation."""
  found: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      lines = found.setdefault(head[1], [])
    elif _LINE.match(line):
      lines.append(line)
  return found


def _walk(
  computations: dict[str, list[str]],
  name: str,
  mesh: dict[str, int],
  *,
  times: int,
  loops: int,
) -> Iterator[Collective]:
  lines = computations.get(name, ())
  sliced = _sliced(lines)
  for line in lines:
    for kind in KINDS:
      if re.search(rf' {kind}(-start)?\(', line):
        is_part = kind == 'all-reduce' and _LINE.match(line)[1] in sliced
        yield _read(kind, line, mesh, times, loops, is_part)
    called = _CALLED.findall(line)
    if branches := _BRANCHES.search(line):
      called += [x.strip(' %') for x in branches[1].split(',')]
    is_loop = ' while(' in line
    rounds = _rounds(line, computations) if is_loop else 1
    for other in called:
      # Reductions say how to add two numbers; fusions hold no collective.
      if is_loop or ' fusion(' not in line:
        yield from _walk(
          computations, other, mesh, times=times * rounds, loops=loops + is_loop
        )


def _sliced(lines: Iterable[str]) -> set[str]:
  """What is read by one operation alone that takes a slice of it."""
  uses: dict[str, list[str]] = {}
  for line in lines:
    for name in _OPERAND.findall(_LINE.match(line)[2]):
      uses.setdefault(name, []).append(line)
  return {
    name
    for name, users in uses.items()
    if len(users) == 1 and f' dynamic-slice(%{name},' in _typeless(users[0])
  }


def _typeless(line: str) -> str:
  """The line without types of operands, which some texts have."""
  return re.sub(r'([(,] ?)[a-z]+\d*\[[\d,]*\](\{[\d,]*\})? %', r'\1%', line)


def _rounds(line: str, computations: dict[str, list[str]]) -> int:
  """How often a loop runs."""
  if known := _TRIPS.search(line):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)
  numbers = [
    int(n)
    for inner in computations.get(condition[1], ())
    for n in _NUMBER.findall(inner)
  ]
  if not numbers:
    raise ValueError(
      f'loop {line.strip()[:60]} does not say how often it runs; report it.'
    )
  return max(numbers)


def _read(
  kind: str,
  line: str,
  mesh: dict[str, int],
  times: int,
  loops: int,
  is_part: bool,
) -> Collective:
  result = _LINE.match(line)[2].split(f' {kind}')[0]
  arrays = _ARRAY.findall(result)
  if '-start(' in line and len(arrays) > 1:
    # Operands stand before results.
    arrays = arrays[len(arrays) // 2 :]
  size = sum(_bytes(*array) for array in arrays)
  group = _group(line, math.prod(mesh.values()))
  ways = len(group)
  sent = {
    'all-gather': (ways - 1) / ways * size,
    'all-reduce': 2 * (ways - 1) / ways * size,
    # Its result is one part of what is summed.
    'reduce-scatter': (ways - 1) * size,
    'all-to-all': (ways - 1) / ways * size,
    'collective-permute': size,
  }[kind]
  if is_part:
    kind, sent = 'reduce-scatter', sent / 2
  where = re.search(r'op_name="([^"]*)"', line)
  return Collective(
    kind,
    _axes(group, mesh),
    sent,
    times,
    loops,
    arrays[0][0] if arrays else '',
    where[1] if where else '',
  )


def _bytes(number: str, shape: str) -> int:
  sizes = [int(size) for size in shape.split(',') if size]
  return _SIZES.get(number, 4) * math.prod(sizes)


def _group(line: str, devices: int) -> list[int]:
  """Devices that talk to one another, the first group of them."""
  if iota := _IOTA.search(line):
    numbers = _iota(iota[2], iota[3])
    return numbers.reshape([int(n) for n in iota[1].split(',')])[0].tolist()
  if named := _NAMED.search(line):
    sizes = {
      name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])
    }
    order = named[2] or str(devices)
    numbers = _iota(order, named[3]).reshape(list(sizes.values()))
    along = {name: [0] for name in sizes}
    for name, before, size in _AXIS.findall(named[4]):
      # A part of an axis: of so many places, after so many parts before.
      step = sizes[name] // (int(before or 1) * int(size or sizes[name]))
      along[name] = list(range(0, step * int(size or sizes[name]), step))
    return [int(numbers[p]) for p in itertools.product(*along.values())]
  if listed := _LISTED.search(line):
    first = listed[1].split('}')[0].strip('{ ')
    return [int(n) for n in first.split(',')]
  if pairs := _PAIRS.search(line):
    numbers = [int(n) for n in re.findall(r'\d+', pairs[1])]
    both = zip(numbers[::2], numbers[1::2], strict=True)
    return next((list(pair) for pair in both if pair[0] != pair[1]), [0])
  if 'replica_groups={}' in line:
    return list(range(devices))
  raise ValueError(
    f'the groups of {line.strip()[:120]} are of a form that bench.collectives'
    ' does not read; add it there.'
  )


def _iota(shape: str, order: str | None) -> np.ndarray:
  """0, 1, 2, ... in this shape, transposed."""
  sizes = [int(n) for n in shape.split(',')]
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  if order:
    numbers = numbers.transpose([int(n) for n in order.split(',')])
  return numbers


def _axes(group: list[int], mesh: dict[str, int]) -> tuple[str, ...]:
  """Axes along which the devices of a group differ."""
  places = np.array(np.unravel_index(group, list(mesh.values())))
  return tuple(
    axis
    for axis, along in zip(mesh, places, strict=True)
    if len(set(along.tolist())) > 1
  )
