"""Documents that are made up, as a corpus."""

import dataclasses
import json

from configs import base
from configs import passkey as experiment
from data import made
from data import packing
from data import text
from evals import passkey


@dataclasses.dataclass(frozen=True)
class Squares:
  start: int = 0

  def document(self, number):
    return b'%d squared is %d' % (number, (self.start + number) ** 2)


def test_documents_are_those_of_the_maker_in_all_splits(tmp_path):
  source = made.Made(Squares(), 60)
  data = text.Text(source, str(tmp_path), 0.2, 0.2)
  found = []
  for split in text.SPLITS:
    found += [bytes(document) for document in data.open(split)]
  assert sorted(found) == sorted(Squares().document(i) for i in range(60))


def test_other_settings_are_another_corpus():
  source = made.Made(Squares(), 60)
  prints = {source.fingerprint()}
  for other in (made.Made(Squares(), 61), made.Made(Squares(1), 60)):
    prints.add(other.fingerprint())
  assert len(prints) == 3
  assert made.Made(Squares(), 60).fingerprint() in prints


def test_rows_of_the_experiment_are_whole_texts(tmp_path):
  config = experiment.get_config()
  source = dataclasses.replace(config.data.source, count=40)
  data = dataclasses.replace(
    config.data, source=source, directory=str(tmp_path),
    validation_fraction=0.1, test_fraction=0.1,
  )  # fmt: skip
  assert base.from_json(json.loads(json.dumps(base.to_json(data)))) == data
  rows = packing.Rows(data.open('train'), config.row_length)
  for index in (0, len(rows) - 1):
    row = rows[index]
    assert row['documents'].tolist() == [1] * config.row_length
    # The next text's begin mark is nothing to predict.
    assert row['mask'].sum() == config.row_length - 1
  # What is asked is not what was learned from.
  (asked,) = (e for e in config.evals if isinstance(e, passkey.Passkey))
  assert asked.seed != source.maker.seed
