"""The scaling table: sizes by hand, stored points, and two runs that learn."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from absl import flags

from bench import problems
from bench import scaling
from models import flops
from tests import tiny_runs


@dataclasses.dataclass
class Imagined:
  """Costs and losses by formula; remembers what was trained."""

  name: str = 'text'
  unit: str = 'bits per byte'
  largest: float = 60 * 32e8
  rate: float = 2.0
  batch: int = 10
  speed: float = 1e9
  widths: range = range(8, 800, 8)
  trained: list = dataclasses.field(default_factory=list)

  def cost(self, structure, width):
    return width**2 if structure == 'dense' else 8 * width**1.5

  def prepare(self, folder, examples):
    self.examples = examples

  def trial(self, data, structure, width, steps):
    def run(seed):
      self.trained.append((structure, width, steps, seed))
      spent = steps * self.batch * self.cost(structure, width)
      return (4.0 if structure == 'dense' else 3.0) * spent**-0.1 + seed / 1e4

    return run


def compare(problem, out, sizes=2, seeds=2, minutes=1.0):
  return scaling.compare(
    out,
    [problem],
    ['dense', 'btt'],
    minutes=minutes,
    sizes=sizes,
    seeds=seeds,
  )


def test_a_size_spends_its_flops_on_the_same_data():
  problem = Imagined()
  cells = [
    scaling.plan(problem, structure, size, 1.0)
    for size in (1, 0)
    for structure in ('dense', 'btt')
  ]
  # 32e8 = 4e4 x 8e4: FLOPs per example, and examples, which are twice as many.
  assert [cell.width for cell in cells] == [144, 184, 200, 296]
  assert [cell.budget for cell in cells] == [8e8, 8e8, 32e8, 32e8]
  for cell in cells:
    examples = cell.steps * problem.batch
    cost = problem.cost(cell.structure, cell.width)
    assert cell.flops == pytest.approx(examples * cost)
    assert cell.flops == pytest.approx(cell.budget, rel=1e-3), cell
    assert examples == pytest.approx((2 * cell.budget) ** 0.5, rel=0.06)


def test_points_are_kept_and_the_table_is_that_of_all(tmp_path, capsys):
  problem = Imagined()
  text = compare(problem, tmp_path)
  assert len(problem.trained) == len(set(problem.trained)) == 8
  assert problem.examples == max(t[2] for t in problem.trained) * 10
  assert '[1/8, about ' in capsys.readouterr().out
  assert (tmp_path / 'table.md').read_text() == text
  assert re.search(r'btt below low_rank', text) is None
  for name in ('dense', 'btt'):
    assert re.search(rf'\| {name} \| \d\.\d+ \+- 5e-05 \(width', text)
  points = json.loads((tmp_path / 'results.json').read_text())
  assert [tuple(p[k] for k in ('structure', 'width', 'steps', 'seed'))
          for p in points] == problem.trained
  assert (tmp_path / 'scaling.svg').read_text().count('<polyline') == 2
  # The same again trains nothing; more sizes and seeds add what is missing.
  again = Imagined()
  assert compare(again, tmp_path) == text and not again.trained
  compare(again, tmp_path, sizes=3, seeds=3)
  assert len(again.trained) == 2 * (3 * 3 - 2 * 2)
  with pytest.raises(ValueError, match=r'was trained with budget=.*--minutes'):
    compare(again, tmp_path, minutes=2.0)


def test_a_stopped_command_goes_on(tmp_path, monkeypatch):
  problem = Imagined()
  whole = compare(Imagined(), tmp_path / 'whole')
  monkeypatch.setattr(
    scaling.jax, 'clear_caches', lambda: problem.trained[3:] and 1 / 0
  )
  with pytest.raises(ZeroDivisionError):
    compare(problem, tmp_path / 'cut')
  assert len(list((tmp_path / 'cut').glob('text-*.json'))) == 4
  monkeypatch.undo()
  other = Imagined()
  assert compare(other, tmp_path / 'cut') == whole
  assert len(other.trained) == 4


def test_costs_are_those_of_the_matmuls():
  teacher, text = problems.Teacher(), problems.Text()
  # 8 inputs and one output; two layers between: 16 = 4 x 4.
  assert teacher.cost('dense', 16) == 6 * (9 * 16 + 2 * 256)
  assert teacher.cost('btt', 16) == 6 * (9 * 16 + 2 * 128)
  assert teacher.cost('moe', 16) == 6 * (9 * 16 + 2 * (2 * 256 + 8 * 16))
  # Two blocks of width 32: projections, attention over 64.5 keys, and a head.
  macs = 2 * (4 * 1024 + 3 * 4096 + 2 * 32 * 64.5) + 32 * 260
  assert text.cost('dense', 32) == 6 * macs
  extra = 2 * (3 * 4096 + 8 * 32)
  assert text.cost('moe', 32) == 6 * (macs + extra)
  for name in problems.STRUCTURES:
    width = problems.Text().widths[0]
    model = text.model(name, width)
    parts = flops.per_byte(model, length=128)
    assert text.cost(name, width) == flops.training(model, parts)


def test_the_data_of_the_teacher_are_what_its_network_says(tmp_path):
  teacher = problems.Teacher(teacher_width=4, teacher_layers=2, held_out=40)
  x_ND, y_N = teacher.prepare(tmp_path, 100)
  assert x_ND.shape == (140, 8)
  assert y_N.mean() == pytest.approx(0, abs=1e-5)
  assert y_N.std() == pytest.approx(1, abs=1e-5)
  keys = jax.random.split(jax.random.key(0), 3)
  first, second, last = (
    np.asarray(jax.random.normal(key, shape))
    for key, shape in zip(keys, ((8, 4), (4, 4), (4, 1)), strict=True)
  )
  # The standard form takes every scale of a layer out again.
  h_ND = np.maximum(np.maximum(x_ND @ first, 0) @ second, 0) @ last
  assert np.corrcoef(h_ND[:, 0], y_N)[0, 1] == pytest.approx(1, abs=1e-5)
  again = teacher.prepare(tmp_path, 100)
  np.testing.assert_array_equal(again[1], y_N)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """A small teacher, and its data."""
  found = problems.Teacher(
    teacher_width=4, teacher_layers=1, held_out=256, batch=32
  )
  return found, found.prepare(tmp_path_factory.mktemp('teacher'), 32 * 150)


@pytest.mark.parametrize(
  'structure', ['btt', pytest.param('btt_moe', marks=pytest.mark.slow)]
)
def test_a_student_learns(teacher, structure):
  problem, data = teacher
  trial = problem.trial(data, structure, 16, 150)
  losses = [trial(seed) for seed in (0, 1)]
  # Nothing learned is an error of 1.
  assert max(losses) < 0.3 and losses[0] != losses[1]
  assert trial(0) == losses[0]


@pytest.mark.slow
@pytest.mark.parametrize('structure', ['btt', 'moe'])
def test_a_language_model_learns(tmp_path, structure):
  config = tiny_runs.make_config(tiny_runs.write_texts(tmp_path / 'texts'))
  problem = problems.Text(
    data=config.data, eval_bytes=500, row_length=16, rows=8
  )
  data = problem.prepare(tmp_path, 0)
  # Guessing costs 8.02; the letters of four words less than 4.
  assert problem.trial(data, structure, 16, 40)(0) < 4


@pytest.mark.parametrize(
  'changes, expected',
  [
    ([], (8, 60, 3, 2)),
    (['--quick'], (2, 0.06, 2, 1)),
    (['--quick', '--sizes=3', '--minutes=1'], (2, 0.001, 3, 1)),
  ],
)
def test_flags(tmp_path, monkeypatch, changes, expected):
  asked = []
  monkeypatch.setattr(scaling.host, 'keep_memory', lambda: None)
  monkeypatch.setattr(scaling, 'compare', lambda *a, **b: asked.append((a, b)))
  own = flags.FlagValues()
  given = scaling.define_flags(own)
  own(['scaling', f'--out={tmp_path}', *changes])
  scaling.main(given)
  (((out, chosen, structures), values),) = asked
  assert out == tmp_path
  assert [problem.name for problem in chosen] == ['text', 'teacher']
  assert (len(structures), *values.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
  'changes, words',
  [
    ([], '--out is missing'),
    (['--out=x', '--problems=card'], '--problems=card must be some of text, t'),
    (['--out=x', '--structures=bt'], '--structures=bt must be some of dense'),
  ],
)
def test_bad_flags_are_one_sentence(monkeypatch, changes, words):
  monkeypatch.setattr(scaling.host, 'keep_memory', lambda: None)
  own = flags.FlagValues()
  given = scaling.define_flags(own)
  own(['scaling', *changes])
  with pytest.raises(SystemExit, match=words):
    scaling.main(given)
