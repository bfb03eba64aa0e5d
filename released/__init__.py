"""Weights as others release them: transformers' directories, in and out."""
