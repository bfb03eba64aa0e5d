"""Model files as predictors: exact round trips, and nothing is executed."""

import dataclasses

import jax
import numpy as np
import pytest

from bounds import codec
from bounds import header as headers
from bounds import quantise
from bounds import structure
from configs import base
from configs import predictor
from models import structured
from tests import tiny_runs

MODEL = tiny_runs.MODEL
HEADER = headers.Header('ascii', 64, 16, 32, 16, base.to_json(MODEL))
SHAPES = predictor.shapes_of(MODEL)
RNG = np.random.default_rng(0)
PARAMS = {
  name: RNG.normal(0, 0.3, shape).astype(np.float32)
  for name, shape in SHAPES.items()
}
CODED = predictor.quantised(PARAMS, quantise.Deadzone(1.0))
FILE = predictor.encode(CODED, HEADER)


def header_of(model):
  """A description of a network, given as JSON."""
  return headers.Header('ascii', 64, 16, 32, 16, model)


def rebuilt(model):
  """The file with another description of its network."""
  return predictor.encode(CODED, header_of(model))


def test_decoded_parameters_are_the_rounded_ones():
  decoded = predictor.decode(FILE)
  assert decoded.model == MODEL
  assert decoded.header == HEADER
  assert decoded.bits == 8 * len(FILE)
  found = predictor.flat(decoded.params)
  assert found.keys() == PARAMS.keys()
  for name, array in found.items():
    np.testing.assert_array_equal(array, CODED[name].decode())
    off = np.abs(np.asarray(array) - PARAMS[name]).mean()
    assert off < 0.6 * np.abs(PARAMS[name]).mean()


def test_what_follows_the_file_is_refused_by_name():
  with pytest.raises(ValueError, match=f'ends after {len(FILE)} of'):
    predictor.decode(FILE + b'\0')


def test_only_networks_may_be_named():
  data = {'class': 'data.text.Text', 'fields': {}}
  with pytest.raises(ValueError, match=r"'data\.text\.Text'; only classes"):
    predictor.decode(rebuilt(data))
  tree = base.to_json(MODEL)
  tree['fields']['linear'] = {'class': 'os.system', 'fields': {}}
  with pytest.raises(ValueError, match=r"model\.linear as 'os\.system'"):
    predictor.decode(rebuilt(tree))


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('width', 32, 'is .* in the network but'),
    ('layers', 2, 'arrays for a network of'),
    ('layers', 10**7, '10000000 layers'),
    ('width', 10**12, 'at most 16777216'),
    ('width', 'wide', 'must be int'),
    ('masks', [0] * 100, '100 items'),
    ('heads', 3, 'heads'),
    ('heads', 0, 'damaged file'),
    ('unknown', 1, "no field 'unknown'"),
  ],
)
def test_descriptions_that_do_not_fit_are_refused(field, value, words):
  tree = base.to_json(MODEL)
  tree['fields'][field] = value
  with pytest.raises(ValueError, match=words):
    predictor.decode(rebuilt(tree))


def test_arrays_of_another_network_are_refused():
  other = codec.encode(list(CODED.values())[:-1], HEADER.to_bytes())
  with pytest.raises(ValueError, match=f'{len(CODED) - 1} arrays'):
    predictor.decode(other)


def test_shapes_are_those_of_a_real_initialisation():
  ids_BT = np.zeros((1, 8), np.int32)
  params = MODEL.init(jax.random.key(0), ids_BT)['params']
  drawn = predictor.flat(params)
  assert {name: array.shape for name, array in drawn.items()} == SHAPES


def test_scalars_are_arrays_too():
  model = MODEL.clone(linear=structured.BlockTensorTrain(cap=True))
  shapes = predictor.shapes_of(model)
  assert () in shapes.values()
  params = {
    name: RNG.normal(1, 0.3, shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  coded = predictor.quantised(params, quantise.Deadzone(0.5))
  data = predictor.encode(coded, header_of(base.to_json(model)))
  # Of what is in the file besides, scales are most.
  assert 0.6 < predictor.ideal_bits(coded) / (8 * len(data)) < 1
  found = predictor.flat(predictor.decode(data).params)
  for name, array in found.items():
    np.testing.assert_array_equal(array, coded[name].decode())
    if not shapes[name]:
      assert abs(array / params[name] - 1) < 0.15


@pytest.mark.parametrize('kind', [structure.Shared(1), structure.PLAIN])
def test_structured_file_expands_to_the_network(kind):
  model = MODEL.clone(layers=2)
  shapes = predictor.shapes_of(model)
  free = {
    name: RNG.normal(0, 0.3, shape).astype(np.float32)
    for name, shape in kind.shapes(shapes).items()
  }
  coded = predictor.quantised(free, quantise.Deadzone(0.5))
  header = headers.Header(
    'ascii', 64, 16, 32, 16, base.to_json(model), base.to_json(kind)
  )
  decoded = predictor.decode(predictor.encode(coded, header))
  found = predictor.flat(decoded.params)
  rounded = {name: x.decode() for name, x in coded.items()}
  for name, array in kind.expand(rounded, shapes).items():
    np.testing.assert_array_equal(found[name], array)
  with pytest.raises(ValueError, match='structure as'):
    bad = dataclasses.replace(header, structure=base.to_json(MODEL))
    predictor.decode(predictor.encode(coded, bad))
