"""The shapes that are compared, and the same Llama in both libraries."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models import lm


class Shape(NamedTuple):
  """A byte transformer without the extras that a Llama lacks."""

  width: int
  layers: int
  heads: int
  hidden: int
  batch: int
  length: int

  def __str__(self) -> str:
    return (
      f'width {self.width} x {self.layers}, {self.batch} x {self.length} bytes'
    )

  @property
  def flops_per_token(self) -> float:
    """Of forward and backward: 6 per weight, and the attention matmuls.

    Attention is counted causal, half of the square that is multiplied.
    """
    block = 4 * self.width**2 + 3 * self.width * self.hidden
    weights = self.layers * block + 260 * self.width
    return 6 * weights + 6 * self.layers * self.width * self.length


FULL = (
  Shape(128, 4, 2, 384, 8, 256),
  Shape(256, 6, 4, 704, 8, 256),
  Shape(512, 8, 8, 1408, 4, 512),
)
QUICK = (Shape(16, 1, 2, 32, 2, 16),)


def ours(shape: Shape) -> tuple[lm.ByteLM, Any]:
  """Our model and its parameters, no branch silent."""
  model = lm.ByteLM(
    width=shape.width,
    layers=shape.layers,
    heads=shape.heads,
    key_value_heads=shape.heads,
    hidden=shape.hidden,
  )
  return model, _draw(model)


@functools.partial(jax.jit, static_argnums=0)
def _draw(model: lm.ByteLM) -> Any:
  """New parameters, by a program that is compiled once for all equal models."""
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  params = model.init(jax.random.key(0), ids_BT)['params']
  for i in range(model.layers):
    down = params[f'block_{i}']['feed_forward']['down']
    down['kernel'] = jax.random.normal(
      jax.random.key(i), down['kernel'].shape
    ) / np.sqrt(model.hidden)
  return params


def theirs(shape: Shape, params: Any, attention: str) -> Any:
  """transformers' Llama with the same weights."""
  import torch
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=260,
    hidden_size=shape.width,
    num_hidden_layers=shape.layers,
    num_attention_heads=shape.heads,
    num_key_value_heads=shape.heads,
    intermediate_size=shape.hidden,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    attn_implementation=attention,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
  )
  model = transformers.LlamaForCausalLM(config)
  weights = llama_weights(params, shape.layers)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
  return model


def llama_weights(params: Any, layers: int) -> dict[str, np.ndarray]:
  """Parameters of a ByteLM under the names and shapes of transformers' Llama.

  Kernels are [in, out] here and [out, in] there; a tied head has no entry.
  """
  weights = {
    'model.embed_tokens.weight': params['embed']['embedding'],
    'model.norm.weight': params['final_norm']['scale'],
  }
  if 'head' in params:
    weights['lm_head.weight'] = params['head']['kernel'].T
  for i in range(layers):
    block, to = params[f'block_{i}'], f'model.layers.{i}.'
    for name in ('query', 'key', 'value', 'output'):
      kernel = block['attention'][name]['kernel']
      weights[f'{to}self_attn.{name[0]}_proj.weight'] = kernel.T
    for name in ('gate', 'up', 'down'):
      kernel = block['feed_forward'][name]['kernel']
      weights[f'{to}mlp.{name}_proj.weight'] = kernel.T
    for mine, name in (
      ('attention_norm', 'input_layernorm'),
      ('feed_forward_norm', 'post_attention_layernorm'),
    ):
      weights[f'{to}{name}.weight'] = block[mine]['scale']
  return {name: np.array(x) for name, x in weights.items()}


def check_equal(
  shape: Shape, model: lm.ByteLM, params: Any, llama: Any
) -> None:
  """ValueError unless both give the same logits, to 1e-4 of their scale."""
  import torch

  ids_BT = np.random.default_rng(0).integers(4, 260, (2, shape.length))
  with torch.no_grad():
    expected = llama(torch.from_numpy(ids_BT)).logits.numpy()
  found = np.asarray(model.apply({'params': params}, jnp.asarray(ids_BT))[0])
  worst = np.abs(found - expected).max() / np.abs(expected).max()
  if worst > 1e-4:
    raise ValueError(
      f'bench {shape}: logits differ by {worst:.1e} of their scale; both sides'
      ' must do equal work.'
    )
