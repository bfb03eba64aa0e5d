"""The architecture: who may import whom, and how long things may be.

Files are parsed, never imported. A new package needs a row in MAY_IMPORT.
"""

import ast
import functools
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ENTRY_POINTS = (
  'train', 'eval', 'sample', 'convert', 'patches', 'structure',
)  # fmt: skip

# Dotted prefixes beyond the standard library and the package itself.
MAY_IMPORT = {
  # A model file must be readable and copyable alone.
  'models': {'jax', 'flax', 'numpy'},
  # Works for any (params, cache, token) -> logits, cache.
  'samplers': {'jax', 'numpy'},
  # Workers start fast, and no device is touched by accident.
  'data': {
    'absl.logging',
    'array_record',
    'etils',
    'grain',
    'numpy',
    'pyarrow',
    'tensorflow_datasets',
    'tokenizers',
  },
  # A bound is maths on float64 arrays; its script does the I/O.
  'bounds': {'numpy', 'scipy'},
  # Receives `apply` and batches as arguments.
  'training': {
    'absl.logging',
    'flax.struct',
    'flax.traverse_util',
    'jax',
    'numpy',
    'optax',
    'orbax',
    'tensorboardX',
    'tqdm',
  },
  # Receives predict functions and iterators.
  # The byte vocabulary is a table of constants that evaluators score with.
  # So are the laws of synthetic events, whose exact filters are ceilings.
  'evals': {
    'absl.logging',
    'data.card_world',
    'data.rating_world',
    'data.codec',
    'data.event_batches',
    'data.event_codes',
    'jax',
    'numpy',
    'pyarrow',
    'samplers',
  },
  # Maps the parameters of our models to names and files of others.
  'released': {'flax', 'jax', 'models', 'numpy'},
  # Naming things is its job, and what the entry points share.
  'configs': {
    'absl.app',
    'absl.flags',
    'bounds',
    'data',
    'evals',
    'flax',
    'jax',
    'models',
    'numpy',
    'optax',
    'samplers',
    'training',
  },
}
# They parse flags and put the packages together; nobody imports them.
SCRIPTS = {f'{name}.py' for name in ENTRY_POINTS} | {
  f'bounds/{name}.py' for name in ('__main__', 'kgram', 'verify')
} | {'evals/events.py', 'samplers/key_store.py', 'samplers/ngram_store.py'}
FREE = ('bench', 'tests')
BANNED = ('tensorflow', 'clu', 'chex')
BAD_NAMES = ('utils', 'util', 'common', 'core', 'lib', 'helpers', 'misc')
LONG_FUNCTIONS = {'train.py': {'train', '_loop'}}


def find_files():
  skipped = ('runs', 'build', 'dist')
  for path in sorted(ROOT.rglob('*.py')):
    parts = path.relative_to(ROOT).parts
    if parts[0] not in skipped and not any(p.startswith('.') for p in parts):
      yield '/'.join(parts)


FILES = list(find_files())


@functools.cache
def parse(file):
  return ast.parse((ROOT / file).read_text(encoding='utf-8'), file)


def imported(file):
  """Full dotted names that a file imports, anywhere in it."""
  for node in ast.walk(parse(file)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{file}:{node.lineno} is a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def is_below(name, prefixes):
  return any(name == p or name.startswith(f'{p}.') for p in prefixes)


def third_party(file):
  """What a file imports besides the standard library."""
  return [n for n in imported(file) if not is_below(n, sys.stdlib_module_names)]


@pytest.mark.parametrize('file', FILES)
def test_file_imports_only_what_its_package_may(file):
  package = file.split('/')[0]
  names = third_party(file)
  assert not [n for n in names if is_below(n, BANNED)], 'banned everywhere'
  if package in FREE:
    return
  assert not [n for n in names if is_below(n, FREE)], 'bench and tests are ends'
  assert not [n for n in names if is_below(n, ENTRY_POINTS)], 'not importable'
  if file in SCRIPTS:
    return
  assert package in MAY_IMPORT, f'give {package} a row in MAY_IMPORT'
  allowed = MAY_IMPORT[package] | {package}
  wrong = [n for n in names if not is_below(n, allowed)]
  assert not wrong, f'{file} may import {sorted(allowed)} only'


def module_name(file):
  return file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def test_no_import_cycle():
  modules = {module_name(f): f for f in FILES}
  finished, active = set(), []

  def visit(module):
    if module in finished:
      return
    assert module not in active, ' -> '.join([*active, module])
    active.append(module)
    for name in imported(modules[module]):
      for target in (name, name.rpartition('.')[0]):
        if target in modules:
          visit(target)
          break
    finished.add(active.pop())

  for module in modules:
    visit(module)


@pytest.mark.parametrize('file', FILES)
def test_file_is_small_and_named_for_what_it_holds(file):
  lines = len((ROOT / file).read_text(encoding='utf-8').splitlines())
  assert lines <= 400, f'{file} has {lines} lines; cut it at a second idea'
  parts = file.removesuffix('.py').split('/')
  assert not set(parts) & set(BAD_NAMES), f'{file}: name what is in it'


@pytest.mark.parametrize('file', FILES)
def test_functions_are_short(file):
  for node in ast.walk(parse(file)):
    if isinstance(node, ast.FunctionDef):
      limit = 120 if node.name in LONG_FUNCTIONS.get(file, ()) else 60
      lines = node.end_lineno - node.lineno + 1
      assert lines <= limit, f'{file}:{node.lineno} {node.name}: {lines} lines'


def test_pyproject_lists_the_packages():
  pyproject = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  listed = pyproject['tool']['setuptools']['packages']['find']['include']
  # tests are run from the checkout and never installed.
  expected = set(MAY_IMPORT) | set(FREE) - {'tests'}
  assert {name.rstrip('*') for name in listed} == expected


def declared(*extras):
  """Names of the distributions that pyproject.toml asks for."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  needed = list(project['dependencies'])
  for extra in extras:
    needed += project['optional-dependencies'][extra]
  names = {re.match(r'[\w-]+', n)[0].lower().replace('_', '-') for n in needed}
  return names - {'patchwork'}


def test_every_dependency_has_an_exact_version():
  pinned = {
    line.split('==')[0].lower().replace('_', '-')
    for line in (ROOT / 'constraints.txt').read_text().splitlines()
    if '==' in line
  }
  assert not declared('test', 'bench', 'tensorboard', 'tokens') - pinned


def test_every_import_is_declared():
  owners = importlib.metadata.packages_distributions()
  known = declared('test', 'bench', 'tensorboard', 'tokens')
  ours = {*MAY_IMPORT, *FREE, *ENTRY_POINTS}
  for file in FILES:
    for name in third_party(file):
      top = name.split('.')[0]
      if top not in ours:
        sources = {o.lower().replace('_', '-') for o in owners.get(top, [top])}
        assert sources & known, f'{file}: declare {top} in pyproject.toml'
