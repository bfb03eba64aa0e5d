"""The command that reads one model in several ways."""

import json

import pytest

from configs import restore
from evals import by_position
from evals import passkey
from models import unlimited
from tests import tiny_runs
from tests.commands import running
from tests.models import small_lm


@pytest.fixture
def main(tmp_path, monkeypatch):
  texts = tiny_runs.write_texts(tmp_path / 'texts')
  module, own = running.load('bench/lengths')

  def run(evals, *flags):
    config = tiny_runs.make_config(texts, evals=evals)

    def read(directory, limit):
      model = unlimited.read_with(config.model, unlimited.parse(limit))
      params = small_lm.draw(config.model)
      return restore.Run(
        tiny_runs.make_config(texts, evals=evals, model=model), params, 3
      )

    monkeypatch.setattr(module.restore, 'restore', read)
    running.parse(
      own, f'--checkpoint={tmp_path}', f'--out={tmp_path}/a/lengths.json',
      *flags,
    )  # fmt: skip
    module.main([])

  return run


@pytest.mark.slow
def test_every_way_has_a_column_and_a_curve(main, tmp_path, capsys):
  position = by_position.BitsByPosition(first=16, longest=32, most=1)
  question = passkey.Passkey(lengths=(400,), depths=(0.5,), questions=2)
  main(
    (position, question), '--read=off', '--read=1,16',
    '--set=evals.1.lengths=150', '--position=8', '--position=300',
  )  # fmt: skip
  found = json.loads((tmp_path / 'a' / 'lengths.json').read_text())
  bits = [
    [found[way][f'by_position/{stop}/bits_per_byte'] for stop in (16, 32)]
    for way in ('off', '1,16')
  ]
  # The first group is within what is seen.
  assert bits[1][0] == pytest.approx(bits[0][0], rel=1e-5)
  assert bits[1][1] != pytest.approx(bits[0][1], rel=1e-5)
  shown = capsys.readouterr().out
  head, line, *rows = shown.splitlines()[:-1]
  assert head == '| | off | 1,16 |'
  assert line == '|---|---|---|'
  assert len(rows) == 2 * 2 + 1 + 2 * 2
  row = f'| bits per byte up to 32 | {bits[0][1]:.3f} | {bits[1][1]:.3f} |'
  assert row in shown
  assert '| passkeys found in texts of 150 | 0.000 | 0.000 |' in shown
  kept = {
    way: [found[way][f'decoding/{p}/cache_bytes'] for p in (8, 300)]
    for way in found
  }
  # Of all bytes, or of the window and one more, whatever the position.
  assert kept['off'][1] - kept['off'][0] == 292 * (2 * 4 * 8 + 4)
  assert kept['1,16'][1] == kept['1,16'][0] < kept['off'][0]
  assert f'| bytes of cache after 300 | {kept["off"][1]:,} | ' in shown
  assert '| us per byte decoded after 8 | ' in shown
  picture = (tmp_path / 'a' / 'lengths.svg').read_text()
  assert picture.count('<polyline') == 2


def test_runs_without_such_evaluators_are_named(main):
  with pytest.raises(SystemExit, match='has no evaluator of positions'):
    main(())
