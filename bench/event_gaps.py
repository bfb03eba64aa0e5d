"""What the gap before an event is, given all its other columns, in two ways.

python -m bench.event_gaps --checkpoint=runs/events_fresh --users=4

A model that is asked in one pass, with the gap read after all other columns but
the label, is compared by `eval.py` (`impute/regret_of_time:gap`). Here the same
model says how likely the whole event is with every gap in turn, its columns in
their own order, and these probabilities are divided by their sum. Letters: C
columns, V values, T events.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from absl import app
from absl import flags

from configs import restore
from data import card_world
from evals import event_futures
from evals import event_imputation
from models import forward

_HOUR = 3600.0


def posterior(
  ask: Callable[[np.ndarray, np.ndarray], np.ndarray],
  tokenizer: Any,
  event: tuple[np.ndarray, np.ndarray],
  c: int,
  values: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
  """P(local id of column c | the other columns but the label).

  ask: as event_futures.Service.ask. event: its ids and numbers [C]. values: of
  column c the local ids, numbers, and shares of their id [V].
  """
  ids_V, numbers_V, share_V = values
  ids_VC, numbers_VC = (np.tile(x, (len(ids_V), 1)) for x in event)
  ids_VC[:, c], numbers_VC[:, c] = ids_V, numbers_V
  logits_VCI = np.asarray(ask(ids_VC, numbers_VC), np.float64)
  log_p_V = np.log(share_V)
  for other, column in enumerate(tokenizer.columns):
    if column.kind == 'label':
      continue
    first = int(tokenizer.offsets_C[other])
    logits_VI = logits_VCI[:, other, first : first + column.size]
    log_p_V += logits_VI[np.arange(len(ids_V)), ids_VC[:, other]]
    log_p_V -= np.logaddexp.reduce(logits_VI, axis=1)
  p_V = np.exp(log_p_V - log_p_V.max())
  size = tokenizer.columns[c].size
  return np.bincount(ids_V, p_V / p_V.sum(), minlength=size)


def measure(directory: str, users: int) -> tuple[np.ndarray, np.ndarray]:
  """Nats of gaps of a run on cards, and of the exact posterior; [N, T - 1]."""
  run = restore.restore(directory)
  model, data = run.config.model, run.config.data
  corpus = data.open('test')
  tokenizer, code = corpus.tokenizer, corpus.tokenizer.columns[0].code
  cards, _ = data.cards('test')
  events = cards.gap.shape[1]
  hours_V = np.arange(card_world.MAX_GAP + 1)
  seconds = pa.array(_HOUR * hours_V)
  ids_V = code.encode(seconds, np.zeros(0, int))
  gap_E = data.cards('train')[0].gap[:, 1:].ravel()
  seen_V = np.bincount(gap_E, minlength=len(hours_V)) + 0.5
  share_V = seen_V / np.bincount(ids_V, seen_V)[ids_V]
  values = ids_V, code.values(seconds), share_V
  nats_NT = np.zeros((users, events - 1))
  for user in range(users):
    cache = model.init_cache(len(ids_V), events * len(tokenizer.columns))
    service = event_futures.Service(
      forward.step(model), run.params, cache, tokenizer, hidden=True
    )
    for t in range(events):
      e = corpus.offsets_N1[user] + t
      event = corpus.ids_EC[e].astype(np.int32), corpus.values_EC[e]
      if t:
        p_I = posterior(service.ask, tokenizer, event, 0, values)
        nats_NT[user, t - 1] = -np.log(max(p_I[event[0][0]], 1e-30))
      ids_VC, numbers_VC = (np.tile(x, (len(ids_V), 1)) for x in event)
      service.read(ids_VC[:, None], numbers_VC[:, None])
  exact_E = event_imputation.exact(corpus, 0, users * events)
  return nats_NT, exact_E.reshape(users, events)[:, 1:]


def main(_: Sequence[str]) -> None:
  found_NT, exact_NT = measure(_CHECKPOINT.value, _USERS.value)
  regret_N = (found_NT - exact_NT).mean(axis=1)
  error = regret_N.std(ddof=1) / np.sqrt(len(regret_N))
  print(
    f'gaps of {len(regret_N)} users: {found_NT.mean():.4f} nats, exact'
    f' {exact_NT.mean():.4f}, regret {regret_N.mean():.4f} +- {error:.4f}'
  )


if __name__ == '__main__':
  _CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run of card users.')
  _USERS = flags.DEFINE_integer('users', 4, 'Test users.', lower_bound=2)
  app.run(main)
