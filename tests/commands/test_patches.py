"""patches.py and sample.py on runs of tiny byte latent models."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from configs import base
from configs import initial
from data import codec
from models import ngram_entropy
from models import patched
from models import patching
from tests import test_initial
from tests import tiny_runs
from tests.commands import running
from tests.evals import test_patch_page as pages
from tests.evals import test_patch_text as texts
from training import checkpoint
from training import step

INVALID = b'al\xff\xfepha \xe2\x82 \x00'


def save(folder, name, config):
  """A run directory with drawn parameters, which is faster than training."""
  workdir = folder / name
  config.data.prepare()
  drawn = tiny_runs.draw(config.model)
  for source in config.initial:
    drawn = source(config, drawn, config.data.open('train'))
  optimizer = config.optimizer.build(config.steps)
  state = step.create(jax.device_put(drawn), optimizer, jax.random.key(0))
  with checkpoint.Checkpoints(
    workdir, config=base.to_json(config), keep=1, every=1
  ) as checkpoints:
    checkpoints.save(1, state, extra={}, force=True)
  return workdir


def config_of(folder, scorer, source, rule):
  config = test_initial.config_of(folder / 'texts', scorer, source)
  model = config.model.clone(
    model=config.model.model.clone(
      patching=patching.Patching(rule, max_length=8)
    )
  )
  return dataclasses.replace(config, model=model)


@pytest.fixture(scope='session')
def ngrams_run(folder):
  scorer = ngram_entropy.NgramEntropy(sizes=(1, 2), rows=512)
  source = initial.FitNgramEntropy()
  config = config_of(folder, scorer, source, patching.Entropy(0.9))
  return save(folder, 'ngrams_run', config)


@pytest.fixture(scope='session')
def lm_run(folder):
  config = config_of(
    folder,
    patched.LMEntropy(tiny_runs.MODEL),
    None,
    patching.Monotonic(0.001),
  )
  config = dataclasses.replace(config, initial=())
  return save(folder, 'lm_run', config)


@pytest.fixture(scope='session')
def spaces_run(folder):
  config = config_of(folder, None, None, patching.Space())
  config = dataclasses.replace(config, initial=())
  return save(folder, 'spaces_run', config)


@pytest.fixture(scope='session')
def plain_run(folder):
  return save(folder, 'plain_run', tiny_runs.make_config(folder / 'texts'))


def facts(result):
  """The statistics that a command has printed."""
  lines = [line for line in result.out.splitlines() if line.startswith('  ')]
  return {line[2:24].rstrip(): line[24:] for line in lines}


def table(result):
  """Rows of numbers below the heading of thresholds."""
  lines = result.out.split('-> mean length found\n')[1].splitlines()
  return [line.split() for line in lines if line.startswith('  ')]


@pytest.mark.parametrize('name', ['ngrams_run', 'lm_run', 'spaces_run'])
def test_a_split_is_shown_counted_and_written(run, request, tmp_path, name):
  workdir = request.getfixturevalue(name)
  out = tmp_path / 'new' / 'page.html'
  result = run('patches', f'--checkpoint={workdir}', f'--out={out}')
  assert result.code == 0, result.err
  assert result.out.endswith(f'page: {out}\n')
  config = running.load('patches')[0].restore.restore(workdir).config
  corpus = config.data.open('test')
  documents = pages.read(out.read_text()).documents
  assert len(documents) == min(len(corpus), 3)
  shown = result.out.split('Patches of split test')[0].split('--- ')[1:]
  found = []
  for i, document in enumerate(documents):
    whole = b''.join(pages.by_title(patch) for patch in document)
    assert whole == corpus[i].tobytes()
    plain = shown[i].split('\n', 1)[1].rstrip('\n')
    assert [texts.unescaped(piece) for piece in plain.split('|')] == [
      pages.by_title(patch) for patch in document
    ]
    found += [len(patch) for patch in document]
  said = facts(result)
  if len(corpus) <= 3:
    assert said['patches'] == str(len(found))
    assert said['mean length'] == f'{np.mean(found):.3f} bytes'
    assert said['median length'] == f'{np.median(found):g} bytes'
  assert said['bytes'] == str(len(corpus.bytes))
  assert 'bytes without room' in said
  if name == 'spaces_run':
    assert 'nats before it' not in out.read_text()
    assert '-> mean length found' not in result.out
    # Words of these texts have one space behind them.
    assert set(re.split(r'\|', plain)) <= {
      'a', *(f'{word}{end}' for end in (' ', '')
      for word in ('alpha', 'beta', 'gamma', 'delta')),
    }  # fmt: skip
  else:
    assert 'nats before it' in out.read_text()


def test_a_threshold_of_the_table_gives_what_it_says(run, folder, ngrams_run):
  arguments = ('--documents=0', '--split=train')
  first = run('patches', f'--checkpoint={ngrams_run}', *arguments)
  assert 'model.model.patching.rule.threshold' in first.out
  rows = [row for row in table(first) if row[1] != 'none']
  assert len(rows) >= 2
  _, value, mean = rows[len(rows) // 2]
  config = config_of(
    folder,
    ngram_entropy.NgramEntropy(sizes=(1, 2), rows=512),
    initial.FitNgramEntropy(),
    patching.Entropy(float(value)),
  )
  other = save(folder, 'other_threshold', config)
  second = run('patches', f'--checkpoint={other}', *arguments)
  assert facts(second)['mean length'] == f'{mean} bytes'
  assert facts(first)['mean length'] != f'{mean} bytes'
  assert table(second) == table(first)


def test_patches_are_those_of_decoding(run, ngrams_run, tmp_path):
  """The rule taken byte by byte, as while sampling, gives the same patches."""
  (tmp_path / 'text').write_bytes(b'alpha beta gamma\xff delta alpha')
  result = run(
    'patches', f'--checkpoint={ngrams_run}', f'--text={tmp_path}/text'
  )
  pieces = result.out.split('\n')[1].split('|')
  loaded = running.load('patches')[0].restore.restore(ngrams_run)
  model = loaded.config.model
  rule, state = model.model.patching, model.model.patching.init(1)
  cache, found = model.entropy.init_cache(1, 64), [b'']
  entropy = jax.jit(
    lambda *inputs: model.entropy.apply(
      {'params': loaded.params['entropy']}, *inputs
    )
  )
  advance = jax.jit(rule.step)
  text = b''.join(texts.unescaped(piece) for piece in pieces)
  for id_ in (codec.BOS, *codec.encode(text)):
    ids = np.full((1, 1), id_, np.int32)
    nats, cache = entropy(ids, np.ones_like(ids), cache)
    closes, state = advance(state, ids[:, 0], nats[:, 0])
    found[-1] += bytes([id_ - 4]) if id_ >= 4 else b''
    if closes[0]:
      found.append(b'')
  assert [texts.unescaped(piece) for piece in pieces] == [
    piece for piece in found if piece
  ]
  assert len(pieces) > 3


@pytest.mark.parametrize(
  'text', [b'', b'x', texts.HOSTILE], ids=['empty', 'one', 'hostile']
)
@pytest.mark.parametrize('name', ['ngrams_run', 'spaces_run'])
def test_any_file_can_be_read(run, request, tmp_path, name, text):
  workdir = request.getfixturevalue(name)
  file, out = tmp_path / '<b>&\udcff\n.txt', tmp_path / 'page.html'
  file.write_bytes(text)
  result = run(
    'patches', f'--checkpoint={workdir}', f'--text={file}', f'--out={out}'
  )
  assert result.code == 0, result.err
  assert facts(result)['bytes'] == str(len(text))
  (document,) = pages.read(out.read_text()).documents
  assert b''.join(pages.by_sight(patch) for patch in document) == text
  assert ('-> mean length found' in result.out) == (
    name == 'ngrams_run' and text != b''
  )


def test_no_more_is_shown_than_asked(run, ngrams_run, tmp_path):
  out = tmp_path / 'page.html'
  result = run(
    'patches', f'--checkpoint={ngrams_run}', '--split=train', '--documents=2',
    '--max_bytes=9', '--measure_bytes=50', f'--out={out}',
  )  # fmt: skip
  (document,) = pages.read(out.read_text()).documents
  assert sum(len(patch) for patch in document) == 9
  assert facts(result)['bytes'] == '50'
  assert ', the first 9)' in result.out


def test_colours_are_for_terminals(run, ngrams_run, monkeypatch):
  show = running.load('patches')[0]
  monkeypatch.setattr(show.sys.stdout, 'isatty', lambda: True, raising=False)
  result = run('patches', f'--checkpoint={ngrams_run}', '--documents=1')
  assert '\x1b[97;48;5;' in result.out
  assert '|' not in result.out.split('Patches of')[0]


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], ['--checkpoint is missing']),
    (['--checkpoint={plain}'], ['model=ByteLM makes no patches', 'blt.py']),
    (['--checkpoint={run}', '--step=9'], ['has no checkpoint 9']),
    (['--checkpoint={run}', '--text=/nowhere'], ['/nowhere', 'No such file']),
    (['--checkpoint={run}', '--text=/'], ['/', 'directory']),
    (['--checkpoint={run}', '--out=/proc/none/x'], ['/proc/none']),
  ],
)
def test_patches_refuses(run, plain_run, ngrams_run, arguments, words):
  arguments = [a.format(plain=plain_run, run=ngrams_run) for a in arguments]
  result = run('patches', *arguments, '--documents=0')
  assert result.code == 1
  last = result.err.splitlines()[-1]
  assert last.startswith('patches.py: ')
  assert all(word in last for word in words)


def test_sampling_takes_any_prompt(run, ngrams_run):
  prompts = [b'', b'x', b'\xff', INVALID.replace(b'\x00', b''), b'a' * 30]
  flags = [f'--prompt={p.decode("utf-8", "surrogateescape")}' for p in prompts]
  arguments = (
    f'--checkpoint={ngrams_run}', '--num_bytes=20', '--sampler=temperature(0)'
  )  # fmt: skip
  together = run('sample', *arguments, *flags)
  assert together.code == 0, together.err
  made = re.split(r'--- prompt \d, sample 1\n', together.out)[1:]
  assert len(made) == len(prompts)
  for prompt, text in zip(prompts, made, strict=True):
    assert text.startswith(prompt.decode('utf-8', 'replace'))
  # Nothing of the longer ones gets into the empty one, which is the default.
  alone = run('sample', *arguments)
  assert alone.out == made[0]
