"""Times of events in more spellings of ISO 8601 than Arrow reads by itself."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data import event_cells
from data import event_schema

# What marks the spellings below; texts without a mark are left as they are.
_MARKS = r'z$|UTC$|\.\d{7}|\d +[+-]\d|\d +Z$|^\d{8}T\d'
_RESPELLED = (
  # Without separators, as 20200131T120000Z.
  (r'^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)', r'\1-\2-\3T\4:\5:\6'),
  # Beyond microseconds, which are what is kept.
  (r'(:\d\d\.\d{6})\d{1,3}', r'\1'),
  # Zones behind a blank, and Z by other names.
  (r'(:\d\d(\.\d+)?) *(z|UTC)$', r'\1Z'),
  (r'(:\d\d(\.\d+)?) +(Z|[+-]\d\d(:?\d\d)?)$', r'\1\3'),
)


def read(
  columns: Sequence[pa.Array], name: str, time_format: str
) -> tuple[pa.Array, list[event_cells.Problem], set[str]]:
  """As event_cells.times, of more spellings; %z of strptime is a zone, too."""
  # Several columns are never whole times.
  is_text = pa.types.is_string(columns[0].type) or pa.types.is_large_string(
    columns[0].type
  )
  if time_format == event_schema.ISO and len(columns) == 1 and is_text:
    columns = [_respelled(columns[0])]
  found, problems, zones = event_cells.times(columns, name, time_format)
  is_format = time_format not in (event_schema.ISO, *event_schema.EPOCHS)
  if is_format and not zones and found.null_count < len(found):
    zoned = 'z' in event_schema.directives(time_format)
    zones = {'zone' if zoned else 'no zone'}
  return found, problems, zones


def _respelled(text: pa.Array) -> pa.Array:
  """ISO times as Arrow reads them."""
  marked = pc.fill_null(pc.match_substring_regex(text, _MARKS), False)
  if not pc.any(marked).as_py():
    return text
  plain = text
  for pattern, with_ in _RESPELLED:
    plain = pc.replace_substring_regex(plain, pattern, with_)
  return pc.if_else(marked, plain, text)
