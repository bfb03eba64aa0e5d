"""Sampling rules, their chain and the jitted decode loop; knows no model.

Axes letters as in `models`, plus N, the generated tokens of one row; L, all its
tokens, the prompt included; M, a few of many; G blocks of the vocabulary, or
tokens of a draft; C columns of a basis, E those and one more. Of a corpus: M
passages of a row, P their ids or all passages, C their keys, L ids that go on
from a passage, X places in all of them, J entries of an index.
"""
