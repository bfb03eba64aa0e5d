"""Texts, experiments and a finished run for the commands to work on."""

import json
import shutil

import pytest

from tests import tiny_runs
from tests.commands import running

EXPERIMENT = """
import dataclasses, pathlib
from data import sources
from tests import tiny_runs
def get_config():
  config = tiny_runs.make_config(pathlib.Path({folder!r}){fields})
  source = {source}
  data = dataclasses.replace(config.data, source=source or config.data.source)
  return dataclasses.replace(config, data=data)
"""


@pytest.fixture
def run(capsys):
  """Runs a command in this process, as the shell would."""

  def run(name, *arguments):
    module, own = running.load(name)
    running.parse(own, *arguments)
    capsys.readouterr()
    code, last = 0, ''
    try:
      module.main([f'{name}.py'])
    except SystemExit as error:
      code, last = 1, f'{error.code}\n'
    out, err = capsys.readouterr()
    return running.Result(code, out, err + last)

  return run


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """Texts, broken texts, and experiments that use them."""
  folder = tmp_path_factory.mktemp('commands')
  texts = tiny_runs.write_texts(folder / 'texts')
  tiny_runs.make_config(texts).data.prepare()
  (folder / 'empty').mkdir()
  for name in ('a', 'b', 'c'):
    (folder / 'empty' / f'{name}.txt').touch()
  good = json.dumps({'text': 'some words'}).encode()
  (folder / 'utf8.jsonl').write_bytes(good + b'\n{"text": "\xff"}\n')
  (folder / 'torn.jsonl').write_bytes(good + b'\n' + good + b'\n{"text": "so')
  (folder / 'field.jsonl').write_bytes(good + b'\n\n{"txt": "some"}\n')
  for name in ('utf8', 'torn', 'field'):
    write_experiment(
      folder, name, f'sources.JsonLines({str(folder / name) + ".jsonl"!r})'
    )
  write_experiment(folder, 'good')
  model = 'tiny_runs.MODEL.clone(max_length=32)'
  write_experiment(folder, 'window', fields=f', model={model}')
  (folder / 'broken.py').write_text('def get_config(): return int("x")\n')
  return folder


def write_experiment(folder, name, source=None, fields=''):
  text = EXPERIMENT.format(
    folder=str(folder / 'texts'), source=source, fields=fields
  )
  (folder / f'{name}.py').write_text(text)


@pytest.fixture(scope='session')
def finished(folder):
  """The run directory of a training that went well."""
  module, own = running.load('train')
  workdir = folder / 'finished'
  running.parse(own, f'--config={folder}/window.py', f'--workdir={workdir}')
  module.main([])
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  """A copy of that directory, to be damaged."""
  return shutil.copytree(finished, tmp_path / 'copy')
