"""Dry runs of whole configs: what they print, and that they only print."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import blt_bench
from configs import dry_run
from configs import tiny
from models import flops
from training import step as step_lib


def init(config, optimizer):
  ids = jnp.zeros((1, 8), jnp.int32)
  key = jax.random.key(0)
  return step_lib.create(config.model.init(key, ids)['params'], optimizer, key)


def flag_values(dry, devices=None, chip='H100'):
  return dry_run.Flags(
    *(SimpleNamespace(value=value) for value in (dry, devices, chip))
  )


def test_nothing_happens_unless_asked(capsys):
  assert not dry_run.run(tiny.get_config(), None, flag_values(False))
  assert not capsys.readouterr().out


def test_report_of_a_byte_latent_transformer(capsys):
  config = blt_bench.get_config()
  arrays = len(jax.live_arrays())
  assert dry_run.run(config, init, flag_values(True, 4, 'v5e'))
  assert len(jax.live_arrays()) == arrays
  text = ' '.join(capsys.readouterr().out.split())
  assert 'data 4 x fsdp 1 x tensor 1 = 4 v5e' in text
  assert '18.9M (entropy 591k' in text
  # Weights, two moments of those that are trained, and gradients.
  assert 'parameters 75.5MB, moments 146MB, gradients 75.5MB' in text
  assert 'entropy model 1.38M, once' in text
  assert 'patches of 2.87 bytes' in text
  parts = flops.per_byte(config.model, length=512)
  assert f'{3 * parts.total * 4 * 512 / 1e9:.3g}G needed' in text


def test_report_of_a_byte_model_has_no_patches():
  text = dry_run.report(tiny.get_config(), init)
  assert 'patches' not in text
  assert 'entropy' not in text


def test_report_uses_what_set_changed():
  config = tiny.get_config()
  wide = dataclasses.replace(config, model=config.model.copy(hidden=4096))
  texts = [dry_run.report(c, init) for c in (config, wide)]
  assert texts[0] != texts[1]
  with pytest.raises(ValueError, match=r'batch_size=8 does not divide over 16'):
    dry_run.report(config, init, devices=16)
