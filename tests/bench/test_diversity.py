"""The command that compares truncation rules, on a tiny run."""

import json
import types

import numpy as np
import pytest
from absl import flags

from bench import diversity
from configs import corpora
from configs import restore
from data import codec
from tests.models import small_lm

MODEL = small_lm.lm.ByteLM(**small_lm.SIZES)
TEXT = b'for i in a\nfor k in b\nfor x of c\nif a b\nif b c\nif c d\nif c e\n'


class Corpus(list):
  """Documents with names."""

  names = ('a',)


def data_of(text):
  corpus = Corpus([np.frombuffer(text, np.uint8)])
  return types.SimpleNamespace(
    codec=codec.Bytes(), prepare=lambda: None, open=lambda split: corpus
  )


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
  config = types.SimpleNamespace(model=MODEL, data=data_of(TEXT))
  monkeypatch.setattr(
    restore,
    'restore',
    lambda directory: restore.Run(config, small_lm.draw(MODEL), 7),
  )

  def run(**values):
    out = tmp_path / 'new' / 'report.json'
    own = flags.FlagValues()
    holders = diversity.define_flags(own)
    own.mark_as_parsed()
    given = {'checkpoint': 'runs/none', 'out': str(out), 'depth': 1}
    for name, value in (given | values).items():
      own[name].value = value
    diversity.report(holders)
    return out, capsys.readouterr().out

  return run


def test_every_rule_is_in_the_table_and_the_plot(run):
  out, text = run(risks=['0.5', '3'], bat_ids=3)
  report = json.loads(out.read_text())
  names = set(report['rules'])
  assert {'bat(eta)', 'min_p', 'top_n_sigma', 'top_h', 'top_p'} <= names
  assert f'{report["contexts"]} contexts' in text and report['contexts'] > 1
  rows = [line.split(' | ') for line in text.splitlines() if ' +- ' in line]
  assert {row[0].strip('| ') for row in rows} == names
  for row in report['rules'].values():
    assert set(row) == {'0.5', '3'}
    assert all(0 <= m['recall'] <= 1 for m in row.values())
  picture = out.with_suffix('.svg').read_text()
  assert picture.count('<polyline') == len(names)
  assert all(f'>{name}</text>' in picture for name in names)


def test_any_corpus_will_do(run, monkeypatch, tmp_path):
  lines = b'one a\none b\none c\n'
  (tmp_path / 'x.txt').write_bytes(2 * lines)
  out, text = run(files=f'{tmp_path}/*.txt', risks=['1'], bat_ids=0)
  facts = json.loads(out.read_text())
  assert (facts['contexts'], facts['lines']) == (1, 6)
  assert facts['corpus'] == f"files '{tmp_path}/*.txt'"
  assert '1 contexts of files' in text and 'bat(eta)' not in facts['rules']
  out, _ = run(
    files=f'{tmp_path}/*.txt', max_bytes=len(lines), risks=['1'], bat_ids=0
  )
  assert json.loads(out.read_text())['lines'] == 3
  other = types.SimpleNamespace(data=data_of(3 * lines))
  monkeypatch.setattr(corpora.base, 'load', {'other.py': other}.__getitem__)
  out, text = run(config='other.py', risks=['1'], bat_ids=0)
  assert json.loads(out.read_text())['lines'] == 9
  assert "1 contexts of split 'test' of other.py" in text


def test_bat_looks_at_all_bytes(run, monkeypatch):
  seen = []

  def rules(basis_VC, laws, *, ids):
    seen.append(ids)
    return {}

  monkeypatch.setattr(diversity.bat_thresholds, 'rules', rules)
  run()
  run(bat_ids=7)
  assert seen == [260, 7]


@pytest.mark.slow
def test_samples_of_every_rule_that_draws(run, monkeypatch):
  monkeypatch.setattr(diversity.quality, 'PROMPT_BYTES', 8)
  out, text = run(risks=['3'], bat_ids=3, samples=1, sample_bytes=2)
  report = json.loads(out.read_text())
  names = {row['rule'] for row in report['samples']}
  assert names == {'the split itself', *report['rules']} - {'adaptive'}
  assert '| top_h | 3 |' in text


@pytest.mark.parametrize(
  'values, words',
  [
    ({'risks': ['1', 'x']}, '--risks=1,x must be numbers above 0'),
    ({'risks': ['0']}, '--risks=0 must be numbers above 0'),
    ({'checkpoint': None}, '--checkpoint is missing'),
    ({'files': '*', 'config': 'x.py'}, '--files and --config exclude each'),
    ({'judge': 'runs/x'}, '--judge=runs/x has nothing to score'),
  ],
)
def test_bad_flags_are_named(run, values, words):
  with pytest.raises(ValueError, match=words):
    run(**values)
