"""Small tokenizers of the two kinds that Llama models have.

Both have 320 ids or fewer. Llama 3 cuts text as GPT-2 does and works on bytes;
Llama 2 works on characters, puts a space before a text, and spells characters
that it does not know in bytes.
"""

import functools

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

VOCABULARY = 320
TEXTS = [
  'the alpha and the beta, and then the gamma: été, été, été; 日本 日本',
  'def alpha(beta):\n    return beta + 12\n' * 3,
]


@functools.cache
def byte_level() -> str:
  """As Llama 3: no lead, ids of the marks after all others."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  tokenizer.add_special_tokens(['<|begin|>', '<|end|>', '<|turn|>'])
  _mark(
    tokenizer,
    '<|begin|>',
    # Cuts spaces off the places of tokens, as that of Llama 3 does.
    processors.ByteLevel(trim_offsets=True),
  )
  return tokenizer.to_str(pretty=True)


@functools.cache
def sentencepiece(prepend: str = 'first') -> str:
  """As Llama 2: a lead, single bytes, marks before all others."""
  made = ['<unk>', '<s>', '</s>']
  made += [f'<0x{byte:02X}>' for byte in range(256)]
  letters = '▁ethanlpbgmdrfu,:;+12(é'
  made += letters
  pairs = 't h,a n,▁ th,▁th e,an d,▁ and,a l,▁ ▁,é t'
  merges = [tuple(pair.split(' ')) for pair in pairs.split(',')]
  made += [''.join(pair) for pair in merges]
  model = models.BPE(
    vocab={token: i for i, token in enumerate(made)},
    merges=merges,
    unk_token='<unk>',
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme=prepend, split=False
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
  _mark(tokenizer, '<s>')
  return tokenizer.to_str(pretty=True)


def _mark(tokenizer, begin, *before):
  template = processors.TemplateProcessing(
    single=f'{begin} $A',
    pair=f'{begin} $A {begin} $B',
    special_tokens=[(begin, tokenizer.token_to_id(begin))],
  )
  tokenizer.post_processor = processors.Sequence([*before, template])
