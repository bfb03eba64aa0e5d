"""Dry runs of whole configs: what they print, and that they only print."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import blt_1b
from configs import blt_bench
from configs import dry_run
from configs import events_card
from configs import tiny
from data import event_source
from models import flops
from training import sharding
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


def test_report_of_a_byte_latent_transformer(capsys, new_arrays):
  config = blt_bench.get_config()
  assert dry_run.run(config, init, flag_values(True, 4, 'v5e'))
  assert not new_arrays()
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
  text = dry_run.report(tiny.get_config(), init).text
  assert 'patches' not in text
  assert 'entropy' not in text


def test_report_says_what_devices_send():
  config = blt_bench.get_config()
  config = dataclasses.replace(
    config,
    batch_size=16,
    mesh=sharding.MeshShape(fsdp=2, tensor=2, sequence=2),
  )
  text = ' '.join(dry_run.report(config, init, devices=16).text.split())
  assert 'data 2 x fsdp 2 x tensor 2 x sequence 2 = 16 H100' in text
  for part in (
    'weights all-gather over fsdp',
    'looked-up rows reduce-scatter over fsdp',
    'hidden states all-reduce over tensor',
    'keys, values all-gather over sequence',
    'gradients all-reduce over data+sequence',
  ):
    assert part in text, part
  assert 'by the roofline at most' in text
  assert '450GB/s among 8 devices, 50GB/s beyond' in text


def test_a_run_that_does_not_fit_is_refused(capsys):
  """After the report: what comes after a dry run goes by its exit code."""
  config = blt_1b.get_config()
  with pytest.raises(ValueError, match=r'80GB of H100; give --set accumulate='):
    dry_run.run(config, init, flag_values(True, 8))
  assert 'of 80GB: DOES NOT FIT' in ' '.join(capsys.readouterr().out.split())


def test_projections_are_used_by_the_tokens_they_see():
  uses = {use.path: use for use in dry_run.uses(blt_bench.get_config())}
  local = uses['model/local_encoder/block_0/attention/query']
  assert (local.d_in, local.d_out, local.tokens) == (256, 256, 1.0)
  latent = uses['model/latent_transformer/block_0/attention/query']
  # A row of 512 bytes has room for 208 patches.
  assert (latent.d_in, latent.tokens) == (512, 208 / 512)


def test_tables_are_reported_by_cells_of_the_columns_in_their_data(tmp_path):
  config = events_card.get_config()
  config = dataclasses.replace(
    config,
    data=event_source.CardStream(users=10, events=4, directory=str(tmp_path)),
  )
  assert not config.model.columns
  model = dry_run.with_columns(config).model
  text = ' '.join(dry_run.report(config, init).text.split())
  cells = config.batch_size * config.row_length
  parts = flops.per_byte(model, length=config.row_length)
  assert f'FLOPs per cell forward {parts.total / 1e3:.3g}k' in text
  assert f'{3 * parts.total * cells / 1e9:.3g}G needed' in text
  assert f'for {cells / 1e3:.3g}k cells' in text


def test_report_uses_what_set_changed():
  config = tiny.get_config()
  wide = dataclasses.replace(config, model=config.model.copy(hidden=4096))
  texts = [dry_run.report(c, init).text for c in (config, wide)]
  assert texts[0] != texts[1]
  with pytest.raises(ValueError, match=r'batch_size=8 does not divide over 16'):
    dry_run.report(config, init, devices=16)
