import dataclasses
import json
import pathlib
import typing
from typing import Any

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import pytest

from configs import base


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5
  label: str = 'x'
  limit: int | None = None
  sizes: tuple[int, ...] = (1, 2)
  pair: tuple[int, float] = (1, 0.5)
  kind: typing.Literal['cosine', 'linear'] = 'cosine'


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  parts: tuple[Inner, ...] = (Inner(), Inner(rate=2.0))
  flag: bool = False
  count: int = 3
  anything: Any = 7


@dataclasses.dataclass(frozen=True)
class Holder:
  value: Any


class Layer(nn.Module):
  features: int = 4
  inner: Any = None
  dtype: str = 'float32'


@pytest.fixture(autouse=True)
def these_classes_may_be_stored(monkeypatch):
  monkeypatch.setattr(base, 'PACKAGES', (*base.PACKAGES, 'tests'))


def make_config(**changes):
  fields = {
    'model': Layer(inner=Layer(features=2)),
    'data': Inner(),
    'optimizer': Inner(),
    'objective': Inner(),
    'sampler': Inner(),
    'mesh': Inner(),
    'shardings': (('kernel', ('data', None)),),
    'row_length': 16,
    'batch_size': 8,
    'steps': 10,
  }
  return base.Config(**(fields | changes))


floats = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(1 - 2**63, 2**63 - 1)
leaves = st.none() | st.booleans() | integers | floats | st.text()
inners = st.builds(Inner, floats, st.text(), st.none() | integers)
trees = st.recursive(
  leaves | inners,
  lambda children: (
    st.lists(children, max_size=3).map(tuple)
    | st.builds(Holder, children)
    | st.builds(Layer, integers, children)
  ),
  max_leaves=8,
)


@hypothesis.given(trees)
@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_json_round_trip(tree):
  text = json.dumps(base.to_json(tree))
  restored = base.from_json(json.loads(text))
  assert base.differences(restored, tree) == []
  assert restored == tree
  assert type(restored) is type(tree)


@pytest.mark.parametrize(
  'field, value, kind',
  [
    ('inner', 3, 'Inner'),
    ('parts', 'text', 'tuple'),
    ('flag', 1, 'bool'),
    ('count', True, 'int'),
    ('count', 2.5, 'int'),
    ('count', 2**63, 'int'),
    ('count', None, 'int'),
  ],
)
def test_field_of_another_type(field, value, kind):
  stored = base.to_json(Outer())
  stored['fields'][field] = value
  with pytest.raises(ValueError, match=rf'config\.{field}=.* must be .*{kind}'):
    base.from_json(stored)


@pytest.mark.parametrize('rate', [float('nan'), float('inf'), 10**400])
def test_stored_numbers_are_finite(rate):
  stored = base.to_json(Inner())
  stored['fields']['rate'] = rate
  with pytest.raises(ValueError, match=r'config\.rate=.* must be float'):
    base.from_json(stored)


def test_config_round_trip():
  config = make_config(evals=(Inner(), Outer()))
  restored = base.from_json(json.loads(json.dumps(base.to_json(config))))
  assert restored == config
  assert hash(restored.model) == hash(config.model)


def test_linen_bookkeeping_is_not_stored():
  stored = base.to_json(Layer(name='bound'))
  assert set(stored['fields']) == {'features', 'inner', 'dtype'}


@pytest.mark.parametrize(
  ('assignment', 'read'),
  [
    ('count=12', lambda c: c.count == 12),
    ('count=-1_000', lambda c: c.count == -1000),
    ('flag=true', lambda c: c.flag is True),
    ('flag=False', lambda c: c.flag is False),
    ('anything=8', lambda c: c.anything == 8),
    ('inner.rate=1e-3', lambda c: c.inner.rate == 1e-3),
    ('inner.rate=2', lambda c: type(c.inner.rate) is float),
    ('inner.label=a=b', lambda c: c.inner.label == 'a=b'),
    ('inner.label=', lambda c: c.inner.label == ''),
    ('inner.limit=5', lambda c: c.inner.limit == 5),
    ('inner.limit=none', lambda c: c.inner.limit is None),
    ('inner.sizes=3,4,5', lambda c: c.inner.sizes == (3, 4, 5)),
    ('inner.sizes=(3,)', lambda c: c.inner.sizes == (3,)),
    ('inner.sizes=', lambda c: c.inner.sizes == ()),
    ('inner.sizes.1=9', lambda c: c.inner.sizes == (1, 9)),
    ('inner.pair=2,3', lambda c: c.inner.pair == (2, 3.0)),
    ('inner.pair.1=3', lambda c: type(c.inner.pair[1]) is float),
    ('inner.kind=linear', lambda c: c.inner.kind == 'linear'),
    ('parts.1.rate=7', lambda c: c.parts == (Inner(), Inner(rate=7.0))),
  ],
)
def test_override_parses_by_annotation(assignment, read):
  assert read(base.override(Outer(), [assignment]))


@hypothesis.given(st.integers(), floats, st.text().map(str.strip))
def test_override_reads_what_str_writes(count, rate, label):
  changed = base.override(
    Outer(), [f'count={count}', f'inner.rate={rate}', f'inner.label={label}']
  )
  assert (changed.count, changed.inner.rate) == (count, rate)
  assert changed.inner.label == label


def test_override_walks_modules_and_leaves_the_rest():
  config = make_config()
  changed = base.override(config, ['model.inner.features=6', 'steps=20'])
  assert base.differences(config, changed) == [
    'model.inner.features: 2 != 6',
    'steps: 10 != 20',
  ]
  assert config == make_config()


def test_override_checks_once_after_all_changes():
  config = make_config(batch_size=8, accumulate=4)
  changed = base.override(config, ['batch_size=6', 'accumulate=3'])
  assert (changed.batch_size, changed.accumulate) == (6, 3)
  with pytest.raises(ValueError, match='batch_size=6 does not divide'):
    base.override(config, ['batch_size=6'])


@pytest.mark.parametrize(
  ('assignment', 'words'),
  [
    ('count=1.5', ['count', "'1.5'", 'int']),
    ('count=1e3', ['count', 'int']),
    ('count=none', ['count', 'int']),
    ('count=__import__("os")', ['count', 'int']),
    ('flag=1', ['flag', 'bool']),
    ('inner.rate=fast', ['inner.rate', "'fast'", 'float']),
    ('inner.rate=nan', ['inner.rate', 'float']),
    ('inner.limit=x', ['inner.limit', 'int | None']),
    ('inner.sizes=1,x', ['inner.sizes', 'tuple[int, ...]']),
    ('inner.pair=1', ['inner.pair', 'tuple[int, float]']),
    ('inner.kind=cubic', ['inner.kind', 'cosine', 'linear']),
    ('inner.rte=1', ["'rte'", 'did you mean inner.rate?', 'label']),
    ('iner.rate=1', ["'iner'", 'did you mean inner?']),
    ('rate=1', ["'rate'", 'did you mean inner.rate?']),
    ('parts.2.rate=1', ['parts', "'2'", '0, 1']),
    ('count.bits=1', ['count', "'bits'"]),
    ('inner=5', ['inner=5', 'config file', 'rate']),
    ('count', ['count', 'path=value']),
    ('=3', ["''"]),
  ],
)
def test_bad_override_says_what_to_write(assignment, words):
  with pytest.raises(ValueError, match='--set') as error:
    base.override(Outer(), [assignment])
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_override_of_a_whole_and_its_part_is_refused():
  assignments = ['inner.sizes=1,2', 'inner.sizes.0=4']
  for order in (assignments, assignments[::-1]):
    with pytest.raises(ValueError, match='the whole or its parts'):
      base.override(Outer(), order)


@pytest.mark.parametrize(
  'value', [[1], {'a': 1}, float('nan'), float('inf'), int, b'x']
)
def test_unstorable_value_names_its_field(value):
  with pytest.raises(ValueError, match=r'config\.anything'):
    base.to_json(Outer(anything=value))


def test_class_that_cannot_be_found_again_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Local:
    pass

  with pytest.raises(ValueError, match=r'config\.anything.*Local'):
    base.to_json(Outer(anything=Local()))


@pytest.mark.parametrize(
  ('path', 'fields', 'message'),
  [
    ('os.system', {}, 'os.system is no dataclass'),
    ('subprocess.Popen', {'args': 'true'}, 'is no dataclass'),
    ('configs.base.dataclasses.Field', {}, 'is no dataclass'),
    ('configs.base.load', {'path': 'x'}, 'is no dataclass'),
    ('configs.base.Any', {}, 'is no dataclass'),
    ('configs.nowhere.Thing', {}, 'configs.nowhere.Thing is no dataclass'),
    ('tests.__main__.Thing', {}, 'is no dataclass'),
    ('', {}, 'is no dataclass'),
    ('tests.test_configs.Inner', {'rte': 1}, "'rte'; did you mean rate"),
    ('tests.test_configs.Layer', {'parent': None}, "no field 'parent'"),
    ('tests.test_configs.Holder', {}, 'value'),
  ],
)
def test_bad_stored_class_is_refused(path, fields, message):
  with pytest.raises(ValueError, match=message):
    base.from_json({'class': path, 'fields': fields})


@pytest.mark.parametrize(
  'tree', [{}, {'class': 'a.b'}, {'class': 3, 'fields': {}}, {'x': 1}]
)
def test_bad_stored_tree_is_refused(tree):
  with pytest.raises(ValueError, match=r'config\.0 must hold'):
    base.from_json([tree])


def test_differences_name_paths_and_values():
  a = Outer()
  assert base.differences(a, a) == []
  b = Outer(inner=Inner(label='y'), parts=(Inner(),), anything=Layer())
  assert base.differences(a, b) == [
    "inner.label: 'x' != 'y'",
    f'parts: {a.parts!r} != {b.parts!r}',
    'anything: 7 != tests.test_configs.Layer',
  ]


@pytest.mark.parametrize('field', ['batch_size', 'steps', 'log_every', 'keep'])
def test_config_refuses_counts_below_one(field):
  with pytest.raises(ValueError, match=f'{field}=0 must be at least 1'):
    make_config(**{field: 0})


def test_load_runs_a_file_anywhere(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from tests import test_configs\n'
    'def get_config():\n'
    '  return test_configs.make_config()\n'
  )
  assert base.load(str(file)) == make_config()


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('a.py', 'x = 1', r'must define get_config'),
    ('b.py', 'def get_config(): return 3', r'configs.base.Config'),
    ('c.txt', '', r'no Python file'),
  ],
)
def test_load_refuses_other_files(tmp_path, name, text, message):
  file = tmp_path / name
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    base.load(str(file))


def test_unknown_file_lists_the_near_one(tmp_path, monkeypatch):
  directory = tmp_path / 'configs'
  directory.mkdir()
  for name in ('__init__', 'base', 'demo', 'tiny'):
    is_experiment = name in ('demo', 'tiny')
    text = '\ndef get_config():\n  pass\n' if is_experiment else ''
    (directory / f'{name}.py').write_text(text)
  monkeypatch.setattr(base, '_DIRECTORY', directory)
  with pytest.raises(ValueError, match=r'configs/dmo\.py is no file') as error:
    base.load('configs/dmo.py')
  assert 'did you mean configs/demo.py?' in str(error.value)
  assert 'there are configs/demo.py, configs/tiny.py' in str(error.value)


@pytest.mark.parametrize('path', base.experiments())
def test_every_experiment_loads_and_can_be_stored(path):
  root = pathlib.Path(base.__file__).parent.parent
  config = base.load(str(root / path))
  stored = json.loads(json.dumps(base.to_json(config)))
  assert base.differences(base.from_json(stored), config) == []
  hash(config.model)
