"""Sampling rules, their chain and the jitted decode loop; knows no model.

Axes letters as in `models`, plus N, the generated tokens of one row.
"""
