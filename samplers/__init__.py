"""Sampling rules, their chain and the jitted decode loop; knows no model.

Axes letters as in `models`, plus N, the generated tokens of one row; L, all its
tokens, the prompt included; M, a few of many; G blocks of the vocabulary; C
columns of a basis, E those and one more.
"""
