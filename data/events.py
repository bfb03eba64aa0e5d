"""Proposes a schema for a file of events, to be read, edited and trained on.

python -m data.events inspect FILE --out=schema.json
python -m data.events inspect FILE --entity=user --time=date --label=fraud
python -m data.events layout tabformer --schema=schema.json
python -m data.events layout berka trans.asc loan.asc --out=events.csv
python -m data.events tfds FILE --schema=schema.json --out=DIR
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from data import event_builder
from data import event_files
from data import event_inspect
from data import event_layouts
from data import event_source


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog='python -m data.events')
  commands = parser.add_subparsers(dest='command', required=True)
  inspect = commands.add_parser(
    'inspect', help='say what the columns of a file look like'
  )
  inspect.add_argument('file', help='CSV (also .gz) or Parquet')
  inspect.add_argument('--out', default='schema.json', help='JSON to edit')
  inspect.add_argument('--delimiter', default=',', help='of CSV')
  for name in ('entity', 'time', 'label'):
    inspect.add_argument(
      f'--{name}', default='', help=f'the column that is the {name}'
    )
  layout = commands.add_parser(
    'layout', help='write the schema of a public table, and the table as CSV'
  )
  layout.add_argument('name', choices=sorted(event_layouts.LAYOUTS))
  layout.add_argument('files', nargs='*', help='as published')
  layout.add_argument('--out', default='events.csv', help='CSV to train on')
  layout.add_argument('--schema', default='schema.json', help='JSON to edit')
  dataset = commands.add_parser(
    'tfds', help='write the splits of a file, encoded, as a dataset of TFDS'
  )
  dataset.add_argument('file', help='CSV (also .gz) or Parquet')
  dataset.add_argument('--schema', default='schema.json', help='its columns')
  dataset.add_argument('--out', required=True, help='folder of datasets')
  chosen = parser.parse_args(arguments)
  run = {'inspect': _inspect, 'layout': _lay, 'tfds': _encode}
  try:
    print(run[chosen.command](chosen))
  except (OSError, ValueError) as error:
    print(f'Error: {error}', file=sys.stderr)
    return 1
  return 0


def _inspect(chosen: argparse.Namespace) -> str:
  """Writes the proposal; returns what to say of it."""
  # A shell gives a tab as it is written in Python.
  delimiter = chosen.delimiter.replace(r'\t', '\t')
  proposal = event_inspect.propose(chosen.file, delimiter)
  text = proposal.to_json(chosen.entity, chosen.time, chosen.label)
  _check_chosen(chosen, json.loads(text))
  out = pathlib.Path(chosen.out).expanduser()
  # What was proposed before any column was chosen is no loss.
  known = [text.encode(), proposal.to_json().encode()]
  if out.exists() and out.read_bytes() not in known:
    raise ValueError(
      f'{out} holds something else, perhaps a schema that you edited; move it'
      ' away, or give another --out.'
    )
  out.write_text(text, 'utf-8')
  said = [proposal.report()]
  said.append(f'The schema is in {chosen.out}; edit it as you like.')
  missing = [n for n in ('entity', 'time') if not getattr(chosen, n)]
  if missing:
    said.append(
      f'Name the {" and the ".join(missing)} there, for they are never'
      ' guessed; the candidates are in the file.'
    )
  if not chosen.label:
    said.append(
      'No label is named: a model of this schema can impute and generate, but'
      ' has nothing to predict.'
    )
  stored = json.loads(text)
  used = {chosen.entity, stored['time'], *stored.get('time_columns', ())}
  used |= {field['name'] for field in stored['fields']}
  left = [found.name for found in proposal.columns if found.name not in used]
  if left:
    said.append(f'Left out: {", ".join(left)}.')
  return '\n'.join(said)


def _check_chosen(
  chosen: argparse.Namespace, stored: dict[str, Any]
) -> None:
  """ValueError for a column that was chosen as two things."""
  times = stored.get('time_columns') or [stored['time']]
  for one, other, is_both in (
    ('entity', 'time', chosen.entity in times),
    ('label', 'entity', chosen.label == chosen.entity),
    ('label', 'time', chosen.label in times),
  ):
    name = getattr(chosen, one)
    if name and is_both:
      raise ValueError(
        f'--{one}={name} is a column of --{other}, too; name another one.'
      )


def _lay(chosen: argparse.Namespace) -> str:
  """Writes schema and table; returns what to do with them."""
  out, schema = (
    pathlib.Path(path).expanduser() for path in (chosen.out, chosen.schema)
  )
  made = event_layouts.write(chosen.name, chosen.files, out, schema)
  path, layout = out if made else 'FILE', event_layouts.LAYOUTS[chosen.name]
  settings = (f'data.path={path}', f'data.schema={schema}', *layout.settings)
  sets = ' '.join(f'--set {setting}' for setting in settings)
  return f'python train.py --config={layout.config} {sets} --workdir=DIR'


def _encode(chosen: argparse.Namespace) -> str:
  """Writes the dataset; returns how to read it."""
  out = pathlib.Path(chosen.out).expanduser()
  events = event_files.Events(
    chosen.file, chosen.schema, directory=str(out / 'prepared')
  )
  folder = event_builder.write(
    {split: events.open(split) for split in event_source.SPLITS},
    out,
    events.prepare().name,
  )
  return f'tfds.builder_from_directory({str(folder)!r}).as_data_source()'


if __name__ == '__main__':
  sys.exit(main())
