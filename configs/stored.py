"""What is computed once for a corpus, so that training need not repeat it."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from configs import base
from data import packing
from data import text
from models import forward
from models import patched
from training import annotations


def entropies(
  config: base.Config, params: Any, corpus: text.Corpus
) -> dict[str, np.ndarray]:
  """Nats after every id of a split by the config's entropy language model.

  Kept beside the split in `entropy_*/`; nothing for other models. Every id
  is measured after as many ids of its document as the language model's window
  holds, or at least a row where it has none.
  """
  model = config.model
  scorer = getattr(model, 'entropy', None)
  if not isinstance(scorer, patched.LMEntropy):
    return {}
  windows = [None if m.n_global else m.window for m in scorer.lm.masks]
  params = params['entropy']
  if jax.process_count() > 1:
    params = multihost_utils.process_allgather(params, tiled=True)
  return {
    'entropy': annotations.annotate(
      forward.pure(scorer),
      jax.device_get(params),
      packing.Rows(corpus, config.row_length),
      corpus.path,
      name='entropy',
      label=repr(scorer),
      context=config.row_length if None in windows else max(windows),
    )
  }
