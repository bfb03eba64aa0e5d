"""Sizes of the factors of a layer's width, padded up and never cut."""

import functools
import itertools
import math
from collections.abc import Iterator

# A rule's name, or the factors themselves of every width that a layer meets.
Factors = str | tuple[tuple[int, ...], ...]

# A most balanced pair further apart than this is padded to a better size.
_MAX_RATIO = 4


def balanced(size: int, parts: int = 2) -> tuple[int, ...]:
  """Ascending factors, as equal as can be, whose product is at least `size`.

  The product is `size` itself if its most balanced factors differ by at most
  four times (two parts: the smaller is the largest divisor <= sqrt(size)), else
  the next number of which that is true: 768 -> 24 x 32, 37 -> 5 x 8.
  """
  for padded in itertools.count(size):
    factors = min(_factorisations(padded, parts), key=sum)
    if factors[-1] <= _MAX_RATIO * factors[0]:
      return factors
  raise AssertionError('powers of two have balanced factors')


def greedy(size: int, parts: int = 2) -> tuple[int, ...]:
  """Ascending factors of exactly `size`: each prime to the smallest so far.

  The rule of the code released with arXiv 2406.06248; 768 -> 16 x 48.
  """
  factors = [1] * parts
  for prime in _primes(size):
    factors[factors.index(min(factors))] *= prime
  return tuple(sorted(factors))


def check(factors: Factors, parts: int, layer: str) -> None:
  """ValueError unless these are a rule or tuples of `parts` whole numbers."""
  if isinstance(factors, str):
    if factors in RULES:
      return
  elif factors and all(
    len(given) == parts and all(isinstance(f, int) and f > 0 for f in given)
    for given in factors
  ):
    return
  raise ValueError(
    f'{layer} factors={factors!r} must be one of {tuple(RULES)}, or for every'
    f' width a tuple of {parts} whole numbers that multiply to it, as'
    f' {(balanced(64, parts), balanced(256, parts))}.'
  )


def choose(
  factors: Factors, size: int, parts: int, where: str
) -> tuple[int, ...]:
  """The factors of a width by a checked rule, or those given for it.

  Raises ValueError, beginning with `where`, if none given multiply to it.
  """
  if isinstance(factors, str):
    return RULES[factors](size, parts)
  for given in factors:
    if math.prod(given) == size:
      return given
  exact = min(_factorisations(size, parts), key=sum)
  raise ValueError(
    f'{where}: none of factors={factors} multiply to {size}; add {exact}, or'
    f' use one of {tuple(RULES)}.'
  )


@functools.lru_cache
def by_exponents(size: int, exponents: tuple[float, ...]) -> tuple[int, ...]:
  """Factors near size**exponent whose product is at least `size`.

  The exponents sum to one; a factor of exponent 0 is 1. Among the choices
  within 1.5 times of the ideal the least product wins, then the nearest.
  """
  ideals = [size**exponent for exponent in exponents]
  ranges = [
    (1,)
    if exponent == 0
    else range(max(1, math.floor(ideal / 1.5)), math.ceil(ideal * 1.5) + 1)
    for exponent, ideal in zip(exponents, ideals, strict=True)
  ]
  # The last free factor follows from the others.
  last = max(i for i, exponent in enumerate(exponents) if exponent)
  best = None
  for choice in itertools.product(*ranges[:last]):
    factor = max(1, -(-size // math.prod(choice)))
    factors = (*choice, factor, *(1,) * (len(exponents) - last - 1))
    distance = sum(
      abs(math.log(f / ideal)) for f, ideal in zip(factors, ideals, strict=True)
    )
    key = (math.prod(factors), distance)
    if factor in ranges[last] and (best is None or key < best[0]):
      best = key, factors
  return best[1]


RULES = {'balanced': balanced, 'greedy': greedy}


def _factorisations(size: int, parts: int) -> Iterator[tuple[int, ...]]:
  """Every way to write size as a product of ascending factors."""
  if parts == 1:
    yield (size,)
    return
  for divisor in range(1, math.floor(size ** (1 / parts) + 1e-9) + 1):
    if size % divisor == 0:
      for rest in _factorisations(size // divisor, parts - 1):
        if rest[0] >= divisor:
          yield (divisor, *rest)


def _primes(size: int) -> Iterator[int]:
  """Prime factors, ascending, with repetition."""
  prime = 2
  while prime * prime <= size:
    while size % prime == 0:
      yield prime
      size //= prime
    prime += 1
  if size > 1:
    yield size
