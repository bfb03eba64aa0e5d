import csv
import gzip
import json

import numpy as np
import pytest

from configs import base
from configs import events_csv
from configs import events_entity
from data import event_files
from data import event_layouts
from data import event_reader
from data import events


def prepared(tmp_path, path, name, **fields):
  schema = event_layouts.LAYOUTS[name].schema
  return event_files.Events(
    str(path), schema.to_json(), directory=str(tmp_path / 'cache'),
    min_count=1, **fields,
  )  # fmt: skip


def whole(source):
  """All splits' rows as dictionaries, in the order of the file."""
  rows = []
  for split in ('train', 'validation', 'test'):
    rows += source.open(split).table.to_pylist()
  return sorted(rows, key=lambda row: row[event_reader.LINE])


def test_tabformer(tmp_path):
  header = (
    'User,Card,Year,Month,Day,Time,Amount,Use Chip,Merchant Name,Merchant'
    ' City,Merchant State,Zip,MCC,Errors?,Is Fraud?\n'
  )
  lines = [
    f'{user},{row % 2},2002,9,{row + 1},06:2{row},$-{user}4.09,Swipe'
    f' Transaction,3527213246127876953,La Verne,CA,91750.0,5300,'
    f'{"" if row else "Bad PIN"},{"Yes" if row == 3 else "No"}\n'
    for user in range(30)
    for row in range(5)
  ]
  path = tmp_path / 'card_transaction.v1.csv'
  path.write_text(header + ''.join(lines))
  rows = whole(prepared(tmp_path, path, 'tabformer'))
  assert len(rows) == 150
  assert rows[8]['User'] == '1' and rows[8]['Is Fraud?'] == 'Yes'
  assert rows[8]['time'].isoformat() == '2002-09-04T06:23:00+00:00'
  assert rows[8]['Amount'] == -14.09
  assert rows[8]['Merchant Name'] == '3527213246127876953'
  assert rows[8]['Errors?'] is None and rows[5]['Errors?'] == 'Bad PIN'


def test_amazon(tmp_path, capsys):
  path = tmp_path / 'Electronics_5.json.gz'
  reviews = [
    {'reviewerID': f'A{user}', 'asin': f'B{row}',
     'overall': 5 if row == 4 else 1.0 + row, 'verified': row == 2,
     'unixReviewTime': 1_400_000_000 + 86_400 * row,
     'reviewText': 'none, "of" this'}
    for user in range(30) for row in range(5)
  ]  # fmt: skip
  path.write_bytes(gzip.compress('\n'.join(map(json.dumps, reviews)).encode()))
  out, schema = tmp_path / 'events.csv', tmp_path / 'schema.json'
  arguments = ['layout', 'amazon', str(path), f'--out={out}']
  assert events.main([*arguments, f'--schema={schema}']) == 0
  said = capsys.readouterr().out.split()
  assert said[:3] == [
    'python', 'train.py', '--config=configs/events_csv.py'
  ] and f'data.schema={schema}' in said  # fmt: skip
  settings = [said[i + 1] for i, word in enumerate(said) if word == '--set']
  config = base.override(events_csv.get_config(), settings[2:])
  assert [one.positive for one in config.evals[:2]] == [('4.0', '5.0')] * 2
  source = prepared(tmp_path, out, 'amazon')
  rows = whole(source)
  assert [row['overall'] for row in rows[:5]] == [
    '1.0', '2.0', '3.0', '4.0', '5.0',
  ]  # fmt: skip
  assert rows[2]['verified'] == 'True' and rows[3]['verified'] == 'False'
  assert rows[7]['reviewerID'] == 'A1' and rows[7]['asin'] == 'B2'
  corpus = source.open('train')
  np.testing.assert_array_equal(np.diff(corpus.times_E[:5]), 86_400)
  path.write_bytes(gzip.compress(b'{"asin": "B1"}\n'))
  assert events.main([*arguments, f'--schema={schema}']) == 1
  assert "line 1 has no 'reviewerID'" in capsys.readouterr().err
  assert out.exists()  # The good one from before.


def test_berka(tmp_path):
  trans, loan = tmp_path / 'trans.asc', tmp_path / 'loan.asc'
  with trans.open('w') as file:
    file.write(
      '"trans_id";"account_id";"date";"type";"operation";"amount";"balance";'
      '"k_symbol";"bank";"account"\n'
    )
    for account in range(40):
      for row in range(6):
        symbol = 'UROK' if row else ' ' * (account % 2)
        file.write(
          f'{row};{account};9301{row + 10};"PRIJEM";"VKLAD";{row}00.5;1000;'
          f'"{symbol}";"AB";"1"\n'
        )
  with loan.open('w') as file:
    file.write(
      '"loan_id";"account_id";"date";"amount";"duration";"payments";"status"\n'
    )
    for account in range(30):
      file.write(
        f'{account};{account};930114;80952;24;3373;"{"ABCD"[account % 4]}"\n'
      )
  out = tmp_path / 'events.csv'
  assert event_layouts.write('berka', [trans, loan], out, tmp_path / 's.json')
  with out.open() as file:
    written = list(csv.DictReader(file))
  # Four days before the loan of 30 accounts; ten had none.
  assert len(written) == 120
  source = prepared(tmp_path, out, 'berka')
  assert source.tokenizer.label.code.words == ('no', 'yes')
  rows = whole(source)
  for row in rows:
    bad = int(row['account_id']) % 4 in (1, 3)
    assert row['bad'] == ('yes' if bad else 'no')
    assert row['date'].isoformat() < '1993-01-14'
    first = row['date'].day == 10
    assert row['k_symbol'] == (None if first else 'UROK')
  with pytest.raises(ValueError, match=r"made from 2 files \['trans.asc'"):
    event_layouts.write('berka', [trans], out, tmp_path / 's.json')
  with pytest.raises(ValueError, match="has no column 'status' but"):
    event_layouts.write('berka', [trans, trans], out, tmp_path / 's.json')
  with pytest.raises(ValueError, match="layout 'bank' is unknown; choose one"):
    event_layouts.write('bank', [], out, tmp_path / 's.json')


def test_rosbank(tmp_path):
  path = tmp_path / 'train.csv'
  with path.open('w') as file:
    file.write(
      'PERIOD,cl_id,MCC,channel_type,currency,TRDATETIME,amount,trx_category,'
      'target_flag,target_sum\n'
    )
    for client in range(30):
      for row in range(4):
        file.write(
          f'01/10/2017,{client},5200,,810,{row + 10}OCT17:00:00:00,502{row}.0,'
          f'POS,{client % 2},0.0\n'
        )
  with path.open('a') as file:
    file.write('01/10/2017,0,5200,type1,810,21OCT17:23:59:59,1.0,POS,0,0.0\n')
  rows = whole(prepared(tmp_path, path, 'rosbank'))
  assert len(rows) == 121 and rows[-1]['channel_type'] == 'type1'
  assert rows[-1]['TRDATETIME'].isoformat() == '2017-10-21T23:59:59+00:00'
  assert {(row['cl_id'], row['target_flag']) for row in rows} == {
    (str(client), str(client % 2)) for client in range(30)
  }


@pytest.mark.parametrize('name', ['berka', 'rosbank'])
def test_labels_of_entities_have_a_config_that_shows_none(name):
  layout = event_layouts.LAYOUTS[name]
  config = events_entity.get_config()
  assert layout.config == f'configs/{events_entity.__name__[8:]}.py'
  assert config.rows.mask_all == 1
  labels = [getattr(one, 'labels', 'hidden') for one in config.evals]
  assert labels == ['hidden'] * len(config.evals)
