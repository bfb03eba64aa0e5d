"""Evaluators: what train.py and eval.py measure, and honest references."""
