"""What an event costs: that every part of the table is measured."""

import dataclasses

import jax
import numpy as np
import pytest

from bench import event_serving
from configs import events_card
from configs import fitting
from data import event_source


@pytest.mark.slow
def test_costs_of_a_small_model(tmp_path):
  stream = event_source.CardStream(
    users=200, events=24, directory=str(tmp_path)
  )
  config = dataclasses.replace(
    events_card.get_config(), data=stream, row_length=192, batch_size=4
  )
  config = fitting.with_codec(config, None)
  ids_BT = np.zeros((1, 8), np.int32)
  params = config.model.init(jax.random.key(0), ids_BT)['params']
  served = event_serving.Served(config, params, stream.open('test'))
  seconds, events = event_serving.training(served, 2)
  assert len(seconds) == 2 and events == 4 * 24
  seconds, events = event_serving.scoring(served, 10, 2)
  assert set(seconds) == {'scoring', 'lag features', 'predict'}
  assert events == 10 * 24
  found = event_serving.streaming(served, 3, 300, 2)
  assert list(found) == [10, 100, 300]
  spent = [x for values in found.values() for x in values]
  assert min(spent) > 0 and len(spent) == 6
