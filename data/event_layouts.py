"""Public tables of events: their schemas, and files made ready for them.

A schema takes columns by name, so a file that keeps its published layout is
read as it is; reviews in JSON and loans in a table of their own are written as
one CSV first.
"""

import csv
import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Iterator, Sequence

from data import event_schema
from data import json_text
from data import unpacked

_GOOD_LOANS, _BAD_LOANS = ('A', 'C'), ('B', 'D')
_REVIEW = ('reviewerID', 'asin', 'verified', 'unixReviewTime', 'overall')
_BERKA = (
  'account_id', 'date', 'type', 'operation', 'amount', 'balance', 'k_symbol',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
  """A published table: its schema and, where needed, how it becomes one file.

  files: what `rows` is made from; rows: header and rows of the CSV.
  config: experiment to train with, and settings of it.
  """

  schema: event_schema.Schema
  files: tuple[str, ...] = ()
  rows: Callable[..., Iterator[Sequence[object]]] | None = None
  config: str = 'configs/events_csv.py'
  settings: tuple[str, ...] = ()


def _fields(**kinds: str) -> tuple[event_schema.Field, ...]:
  return tuple(event_schema.Field(name, kind) for name, kind in kinds.items())


def _label(name: str, *values: str) -> tuple[event_schema.Field, ...]:
  """The label, the positive value last."""
  return (event_schema.Field(name, 'label', values),)


def amazon_rows(reviews: pathlib.Path) -> Iterator[Sequence[object]]:
  """Reviews of a 5-core file, one JSON object per line (.gz or not)."""
  yield _REVIEW
  with unpacked.opened(reviews) as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      place = f'{reviews}: line {number}'
      review = json_text.parse(line, place, 'get the file anew')
      if not isinstance(review, dict):
        raise ValueError(f'{place} is no JSON object; get the file anew.')
      missing = [name for name in _REVIEW if name not in review]
      missing = [name for name in missing if name != 'verified']
      if missing:
        raise ValueError(
          f'{reviews}: line {number} has no {missing[0]!r}; a 5-core file of'
          f' reviews has {", ".join(_REVIEW)}.'
        )
      # Some copies have whole numbers where the published file has 5.0.
      rating = review['overall']
      try:
        rating = float(rating) if isinstance(rating, int) else rating
      except OverflowError as error:
        raise ValueError(
          f'{place} has overall={str(rating)[:9]}..., no number of stars; get'
          ' the file anew.'
        ) from error
      yield [review.get(name, '') for name in _REVIEW[:-1]] + [rating]


def berka_rows(
  transactions: pathlib.Path, loans: pathlib.Path
) -> Iterator[Sequence[object]]:
  """Transactions before the day of each account's loan, and if it went bad.

  Status B is a finished loan not paid, D a running one in debt.
  """
  yield (*_BERKA, 'bad')
  granted = {}
  for loan in _semicolons(loans, ('account_id', 'date', 'status')):
    if loan['status'] not in _GOOD_LOANS + _BAD_LOANS:
      raise ValueError(
        f'{loans}: account {loan["account_id"]} has status'
        f' {loan["status"]!r}; it is one of A, B, C, D.'
      )
    granted[loan['account_id']] = loan
  for row in _semicolons(transactions, _BERKA):
    loan = granted.get(row['account_id'])
    if loan and _day(row['date']) < _day(loan['date']):
      bad = 'yes' if loan['status'] in _BAD_LOANS else 'no'
      # Some values are a blank, which is none.
      yield [*(row[name].strip() for name in _BERKA), bad]


def write(
  name: str,
  files: Sequence[str | pathlib.Path],
  out: pathlib.Path,
  schema: pathlib.Path,
) -> bool:
  """Writes the schema of a layout and, where it needs one, the CSV.

  Returns whether there is a CSV; ValueError for the wrong files.
  """
  if name not in LAYOUTS:
    raise ValueError(
      f'layout {name!r} is unknown; choose one of {sorted(LAYOUTS)}.'
    )
  layout = LAYOUTS[name]
  if len(files) != len(layout.files):
    raise ValueError(
      f'layout {name!r} is made from {len(layout.files)} files'
      f' {list(layout.files)}, not from {len(files)}.'
    )
  schema.write_text(layout.schema.to_json(), 'utf-8')
  if layout.rows is None:
    return False
  part = out.with_name(f'{out.name}.part')
  with part.open('w', encoding='utf-8', newline='') as file:
    paths = [pathlib.Path(path).expanduser() for path in files]
    csv.writer(file).writerows(layout.rows(*paths))
  part.replace(out)
  return True


def _semicolons(
  path: pathlib.Path, needed: Sequence[str]
) -> Iterator[dict[str, str]]:
  with path.open(encoding='utf-8', newline='') as file:
    reader = csv.DictReader(file, delimiter=';')
    try:
      missing = [n for n in needed if n not in (reader.fieldnames or ())]
      if missing:
        raise ValueError(
          f'{path} has no column {missing[0]!r} but'
          f' {str(reader.fieldnames)[:200]}; give the file as it was published.'
        )
      for row in reader:
        if any(row[name] is None for name in needed):
          raise ValueError(
            f'{path}: line {reader.line_num} has too few values; give the file'
            ' as it was published.'
          )
        yield row
    except (csv.Error, UnicodeDecodeError) as error:
      raise ValueError(
        f'{path}: line {reader.line_num} cannot be read ({error}); give the'
        ' file as it was published.'
      ) from error


def _day(text: str) -> datetime.datetime:
  try:
    return datetime.datetime.strptime(text, '%y%m%d')
  except ValueError as error:
    raise ValueError(
      f'the date {text[:40]!r} is none as YYMMDD; give the files as they were'
      ' published.'
    ) from error


LAYOUTS = {
  # card_transaction.v1.csv of IBM (TabFormer).
  'tabformer': Layout(
    event_schema.Schema(
      entity='User',
      time='time',
      time_columns=('Year', 'Month', 'Day', 'Time'),
      time_format='%Y %m %d %H:%M',
      fields=_fields(
        **{
          'Card': 'category',
          'Amount': 'number',
          'Use Chip': 'category',
          'Merchant Name': 'id',
          'Merchant City': 'id',
          'Merchant State': 'category',
          'Zip': 'id',
          'MCC': 'category',
          'Errors?': 'category',
        }
      )
      + _label('Is Fraud?', 'No', 'Yes'),
    )
  ),
  # Reviews of Amazon, version 2, 5-core: one JSON object per line.
  'amazon': Layout(
    event_schema.Schema(
      entity='reviewerID',
      time='unixReviewTime',
      time_format='epoch_s',
      fields=(
        *_fields(asin='id', verified='bool'),
        *_label('overall', '1.0', '2.0', '3.0', '4.0', '5.0'),
      ),
      derived=('gap', 'weekday'),  # Times are days.
    ),
    ('reviews.json.gz',),
    amazon_rows,
    settings=tuple(f'evals.{i}.positive=4.0,5.0' for i in range(2)),
  ),
  # Financial data of PKDD'99 (Berka).
  'berka': Layout(
    event_schema.Schema(
      entity='account_id',
      time='date',
      time_format='%y%m%d',
      fields=_fields(
        type='category',
        operation='category',
        amount='number',
        balance='number',
        k_symbol='category',
      )
      + _label('bad', 'no', 'yes'),
      derived=('gap', 'weekday'),
    ),
    ('trans.asc', 'loan.asc'),
    berka_rows,
    'configs/events_entity.py',
  ),
  # Churn of customers of Rosbank; the target is of the customer.
  'rosbank': Layout(
    event_schema.Schema(
      entity='cl_id',
      time='TRDATETIME',
      time_format='%d%b%y:%H:%M:%S',
      fields=_fields(
        MCC='category',
        channel_type='category',
        currency='category',
        amount='number',
        trx_category='category',
      )
      + _label('target_flag', '0', '1'),
    ),
    config='configs/events_entity.py',
  ),
}
