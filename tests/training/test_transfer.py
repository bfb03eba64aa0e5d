"""Rates across widths and structures: published values and measured steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import event_lm
from models import linear
from models import lm
from models import stacks
from models import structured
from training import optimizer
from training import transfer

BTT = structured.BlockTensorTrain
GENERIC = (0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25)
# One expression per structure, at widths where all sizes are whole.
LAYERS = {
  'dense': linear.Dense(),
  'low_rank': structured.LowRank(),
  'kronecker': structured.Kronecker(),
  'train': structured.TensorTrain(cores=3, rank=2),
  'block_train': BTT(),
  'block_train_4': BTT(rank=4),
  'block_train_3': BTT(cores=3),
  'monarch': structured.Monarch(blocks=-1),
  'einsum': structured.Einsum(theta=GENERIC, tolerance=1.0),
}


def shapes_of(layer, d_in, d_out):
  chain = layer.chain(d_in, d_out)
  return {
    structured.kernel_name(i): jax.ShapeDtypeStruct(shape, jnp.float32)
    for i, shape in enumerate(chain.shapes)
  }


def test_rates_are_the_published_ones():
  # GPT of width 1024 with rank 4, rates chosen at width 768 without expansion:
  # 1024 = 32 x 32 and 4096 = 64 x 64.
  params = {
    'up': shapes_of(BTT(rank=4), 1024, 4096),
    'down': shapes_of(BTT(rank=4), 4096, 1024),
    'query': {'kernel': jnp.zeros((1024, 1024))},
    'blocks': {'key': {'kernel': jnp.zeros((6, 1024, 64))}},
    'norm': {'scale': jnp.zeros(1024)},
    'embed': {'embedding': jnp.zeros((260, 1024))},
  }
  base = {
    'up/kernel': (768, 768),
    'down/kernel': (768, 768),
    'query/kernel': (768, 768),
    'blocks/key/kernel': (6, 768, 64),
    'embed/embedding': (260, 768),
    'norm/scale': (768,),
  }
  assert transfer.rates(params, base) == {
    'up/core_0_kernel': 12.0,
    'up/core_1_kernel': 3.0,
    'down/core_0_kernel': 6.0,
    'down/core_1_kernel': 1.5,
    'query/kernel': 0.75,
    'blocks/key/kernel': 0.75,
    'norm/scale': 1.0,
    'embed/embedding': 1.0,
  }


def test_rates_of_gradients_and_of_muon_against_a_dense_base():
  params = {
    'up': shapes_of(BTT(rank=4), 1024, 4096),
    'down': {'kernel': np.zeros((4096, 1024))},
    'head': {'kernel': np.zeros((1024, 260))},
    'embed': {'embedding': np.zeros((260, 1024))},
    'norm': {'scale': np.zeros(1024)},
    'gain': np.ones(()),
  }
  base = {
    'up/kernel': (256, 1024),
    'down/kernel': (1024, 256),
    'head/kernel': (256, 260),
    'embed/embedding': (260, 256),
    'norm/scale': (256,),
    'gain': (),
  }
  # 1024 = 32 x 32 and 4096 = 64 x 64. Gradients by outputs / fan-in, of the
  # 32 blocks [32, 64 x 4] and the 64 blocks [32 x 4, 64], halved for two cores.
  dense = 1024 / 256
  assert transfer.rates(params, base, rule='sgd') == pytest.approx({
    'up/core_0_kernel': (32 * 256 / 32) / dense / 2,
    'up/core_1_kernel': (64 * 64 / 128) / dense / 2,
    'down/kernel': (1024 / 4096) / (256 / 1024),
    'head/kernel': 1 / 4,
    'embed/embedding': 4.0,
    'norm/scale': 4.0,
    'gain': 1.0,
  })
  # Muon's steps have the size that shapes ask for: two cores share one step.
  found = transfer.rates(params, base, rule='muon')
  cores = {name: rate for name, rate in found.items() if 'up/' in name}
  assert set(cores.values()) == {0.5}
  assert {x for name, x in found.items() if name not in cores} == {1.0}


@pytest.mark.parametrize('rule', transfer.RULES)
def test_the_same_structure_at_another_width(rule):
  params = {'up': shapes_of(BTT(rank=2), 1024, 4096)}
  small = {'up': shapes_of(BTT(rank=2), 256, 1024)}
  base = {f'up/{name}': x.shape for name, x in small['up'].items()}
  assert set(transfer.rates(small, base, rule=rule).values()) == {1.0}
  factors = transfer.rates(params, base, rule=rule)
  # Fan-ins double; so do blocks, while fan-outs over fan-ins stay.
  expected = {'adam': 0.5, 'sgd': 2.0, 'muon': 1.0}[rule]
  assert set(factors.values()) == {expected}


def moved(layer, width, rule, rate):
  """Root mean square change of a layer's output by one step of its mean.

  All inputs are one: positions that share a core ask the same of it. Rates
  are chosen for a dense base of width 64.
  """
  rng = np.random.default_rng(0)
  x = jnp.ones((1, width))
  layer = layer.copy(features=width)
  params = {}
  for path, shape in jax.eval_shape(layer.init, jax.random.key(0), x)[
    'params'
  ].items():
    fans = (1, *shape.shape)[-3:]
    draws = rng.standard_normal(shape.shape) * structured.deviation(fans)
    params[path] = jnp.asarray(draws, jnp.float32)
  factors = transfer.rates(params, {'kernel': (64, 64)}, rule=rule)

  @jax.jit
  def run(params):
    out, pullback = jax.vjp(lambda p: layer.apply({'params': p}, x), params)
    gradient = pullback(x / width)[0]
    new = {}
    for name, g in gradient.items():
      # The first step of Adam is the sign.
      step = jnp.sign(g) if rule == 'adam' else g
      new[name] = params[name] - rate * factors[name] * step
    after = layer.apply({'params': new}, x)
    return jnp.sqrt(jnp.mean(jnp.square(after - out)))

  return float(run(params))


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_adam_moves_the_output_as_far_at_every_width(name):
  changes = [moved(LAYERS[name], d, 'adam', 1e-3) for d in (64, 256, 1024)]
  # Rate times base width, where cores keep the size of what they are given.
  assert min(changes) > 0.25 * 0.064 and max(changes) < 1.6 * 0.064, changes
  assert max(changes) / min(changes) < 1.6, changes


@pytest.mark.parametrize(
  'name', ['block_train', 'block_train_3', 'block_train_4', 'dense', 'monarch']
)
def test_gradients_move_the_output_as_far_at_every_width(name):
  changes = [moved(LAYERS[name], d, 'sgd', 0.05) for d in (64, 256, 1024)]
  # A dense layer by the rate, times the mean square of its inputs.
  assert min(changes) > 0.8 * 0.05 and max(changes) < 1.6 * 0.05, changes
  assert max(changes) / min(changes) < 1.6, changes


@pytest.mark.parametrize('root', [8, 16])
def test_cores_share_what_is_learned_and_not_what_is_noise(root):
  """Signs that agree with the input, and signs that are drawn.

  W[gafe] = A[gaf] B[fge], all of size r = D^1/2, with entries of deviation
  r^-1/2 and steps s = D_base / 2r. Agreeing signs move z and y by r s each,
  together D_base as the dense layer's D (D_base / D). Drawn ones move entries
  of W by s (2 / r)^1/2, which is (r / 2)^1/2 of a dense one's D_base / D.
  """
  width, base = root**2, 16
  params = {'up': shapes_of(BTT(), width, width)}
  rates = transfer.rates(params, {'up/kernel': (base, base)}).values()
  rng = np.random.default_rng(0)
  cores = [rng.normal(0, root**-0.5, (root,) * 3) for _ in rates]
  x_GA = rng.normal(size=(root, root))
  ask_FE = rng.choice([-1, 1], (root, root))

  def matrix(first_GAF, second_FGE):
    return np.einsum('GAF,FGE->GAFE', first_GAF, second_FGE)

  def change(signs):
    steps = [1e-4 * rate * s for rate, s in zip(rates, signs, strict=True)]
    moved = matrix(*map(np.add, cores, steps)) - matrix(*cores)
    return moved / (1e-4 * base / width)

  drawn = change([rng.choice([-1, 1], core.shape) for core in cores])
  expected = (root / 2) ** 0.5
  assert np.sqrt(np.mean(drawn**2)) == pytest.approx(expected, rel=0.1)
  z_GF = np.einsum('GA,GAF->GF', x_GA, cores[0])
  wanted_GF = np.einsum('FE,FGE->GF', ask_FE, cores[1])
  agreeing = change([
    np.sign(np.einsum('GA,GF->GAF', x_GA, wanted_GF)),
    np.sign(np.einsum('GF,FE->FGE', z_GF, ask_FE)),
  ])  # fmt: skip
  moved_FE = np.einsum('GA,GAFE->FE', x_GA, agreeing)
  dense = np.sum(np.abs(x_GA))
  assert np.sqrt(np.mean(moved_FE**2)) == pytest.approx(dense, rel=0.15)


def model(width, layer):
  return lm.ByteLM(
    width=width,
    layers=1,
    heads=2,
    key_value_heads=1,
    hidden=2 * width,
    linear=layer,
  )


def draw(model):
  ids = jnp.zeros((1, 8), jnp.int32)
  return jax.jit(model.init)(jax.random.key(0), ids)['params']


@pytest.mark.parametrize('kind', [optimizer.AdamW, optimizer.SGD])
def test_the_optimizer_scales_steps_by_the_factors(kind):
  config = kind(warmup_steps=0, learning_rate=0.5, clip=None)
  wide = model(32, BTT(cap=True))
  base = model(16, linear.Dense())
  params = jax.eval_shape(functools.partial(draw, wide))
  params = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), params)
  gradient = jax.tree.map(jnp.ones_like, params)

  def step(config):
    transformation = config.build(4)
    state = transformation.init(params)
    return jax.jit(transformation.update)(gradient, state, params)[0]

  plain = step(config)
  scaled = step(
    kind(
      warmup_steps=0,
      learning_rate=0.5,
      clip=None,
      base=base,
      multipliers=(('embed', 3.0),),
    )
  )
  rule = 'adam' if kind is optimizer.AdamW else 'sgd'
  factors = transfer.rates(params, transfer.base_shapes(base), rule=rule)
  assert len(set(factors.values())) > 2
  found = jax.tree_util.tree_leaves_with_path(scaled)
  for (path, x), y in zip(found, jax.tree.leaves(plain), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    factor = factors[name] * (3.0 if 'embed' in name else 1.0)
    np.testing.assert_allclose(x, factor * y, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('scan', [False, True])
def test_initial_sizes_are_those_of_the_base(scan):
  wide, base = (
    model(width, linear.Dense()).clone(scan_layers=scan) for width in (64, 16)
  )
  factors = transfer.deviations(
    jax.eval_shape(functools.partial(draw, wide)), transfer.base_shapes(base)
  )
  assert 'embed/embedding' in factors
  for name, factor in factors.items():
    # Entries of embeddings shrink with width^-1/2 otherwise; the 260 outputs
    # are more than either width.
    assert factor == (2.0 if 'embed/' in name else 1.0), name
  narrow = {'head': {'kernel': jnp.zeros((64, 4))}}
  found = transfer.deviations(narrow, {'head/kernel': (16, 4)})
  # From 1 / 4 and 1 / 8 to what goes with 1 / fan-in.
  assert found == {'head/kernel': 0.5}


def test_embeddings_of_events_keep_the_size_of_the_base():
  def shapes(width):
    model = event_lm.EventLM(
      trunk=stacks.Stack(width=width, layers=1, heads=2, hidden=width),
      columns=(5, 3),
      numbers=(0,),
      cell_width=width,
      cell_hidden=2 * width,
      reach=2,
    )
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), int))

  wide = shapes(64)['params']
  base = transfer._shapes(shapes(16)['params'])
  factors = transfer.deviations(wide, base)
  tables = {name for name, factor in factors.items() if factor == 2}
  assert tables == {
    'begin', 'query', 'embed/ids', 'embed/number_kernel', 'embed/since',
  }  # fmt: skip
  rates = transfer.rates(wide, base)
  assert {rates[name] for name in tables} == {1.0}
  assert rates['history/block_0/attention/query/kernel'] == 0.25


def test_a_base_whose_embeddings_are_its_head_is_refused():
  tied = model(16, linear.Dense()).clone(tie_head=True)
  with pytest.raises(ValueError, match=r'base\.tie_head=True: .*set tie_h'):
    optimizer.AdamW(base=tied).build(3)


def test_a_kernel_that_the_base_lacks_is_named():
  config = optimizer.AdamW(base=model(16, linear.Dense()))
  params = {'gate': {'kernel': jnp.ones((3, 3))}}
  transformation = config.build(3)
  with pytest.raises(ValueError, match=r'no counterpart .* gate/kernel \(3, 3'):
    transformation.update(params, transformation.init(params), params)


def test_momentum_is_named():
  with pytest.raises(ValueError, match=r'optimizer\.momentum=1\.0 must be in'):
    optimizer.SGD(momentum=1.0)
