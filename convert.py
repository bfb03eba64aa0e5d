"""Imports a released checkpoint as a run, or exports a run as one.

  python convert.py --source=facebook/blt-1b --workdir=runs/blt
  python convert.py --checkpoint=runs/blt --out=exported/blt

A released checkpoint is a directory of the transformers library: config.json,
safetensors and, for models over tokens, tokenizer.json. What it does not say of
a run, as data and evaluators, comes from --config.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import flax.linen as nn
from absl import flags
from orbax.checkpoint import v1 as ocp

from configs import base
from configs import command
from configs import fitting
from data import codec
from data import tokenizer_json
from models import lm
from models import patched
from released import blt
from released import fields
from released import layouts
from released import llama
from released import tensor_files
from training import checkpoint
from training import workdir as workdir_lib

_SOURCE = flags.DEFINE_string('source', None, 'Released checkpoint to import.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory to make of it.')
_CONFIG = flags.DEFINE_string(
  'config', 'configs/demo.py', 'Experiment with the rest of the run.'
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Field of the run to change: path=value.'
)
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run to export.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default newest.')
_OUT = flags.DEFINE_string('out', None, 'Directory to export it to.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'Of the export.'
)

# By model_type of config.json, and by our class.
_FAMILIES = {
  kind: family for family in (blt, llama) for kind in family.MODEL_TYPES
}
_CLASSES = {patched.Patched: blt, lm.ByteLM: llama}
_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('convert.py'):
    given = {
      name
      for name, flag in (
        ('--source', _SOURCE),
        ('--workdir', _WORKDIR),
        ('--checkpoint', _CHECKPOINT),
        ('--out', _OUT),
      )
      if flag.value
    }
    if given == {'--source', '--workdir'}:
      print(import_run(_SOURCE.value, _WORKDIR.value))
    elif given == {'--checkpoint', '--out'}:
      print(export_run(_CHECKPOINT.value, _OUT.value))
    else:
      raise ValueError(
        f'got {", ".join(sorted(given)) or "no flags"}; give --source and'
        ' --workdir to import a released checkpoint, or --checkpoint and --out'
        ' to export a run.'
      )


def import_run(source: str, workdir: str) -> str:
  """Makes a run directory of a released checkpoint; says what it made."""
  _check_unused('--workdir', workdir)
  description = fields.read(source)
  family = _FAMILIES.get(str(description.get('model_type')))
  if family is None:
    description.refuse('model_type', f'is none of {", ".join(_FAMILIES)}')
  config = base.load(_CONFIG.value)
  model = family.model(description)
  spelling = _codec(pathlib.Path(source), description, model)
  data = dataclasses.replace(config.data, codec=spelling)
  rows = min(config.row_length, model.max_length or config.row_length)
  config = dataclasses.replace(config, model=model, data=data, row_length=rows)
  config = base.override(config, _SET.value)
  fitting.check(config)
  tree = base.to_json(config)
  tensors, leaves = tensor_files.scan(source), family.leaves(config.model)
  layouts.check_names(leaves, tensors, ignored=family.IGNORED)
  plan = layouts.plan(config.model, leaves)
  params = layouts.load(plan, tensors, ignored=family.IGNORED)
  with _staged(workdir) as folder:
    workdir_lib.write_config(folder, tree)
    with (
      _uncopied(),
      checkpoint.Checkpoints(folder, config=tree) as checkpoints,
    ):
      checkpoints.save(0, {'params': params}, force=True)
  return (
    f'{_count(plan):,} parameters in {workdir}; next:\n'
    f'python sample.py --checkpoint={workdir} --prompt=...'
  )


def _codec(
  source: pathlib.Path, description: fields.Fields, model: nn.Module
) -> codec.Codec:
  """How a released model reads text: by its tokenizer, or byte for byte."""
  if not isinstance(model, lm.ByteLM):
    return codec.Bytes()
  path = source / tokenizer_json.NAME
  if path.is_file():
    bos, stops = llama.marks(description)
    return tokenizer_json.read(
      path, vocabulary_size=model.vocabulary_size, bos=bos, stops=stops
    )
  if model.vocabulary_size != codec.VOCABULARY:
    raise ValueError(
      f'{source} has no {path.name}, without which no text has its'
      f' {model.vocabulary_size} ids; put the one there that the model was'
      ' trained with (save_pretrained of its tokenizer writes it).'
    )
  return codec.Bytes()


def export_run(directory: str, out: str) -> str:
  """Writes a run's parameters as a released checkpoint; says what it wrote."""
  _check_unused('--out', out)
  run = checkpoint.load_params(directory, step=_STEP.value)
  config = base.from_json(run.config)
  model = config.model
  family = _CLASSES.get(type(model))
  if family is None:
    known = ', '.join(cls.__name__ for cls in _CLASSES)
    raise ValueError(
      f'{directory} holds a {type(model).__name__}, for which no released form'
      f' is known; export a run of one of {known}.'
    )
  spelling = config.data.codec
  stop, *others = spelling.stops
  description = family.describe(model, _DTYPE.value) | {
    'bos_token_id': spelling.bos,
    'eos_token_id': [stop, *others] if others else stop,
  }
  plan = layouts.plan(model, family.leaves(model))
  dtype = _DTYPES[_DTYPE.value]
  arrays = layouts.rows(plan, run.params, dtype)
  with _staged(out) as folder:
    tensor_files.write(folder, layouts.planned(plan, dtype), arrays)
    fields.write(folder, description)
    if isinstance(spelling, tokenizer_json.TokenizerJson):
      (folder / tokenizer_json.NAME).write_bytes(spelling.file)
  return (
    f'{_count(plan):,} parameters of step {run.step} in {out}; transformers'
    f' reads them with AutoModelForCausalLM.from_pretrained({str(out)!r})'
  )


def _uncopied() -> ocp.Context:
  """Saving without the two copies of all parameters that Orbax makes.

  One is lest host arrays change meanwhile, the other holds what compression
  leaves of them, and weights hardly compress.
  """
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  context.array.saving.use_compression = False
  return context


def _count(plan: layouts.Plan) -> int:
  return sum(map(math.prod, plan.shapes.values()))


def _check_unused(flag: str, directory: str) -> None:
  """Raises ValueError unless the directory is new or empty."""
  path = pathlib.Path(directory)
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise ValueError(
      f'{flag}={directory} holds something already; name a new folder, since'
      ' nothing is overwritten.'
    )


@contextlib.contextmanager
def _staged(directory: str) -> Iterator[pathlib.Path]:
  """A folder that becomes the directory when all goes well, or else goes."""
  target = pathlib.Path(directory).resolve()
  staged = target.with_name(f'{target.name}.converting-{os.getpid()}')
  staged.mkdir(parents=True)
  try:
    yield staged
    staged.rename(target)
  except BaseException:
    shutil.rmtree(staged, ignore_errors=True)
    raise


if __name__ == '__main__':
  command.run(main)
