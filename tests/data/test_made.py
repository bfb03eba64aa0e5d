"""Documents that are made up, as a corpus."""

import collections
import dataclasses
import json

import pytest

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
  learned = [m for m in source.maker.makers if isinstance(m, passkey.Passkey)]
  assert learned
  assert all(asked.seed != maker.seed for maker in learned)


def test_makers_take_turns():
  maker = made.InTurn((Squares(), Squares(5), Squares(9)))
  found = [maker.document(i) for i in range(6)]
  wanted = [(0, 0), (0, 25), (0, 81), (1, 1), (1, 36), (1, 100)]
  assert found == [b'%d squared is %d' % pair for pair in wanted]


def test_most_of_an_echo_stands_further_up():
  """Counted by the trigrams that were there before, and what followed them."""
  maker = made.Echoes(size=500, words=9, longest=12, seed=3)
  counts = collections.Counter()
  for number in range(60):
    document = maker.document(number)
    assert len(document) == 500 and document == maker.document(number)
    words = document.split(b' ')
    assert 1 <= len(set(words[:-1])) <= 9
    assert all(3 <= len(word) <= 12 for word in words[:-1])
    assert all(w.isdigit() or w.islower() for w in words[:-1])
    for i in range(490, 500):
      following = {document[j - 3 : j]: document[j] for j in range(3, i)}
      counts[following.get(document[i - 3 : i]) == document[i]] += 1
  # What is left is which word comes next.
  assert counts[True] / counts.total() > 0.7
  digits = [maker.document(i)[:3].isdigit() for i in range(60)]
  assert 15 < sum(digits) < 45


@pytest.mark.parametrize(
  'fields', [{'size': 0}, {'words': 0}, {'longest': 2}], ids=str
)
def test_echoes_that_cannot_be_made_are_named(fields):
  ((name, value),) = fields.items()
  with pytest.raises(ValueError, match=f'{name}={value}'):
    made.Echoes(**({'size': 9} | fields))
