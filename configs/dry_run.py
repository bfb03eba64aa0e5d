"""What a run would need, printed instead of running it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags

from configs import base
from models import flops
from models import forward
from models import patched
from training import estimate


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
  """Prints the report if the flags ask for one, and says whether they do."""
  if job.dry_run.value:
    devices, chip = job.devices.value, job.chip.value
    print(report(config, init, devices=devices, chip=chip))
  return job.dry_run.value


def report(
  config: base.Config,
  init: Callable[[base.Config, Any], Any],
  *,
  devices: int | None = None,
  chip: str = 'H100',
) -> str:
  """The memory, FLOPs and time of a config's run, one topic per paragraph.

  init: makes the train state of a config and its optimizer; only traced.
  """
  # An accelerator would be taken by asking which one it is.
  jax.config.update('jax_platforms', 'cpu')
  model, length = config.model, config.row_length
  parts = flops.per_byte(model, length=length)
  rows = max(config.batch_size // config.accumulate // (devices or 1), 1)
  optimizer = config.optimizer.build(config.steps)
  # See configs.stored.
  scored = isinstance(getattr(model, 'entropy', None), patched.LMEntropy)
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
    ),
    stored=('entropy',) if scored else (),
    devices=devices,
    chip=chip,
  )
