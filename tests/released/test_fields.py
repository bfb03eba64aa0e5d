"""config.json of released checkpoints: what is no config is named."""

import pytest

from models import positions
from released import fields


def test_config_must_be_there_and_be_json(tmp_path):
  with pytest.raises(ValueError, match='no directory'):
    fields.read(tmp_path / 'none')
  with pytest.raises(ValueError, match=r'has no config\.json'):
    fields.read(tmp_path)
  for text in ('', '[1]', '{"a": ', '\xff', '[' * 200_000):
    (tmp_path / fields.NAME).write_text(text, encoding='latin-1')
    with pytest.raises(ValueError, match=r'config\.json is no JSON object'):
      fields.read(tmp_path)


def test_values_of_a_message_are_short():
  config = fields.Fields({'rope_parameters': ['yarn'] * 1000})
  with pytest.raises(ValueError) as error:
    fields.position(config)
  assert len(str(error.value)) < 250


def test_angles_of_new_fields_count_before_those_of_old_ones():
  new = {'rope_parameters': {'rope_theta': 3, 'rope_type': 'default'}}
  defaults = {'rope_theta': 7.0}
  for tree, expected in (
    (new, 3.0),
    ({'rope_theta': 5.0}, 5.0),
    (new | {'rope_theta': 5.0, 'rope_scaling': None}, 3.0),
    ({'rope_theta': 5.0, 'rope_parameters': {'type': 'default'}}, 5.0),
    ({}, 7.0),
  ):
    found = fields.position(fields.Fields(tree, '', defaults))
    assert found == positions.Rotary(theta=expected)
