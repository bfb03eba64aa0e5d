"""Nothing that is read is executed, wherever it comes from."""

import ast
import hashlib
import json
import os
import pickle
import re

import numpy as np
import pytest
from jax import numpy as jnp

from configs import base
from configs import predictor
from data import record_files
from data import sources
from samplers import ngram_tables
from tests import test_imports
from training import checkpoint
from training import manifest

# What turns bytes into objects of any class, or into code.
_MODULES = (
  'cloudpickle', 'code', 'dill', 'joblib', 'jsonpickle', 'marshal', 'pickle',
  'runpy', 'shelve', 'yaml',
)  # fmt: skip
_NAMES = ('__import__', 'compile', 'eval', 'exec', 'execfile')
_METHODS = ('exec_module', 'popen', 'run_path', 'system', 'unsafe_load')
# The experiment that somebody names with --config is Python by design.
_ALLOWED = {('configs/base.py', 'calls spec.loader.exec_module')}


def calls(file):
  """Names of what a file calls, with the keywords."""
  for node in ast.walk(test_imports.parse(file)):
    if isinstance(node, ast.Call):
      keywords = {k.arg: getattr(k.value, 'value', ...) for k in node.keywords}
      yield ast.unparse(node.func), keywords


def faults(file):
  """What a file does that could execute what it reads."""
  for name in test_imports.imported(file):
    if test_imports.is_below(name, _MODULES):
      yield f'imports {name}'
  for name, keywords in calls(file):
    last = name.split('.')[-1]
    if name in _NAMES or ('.' in name and last in _METHODS):
      yield f'calls {name}'
    if (
      name in ('np.load', 'numpy.load')
      and keywords.get('allow_pickle', None) is not False
    ):
      yield f'calls {name} without allow_pickle=False'
    if keywords.get('allow_pickle') is True or keywords.get('shell') is True:
      yield f'calls {name} with pickles or a shell'
    if name == 'torch.load' and keywords.get('weights_only') is not True:
      yield 'calls torch.load without weights_only=True'


def test_no_file_executes_what_it_reads():
  # Few files have such a word at all, and only these are parsed.
  words = '|'.join((*_MODULES, *_NAMES, *_METHODS, 'allow_pickle', 'shell='))
  suspects = re.compile(rf'{words}|np\.load|numpy\.load|torch\.load')
  files = [f for f in test_imports.FILES if not f.startswith('tests/')]
  found = {
    (file, fault)
    for file in files
    if suspects.search((test_imports.ROOT / file).read_text('utf-8'))
    for fault in faults(file)
  }
  assert found == _ALLOWED


def test_the_test_finds_what_it_looks_for(tmp_path, monkeypatch):
  monkeypatch.setattr(test_imports, 'ROOT', tmp_path)
  bad = {
    'pickle.py': 'import pickle\n',
    'from.py': 'from yaml import unsafe_load\n',
    'eval.py': 'eval(x)\n',
    'load.py': 'import numpy as np\nnp.load(x)\n',
    'true.py': 'read(x, allow_pickle=True)\n',
    'shell.py': 'import subprocess\nsubprocess.run(x, shell=True)\n',
    'system.py': 'import os\nos.system(x)\n',
  }
  for name, text in bad.items():
    (tmp_path / name).write_text(text)
    test_imports.parse.cache_clear()
    assert list(faults(name)), name
  test_imports.parse.cache_clear()


class Trap:
  """Unpickling it makes a file."""

  def __init__(self, marker):
    self.marker = str(marker)

  def __reduce__(self):
    return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
  """What must not be there in the end."""
  path = tmp_path / 'executed'
  pickled = pickle.dumps(Trap(path))
  pickle.loads(pickled)
  path.rmdir()  # It is a trap.
  yield path
  assert not path.exists()


def sign(step, shape=(2, 3)):
  """A manifest that an attacker writes: all hashes are right."""
  leaves = {'params/a': ['float32', list(shape)], 'step': ['int32', []]}
  told = {'step': 1, 'extra': {}, 'config': {}, 'leaves': leaves}
  (step / manifest.NAME).unlink(missing_ok=True)
  manifest.write(step, told)


@pytest.fixture
def run(tmp_path):
  state = {'params': {'a': jnp.ones((2, 3))}, 'step': jnp.int32(1)}
  with checkpoint.Checkpoints(tmp_path / 'run', config={}) as checkpoints:
    checkpoints.save(1, state, force=True)
  return tmp_path / 'run'


def test_checkpoint_full_of_traps_executes_nothing(run, marker):
  step = run / 'checkpoints' / '1'
  trap = pickle.dumps(Trap(marker))
  for name in ('state.pkl', '__init__.py', 'arrays/params.a/.zarray.pkl'):
    path = step / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(trap)
  (step / '__init__.py').write_text(f'import os; os.mkdir({str(marker)!r})')
  sign(step)
  # What is beside the arrays is never read.
  np.testing.assert_array_equal(
    checkpoint.load_params(run).params['a'], np.ones((2, 3))
  )
  for path in sorted((step / 'arrays').rglob('*')):
    if path.is_file() and not path.name.endswith('.pkl'):
      kept = path.read_bytes()
      path.write_bytes(trap)
      sign(step)
      # Some files say nothing that is needed.
      try:
        checkpoint.load_params(run)
      except ValueError as error:
        assert str(step) in str(error)
      path.write_bytes(kept)


def test_config_instantiates_components_only(marker):
  arguments = {'fields': {'path': str(marker)}}
  for name in ('os.mkdir', 'pathlib.Path.mkdir', 'builtins.eval', 'os.system',
               'configs.base.load', 'data.folders.make_once',
               'configs.base.pathlib.Path', 'bounds.verify.main',
               'models.lm.nn.Module', 'configs..base.Config'):  # fmt: skip
    with pytest.raises(ValueError, match='is no dataclass of'):
      base.from_json({'class': name, **arguments})


def test_arrays_of_objects_are_not_unpickled(tmp_path, marker):
  store = tmp_path / 'store.npz'
  trap = np.array([Trap(marker)], dtype=object)
  np.savez(store, allow_pickle=True, contexts_first_M=trap)
  with pytest.raises(ValueError, match='is no n-gram store'):
    ngram_tables.load(store, ngram_tables.Vocabulary(260, ''))


def test_dataset_may_not_name_a_module_to_import(tmp_path, monkeypatch, marker):
  (tmp_path / 'planted.py').write_text(f'import os; os.mkdir({str(marker)!r})')
  monkeypatch.syspath_prepend(tmp_path)
  folder = tmp_path / 'sets' / 'toy' / '1.0.0'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"name": "toy"}')
  for tree in (
    {'pythonClassName': 'planted.Feature'},
    {'type': 'planted.Feature', 'content': {}},
    {
      'pythonClassName': 'tensorflow_datasets.core.features.x.FeaturesDict',
      'featuresDict': {'features': {'a': {'python_class_name': 'planted.F'}}},
    },
  ):
    (folder / 'features.json').write_text(json.dumps(tree))
    source = sources.TfdsText('toy', data_dir=str(tmp_path / 'sets'))
    with pytest.raises(ValueError, match='would be executed'):
      list(source.documents())


def test_records_larger_than_their_file(tmp_path):
  from array_record.python import array_record_module

  path = tmp_path / 'a.array_record'
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for length in (10, 70_000, 1_000_000):
    writer.write(b'ab' * length)
  writer.close()
  record_files.check(path)
  data = path.read_bytes()
  # The first chunk ends at byte 64; its successor's header tells kind and size.
  assert (data[88:89], int.from_bytes(data[96:104], 'little')) == (b'r', 20)
  large = (2**60).to_bytes(8, 'little')
  path.write_bytes(data[:96] + large + data[104:])
  with pytest.raises(ValueError, match='holds records of 11529215'):
    record_files.check(path)
  path.write_bytes(data[:100])
  record_files.check(path)


@pytest.mark.parametrize(
  'name', ['../../x', '/etc/passwd', 'a/../../b', 'a\0', '', '.', 'a//b']
)
def test_manifest_names_files_of_the_checkpoint_only(tmp_path, name):
  files = {name: [1, hashlib.sha256(b'x').hexdigest()]}
  body = json.dumps({'files': files}).encode()
  digest = hashlib.sha256(body).hexdigest().encode()
  (tmp_path / manifest.NAME).write_bytes(digest + b'\n' + body)
  with pytest.raises(manifest.Damaged, match='no file of the checkpoint'):
    manifest.verify(tmp_path)


def test_links_may_not_lead_out_of_a_checkpoint(tmp_path):
  step = tmp_path / 'step'
  (step / 'arrays').mkdir(parents=True)
  (step / 'arrays' / 'a').write_text('numbers')
  (step / 'b').symlink_to('arrays/a')
  manifest.write(step, {})
  manifest.verify(step)
  (tmp_path / 'secret').write_text('secret')
  (step / 'arrays' / 'c').symlink_to(tmp_path / 'secret')
  with pytest.raises(manifest.Damaged, match='arrays/c is a link that leads'):
    manifest.verify(step)


def test_arrays_must_fit_into_the_files(run):
  step = run / 'checkpoints' / '1'
  for shape in ([2**60], [2**31, 2**31], [2**26]):
    sign(step, shape)
    with pytest.raises(
      ValueError, match=r'claims arrays of \d+ bytes in files'
    ):
      checkpoint.load_params(run)
  # What the arrays say of themselves is compared with that, too.
  sign(step, [4, 3])
  with pytest.raises(ValueError, match=r'float32\[2, 3\] but float32\[4, 3\]'):
    checkpoint.load_params(run)


def test_network_larger_than_its_file(tmp_path):
  with pytest.raises(ValueError, match='is no model file'):
    predictor.decode(pickle.dumps(Trap(tmp_path / 'x')))
