"""What a run would need, printed instead of running it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags

from configs import base
from configs import fitting
from models import event_lm
from models import flops
from models import forward
from models import patched
from models import projections
from training import estimate
from training import traffic


class Flags(NamedTuple):
  """The flags of a dry run."""

  dry_run: flags.FlagHolder[bool]
  devices: flags.FlagHolder[int | None]
  chip: flags.FlagHolder[str]


def define_flags() -> Flags:
  """To be called by a script before flags are parsed."""
  return Flags(
    flags.DEFINE_bool(
      'dry_run', False, 'Only print what the run would need; no device is used.'
    ),
    flags.DEFINE_integer(
      'devices', None, 'Of a dry run; one copy of the model if not given.'
    ),
    flags.DEFINE_string(
      'chip', 'H100', f'Of a dry run: {", ".join(estimate.CHIPS)}.'
    ),
  )


def run(
  config: base.Config, init: Callable[[base.Config, Any], Any], job: Flags
) -> bool:
  """Prints the report if the flags ask for one, and says whether they do.

  ValueError, after it is printed, if the run has too little memory: what would
  start it next goes by the exit code.
  """
  if job.dry_run.value:
    devices, chip = job.devices.value, job.chip.value
    found = report(config, init, devices=devices, chip=chip)
    print(found.text, flush=True)
    if found.refusal:
      raise ValueError(found.refusal)
  return job.dry_run.value


def report(
  config: base.Config,
  init: Callable[[base.Config, Any], Any],
  *,
  devices: int | None = None,
  chip: str = 'H100',
) -> estimate.Report:
  """The memory, FLOPs and time of a config's run, one topic per paragraph.

  init: makes the train state of a config and its optimizer; only traced.
  """
  # An accelerator would be taken by asking which one it is.
  jax.config.update('jax_platforms', 'cpu')
  config = with_columns(config)
  model, length = config.model, config.row_length
  parts = flops.per_byte(model, length=length)
  rows = max(config.batch_size // config.accumulate // (devices or 1), 1)
  optimizer = config.optimizer.build(config.steps)
  is_table = isinstance(model, event_lm.EventLM)
  return estimate.report(
    config,
    init=functools.partial(init, config, optimizer),
    apply=forward.pure(model),
    flops=estimate.Flops(
      forward=parts._asdict(),
      needed=3 * parts.total,
      computed=flops.training(
        model, flops.computed(model, length=length, rows=rows)
      ),
      patch_bytes=flops.usual_patch(model),
      unit='cell' if is_table else 'byte',
    ),
    stored=stored(model),
    uses=uses(config),
    devices=devices,
    chip=chip,
  )


def with_columns(config: base.Config) -> base.Config:
  """The config with what its model takes from the data, prepared if need be."""
  if isinstance(config.model, event_lm.EventLM) and not config.model.columns:
    return fitting.with_codec(config, None)
  return config


def stored(model: Any) -> tuple[str, ...]:
  """Names of what batches of a model hold besides rows."""
  if isinstance(model, event_lm.EventLM):
    return 'label', 'value'
  # See configs.stored.
  scored = isinstance(getattr(model, 'entropy', None), patched.LMEntropy)
  return ('entropy',) if scored else ()


def uses(config: base.Config) -> tuple[traffic.Use, ...]:
  """The projections of a config's model, found by tracing one of its rows."""
  length = config.row_length
  return tuple(
    traffic.Use(
      one.path, one.d_in, one.d_out, one.tokens / length, one.copies or 1
    )
    for one in projections.find(config.model, rows=1, length=length)
  )
