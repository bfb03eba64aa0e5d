"""A GRU over rows of events, in PyTorch: the recurrent peer."""

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch

from bench import event_trees
from data import event_codes

_LENGTH = 256  # events of one entity that are read at a time
_EPOCHS, _PATIENCE = 20, 2


@dataclasses.dataclass(frozen=True)
class Gru:
  """Embeddings of a row's columns, summed; a GRU; the log-odds of the label.

  Training stops when the validation log loss no longer falls.
  """

  width: int = 96
  learning_rate: float = 2e-3
  batch_size: int = 64
  epochs: int = _EPOCHS

  def fit(
    self,
    train: event_trees.Split,
    validation: event_trees.Split,
    *,
    revealed: bool,
  ) -> Callable[[event_trees.Split], np.ndarray]:
    """Trains; what is returned gives the probability of every event."""
    torch.manual_seed(0)
    columns = train.corpus.tokenizer.columns[:-1]
    model = _Net([column.size for column in columns], self.width)
    optimizer = torch.optim.AdamW(
      model.parameters(), self.learning_rate, weight_decay=0.01
    )
    best, best_loss, waited = copy.deepcopy(model.state_dict()), np.inf, 0
    rng = np.random.default_rng(0)
    for _ in range(self.epochs):
      model.train()
      for batch in _batches(train, self.batch_size, revealed, rng):
        ids, values, past, label, counts, _ = batch
        logits = model(ids, values, past)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
          logits[counts], label[counts]
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
      loss = _loss(self._predict(model, validation, revealed), validation)
      if loss < best_loss:
        best, best_loss = copy.deepcopy(model.state_dict()), loss
        waited = 0
      else:
        waited += 1
        if waited > _PATIENCE:
          break
    model.load_state_dict(best)
    return lambda split: self._predict(model, split, revealed)

  def _predict(
    self, model: torch.nn.Module, split: event_trees.Split, revealed: bool
  ) -> np.ndarray:
    probability_E = np.full(len(split.label_E), np.nan)
    model.eval()
    with torch.no_grad():
      for batch in _batches(split, 4 * self.batch_size, revealed, None):
        ids, values, past, _, _, place = batch
        found = torch.sigmoid(model(ids, values, past)).numpy()
        probability_E[place[place >= 0]] = found[place >= 0]
    return probability_E


class _Net(torch.nn.Module):
  def __init__(self, sizes: list[int], width: int) -> None:
    super().__init__()
    self.words = torch.nn.ModuleList(
      torch.nn.Embedding(size, width) for size in sizes
    )
    # Every number and whether it is there.
    self.numbers = torch.nn.Linear(2 * len(sizes), width)
    self.past = torch.nn.Embedding(3, width)
    self.gru = torch.nn.GRU(width, width, batch_first=True)
    self.out = torch.nn.Sequential(
      torch.nn.Linear(2 * width, width), torch.nn.ReLU(),
      torch.nn.Linear(width, 1),
    )  # fmt: skip

  def forward(
    self, ids: torch.Tensor, values: torch.Tensor, past: torch.Tensor
  ) -> torch.Tensor:
    there = ~torch.isnan(values)
    numbers = torch.cat([torch.nan_to_num(values), there.float()], -1)
    row = self.numbers(numbers) + self.past(past)
    for index, embedding in enumerate(self.words):
      row = row + embedding(ids[..., index])
    state, _ = self.gru(row)
    return self.out(torch.cat([state, row], -1))[..., 0]


def _batches(
  split: event_trees.Split,
  size: int,
  revealed: bool,
  rng: np.random.Generator | None,
) -> Iterator[tuple]:
  """Entities, cut where they are long: ids, values, past, label, counts, place.

  past: the label before each event, 2 where it is not known; place: number of
  the event in the corpus, -1 for padding.
  """
  corpus = split.corpus
  pieces = [
    (start, min(start + _LENGTH, stop))
    for first, stop in zip(
      corpus.offsets_N1[:-1], corpus.offsets_N1[1:], strict=True
    )
    for start in range(first, stop, _LENGTH)
  ]
  order = np.arange(len(pieces)) if rng is None else rng.permutation(
    len(pieces)
  )  # fmt: skip
  before_E = np.full(len(split.label_E), 2.0)
  if revealed:
    before_E[1:] = np.nan_to_num(split.label_E[:-1], nan=2.0)
    before_E[np.asarray(corpus.offsets_N1[:-1])] = 2.0
  for begin in range(0, len(order), size):
    chosen = [pieces[i] for i in order[begin : begin + size]]
    length = max(stop - start for start, stop in chosen)
    place = np.full((len(chosen), length), -1)
    for row, (start, stop) in enumerate(chosen):
      place[row, : stop - start] = np.arange(start, stop)
    real = place >= 0
    ids = np.where(real[..., None], corpus.ids_EC[place], event_codes.NULL)
    values = np.where(real[..., None], corpus.values_EC[place], np.nan)
    yield (
      torch.from_numpy(ids[..., :-1].astype(np.int64)),
      torch.from_numpy(values[..., :-1].astype(np.float32)),
      torch.from_numpy(np.where(real, before_E[place], 2).astype(np.int64)),
      torch.from_numpy(np.nan_to_num(split.label_E[place]).astype(np.float32)),
      torch.from_numpy(real & split.used_E[place]),
      place,
    )


def _loss(probability_E: np.ndarray, split: event_trees.Split) -> float:
  p_E = np.clip(probability_E[split.used_E], 1e-7, 1 - 1e-7)
  y_E = split.label_E[split.used_E]
  return float(-np.mean(y_E * np.log(p_E) + (1 - y_E) * np.log(1 - p_E)))
