"""Certificates of generalization: maths in float64 on arrays of losses.

A stream of N symbols is scored by a predictor that a file describes. Loss i,
in bits, is that of symbol i given the symbols before it, whatever process made
them. The certified risk is the mean over i of E[loss i | symbols before i]: the
contexts stay, the next symbol is drawn anew. Every bound holds for all files at
once with probability at least 1 - delta over the stream, because a file of K
bits is charged as one of prior probability 2**-K.
Cost is the charge per symbol in nats: (K ln 2 + ln 1/delta) / N.
Predictable means computable from the file and the symbols before i.
"""
