"""Milliseconds of every sampling rule and of whole chains: ours, transformers'.

Logits of 8 rows in float32: `text`, as a language model gives them, a few
likely tokens and a long tail (log p = -1.3 log rank, with noise), and `flat`,
standard normal times 3, whose mass is spread over thousands of tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import shapes
from bench import timing
from samplers import bat
from samplers import chain
from samplers import history
from samplers import knobs
from samplers import loop
from training import host

BATCH = 8
_PAST = 256  # tokens that came before, for the rules that remember
CHAIN = 'temperature(0.8)|top_k(50)|top_p(0.95)|min_p(0.05)'
_RULES = {
  'temperature': 'temperature(0.8)',
  'top-k': 'top_k(50)',
  'top-p': 'top_p(0.95)',
  'min-p': 'min_p(0.05)',
  'typical': 'typical(0.9)',
  'epsilon': 'epsilon(3e-4)',
  'eta': 'eta(3e-4)',
  'top-h of 100': 'top_h_of_100(0.4)',
  'repetition': 'repetition(1.2)',
  'bias': 'bias(10:-2 97-122:0.5)',
  'deny': 'deny(0-3)',
  'min length': 'min_length(500, ids=2)',
  # No counterpart.
  'top-h': 'top_h(0.4)',
  'top-n-sigma': 'top_n_sigma(1)',
  'xtc': 'xtc(0.5)',
  'mirostat': 'mirostat(5)',
  'frequency': 'frequency(0.5)',
  'presence': 'presence(0.5)',
  'dry': 'dry(0.8)',
}


def rows(
  sizes: tuple[int, ...], rounds: int, memory_bytes: float
) -> Iterator[dict[str, object]]:
  """One row per vocabulary, kind of logits and rule, or chain with draw.

  The floor is one pass: the logits are read from memory once. What a rule by
  itself writes is as much again, and is not counted.
  """
  for num_ids in sizes:
    for kind in ('text', 'flat'):
      logits_BV = logits(kind, num_ids)
      their_rules = _theirs(logits_BV, num_ids)
      cases = {
        'whole chain and draw': _our_draw(CHAIN, logits_BV),
        'draw alone': _our_draw('temperature(1)', logits_BV),
        'bat and draw': _our_draw('bat(eta=3e-4)', logits_BV),
        'bat of top-p and draw': _our_draw('bat(top_p=0.9)', logits_BV),
      }
      for name, text in _RULES.items():
        cases[name] = _our_rule(text, logits_BV)
      for name, ours in cases.items():
        theirs = {}
        if name in their_rules:
          # The threads of PyTorch do not always pay.
          theirs = {
            threads: functools.partial(their_rules[name], threads)
            for threads in sorted({1, host.cores()})
          }
        seconds = timing.interleaved({'ours': ours, **theirs}, rounds)
        mine = timing.spread(seconds['ours']).median
        floor = logits_BV.nbytes / memory_bytes
        row = {
          'rule': name,
          'V': num_ids,
          'logits': kind,
          'ours, ms': f'{1e3 * mine:.2f}',
          'transformers, ms': '-',
          'ratio': '-',
          'floor of one pass, ms': f'{1e3 * floor:.3f}',
        }
        if theirs:
          best = min(theirs, key=lambda threads: sum(seconds[threads]))
          other = timing.spread(seconds[best]).median
          row['transformers, ms'] = f'{1e3 * other:.2f}'
          row['ratio'] = timing.ratio(seconds[best], seconds['ours'])
        yield row


@knobs.register
@dataclasses.dataclass(frozen=True)
class Argmax:
  """The least that a sampler can do."""

  def __call__(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    return jnp.argmax(logits_BV, axis=1)


def overhead(
  cases: tuple[shapes.Shape, ...], rounds: int, new_bytes: int
) -> Iterator[dict[str, object]]:
  """What the whole chain, and BAT, add to the decode step of byte models."""
  for shape in cases:
    model, params = shapes.ours(shape)

    def step(
      params: Any,
      ids_BT: jax.Array,
      documents_BT: jax.Array,
      cache: Any,
      model: Any = model,
    ) -> tuple[jax.Array, Any]:
      return model.apply({'params': params}, ids_BT, documents_BT, cache)

    def run(
      sampler: Any, step: Any = step, model: Any = model, params: Any = params
    ) -> None:
      state = loop.generate(
        step,
        params,
        model.init_cache(BATCH, 8 + new_bytes),
        jnp.full((BATCH, 8), 99, jnp.int32),
        jnp.full(BATCH, 8, jnp.int32),
        jax.random.split(jax.random.key(0), BATCH),
        sampler,
        num_tokens=new_bytes,
      )
      jax.block_until_ready(state.ids_BN)

    rules = bat.attach(
      chain.parse('bat(eta=3e-4)').rules,
      lambda params=params: np.asarray(params['head']['kernel']).T,
    )
    seconds = timing.interleaved(
      {
        'plain': functools.partial(run, Argmax()),
        'chain': functools.partial(run, chain.parse(CHAIN)),
        'bat': functools.partial(run, chain.Chain(rules)),
      },
      rounds,
    )
    plain, whole, proved = (timing.spread(seconds[k]).median for k in seconds)
    yield {
      'model': f'width {shape.width} x {shape.layers}, batch {BATCH}',
      'step with argmax, ms': f'{1e3 * plain / new_bytes:.3f}',
      'with the chain, ms': f'{1e3 * whole / new_bytes:.3f}',
      'share of the chain': f'{1 - plain / whole:.0%}',
      'with BAT, ms': f'{1e3 * proved / new_bytes:.3f}',
      'share of BAT': f'{1 - plain / proved:.0%}',
    }


def logits(kind: str, num_ids: int) -> np.ndarray:
  rng = np.random.default_rng(num_ids)
  noise_BV = rng.normal(size=(BATCH, num_ids))
  if kind == 'flat':
    return (3 * noise_BV).astype(np.float32)
  rank_BV = rng.permuted(np.tile(np.arange(num_ids), (BATCH, 1)), axis=1)
  return (-1.3 * np.log1p(rank_BV) + 0.5 * noise_BV).astype(np.float32)


def _our_rule(text: str, logits_BV: np.ndarray) -> timing.Run:
  sampler = chain.parse(text)
  memory = _memory(sampler, logits_BV)
  keys_B = jax.random.split(jax.random.key(0), BATCH)
  apply = jax.jit(lambda sampler, *rest: sampler.transform(*rest))
  logits_BV = jnp.array(logits_BV)
  return lambda: jax.block_until_ready(
    apply(sampler, keys_B, logits_BV, memory)
  )


def _our_draw(text: str, logits_BV: np.ndarray) -> timing.Run:
  rng, size = np.random.default_rng(2), logits_BV.shape[1]
  # Any output layer will do: as long as one of a model, and as wide as BAT.
  rules = bat.attach(
    chain.parse(text).rules, lambda: rng.normal(size=(size, 20))
  )
  sampler, logits_BV = chain.Chain(rules), jnp.array(logits_BV)
  keys_B = jax.random.split(jax.random.key(0), BATCH)
  draw = jax.jit(lambda sampler, *rest: sampler(*rest))
  return lambda: jax.block_until_ready(draw(sampler, keys_B, logits_BV))


def _past(num_ids: int) -> np.ndarray:
  return np.random.default_rng(1).integers(0, num_ids, (BATCH, _PAST))


def _memory(sampler: chain.Chain, logits_BV: np.ndarray) -> Any:
  num_ids = logits_BV.shape[1]
  past_BT = jnp.asarray(_past(num_ids), jnp.int32)
  lengths_B = jnp.full(BATCH, _PAST)
  return sampler.init(history.Prompt(past_BT, lengths_B, _PAST, num_ids))


def _theirs(
  logits_BV: np.ndarray, num_ids: int
) -> dict[str, Callable[[int], None]]:
  """transformers' classes as its generate calls them, by threads."""
  import torch
  from transformers.generation import logits_process as warpers

  scores = torch.from_numpy(logits_BV.copy())
  past = torch.from_numpy(_past(num_ids))
  rules = {
    'temperature': warpers.TemperatureLogitsWarper(0.8),
    'top-k': warpers.TopKLogitsWarper(50),
    'top-p': warpers.TopPLogitsWarper(0.95),
    'min-p': warpers.MinPLogitsWarper(0.05),
    'typical': warpers.TypicalLogitsWarper(0.9),
    'epsilon': warpers.EpsilonLogitsWarper(3e-4),
    'eta': warpers.EtaLogitsWarper(3e-4),
    'top-h of 100': warpers.TopHLogitsWarper(0.4),
    'repetition': warpers.RepetitionPenaltyLogitsProcessor(1.2),
    'bias': warpers.SequenceBiasLogitsProcessor(
      {(10,): -2.0} | {(i,): 0.5 for i in range(97, 123)}
    ),
    'deny': warpers.SuppressTokensLogitsProcessor(list(range(4))),
    'min length': warpers.MinLengthLogitsProcessor(500, 2),
  }
  in_chain = [rules[n] for n in ('temperature', 'top-k', 'top-p', 'min-p')]

  def run(used: list[Callable], is_drawn: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    with torch.inference_mode():
      changed = scores
      for rule in used:
        changed = rule(past, changed)
      if is_drawn:
        torch.multinomial(torch.softmax(changed, dim=-1), 1)

  part = functools.partial
  runs = {name: part(run, [rule], False) for name, rule in rules.items()}
  runs['whole chain and draw'] = part(run, in_chain, True)
  runs['draw alone'] = part(run, [], True)
  return runs
