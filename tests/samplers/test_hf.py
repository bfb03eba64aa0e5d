"""Our chain inside transformers' generate, and what it refuses."""

import numpy as np
import pytest
import torch
import transformers

from samplers import chain
from samplers import hf


@pytest.fixture(scope='module')
def model():
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=64,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.5)
  return model


def generate(model, seed=0, **fields):
  torch.manual_seed(seed)
  ids = torch.tensor([[1, 5, 9, 5, 9], [7, 7, 7, 3, 2]])
  return model.generate(
    ids,
    attention_mask=torch.ones_like(ids),
    max_new_tokens=12,
    do_sample=True,
    pad_token_id=0,
    eos_token_id=None,
    **fields,
  )


def test_generate_draws_the_same_with_our_rules_as_with_its_own(model):
  for seed in range(3):
    theirs = generate(
      model, seed, repetition_penalty=1.4, temperature=0.8, top_k=9, top_p=0.8
    )
    ours = hf.to_hf_processor(
      chain.parse('hf: repetition(1.4)|temperature(0.8)|top_k(9)|top_p(0.8)')
    )
    found = generate(
      model, seed, top_k=0,
      logits_processor=transformers.LogitsProcessorList([ours]),
    )  # fmt: skip
    assert found.tolist() == theirs.tolist()


def test_the_first_call_is_the_prompt():
  processor = hf.to_hf_processor(chain.parse('frequency(1)'))
  scores = np.zeros((1, 6), np.float32)
  assert not np.any(processor(np.array([[3, 3]]), scores))
  found = processor(np.array([[3, 3, 3, 4, 4]]), scores)
  np.testing.assert_array_equal(found, [[0, 0, 0, -1, -2, 0]])


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='Mirostat must know what its tokens'):
    hf.to_hf_processor(chain.parse('mirostat(5)'))
  processor = hf.to_hf_processor(chain.parse('top_k(2)'))
  for value in (np.nan, -np.inf, np.inf):
    scores = np.zeros((2, 4), np.float32)
    scores[1] = value
    with pytest.raises(ValueError, match='row 1: the scores are NaN, reach'):
      processor(np.zeros((2, 3), int), scores)
