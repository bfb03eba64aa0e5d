"""Traces of samples: a JSON file, and a page beside it to look at."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from configs import neighbours
from data import codec
from evals import trace_page
from samplers import trace


class Texts(NamedTuple):
  """What was made: `count` rows for each of the prompts.

  A row of no token is one that a search found no text for, and not shown.
  sources: of every row, of what was copied; None if nothing can have been.
  """

  prompts: Sequence[bytes]
  count: int
  ids_BN: np.ndarray
  length_B: np.ndarray
  sources: Sequence[Sequence[neighbours.Span]] | None = None


def write(
  path: str,
  found: trace.Trace,
  made: Texts,
  spelling: codec.Codec,
  *,
  title: str,
  sampler: str,
) -> tuple[pathlib.Path, pathlib.Path]:
  """The paths of the file and of the page."""
  found, ids_BN, length_B = jax.tree.map(
    np.asarray, (found, made.ids_BN, made.length_B)
  )
  samples = []
  for row in np.flatnonzero(length_B):
    prompt, sample = divmod(row, made.count)
    steps = [
      trace_page.Step(
        int(ids_BN[row, n]),
        spelling.decode(ids_BN[row, n : n + 1], begins=False),
        *(x_BN[row, n].item() for x_BN in found),
      )
      for n in range(length_B[row])
    ]
    spans = made.sources[row] if made.sources is not None else ()
    lines = neighbours.described(spans), neighbours.as_json(spans)
    samples.append(
      trace_page.Sample(
        f'prompt {prompt + 1}, sample {sample + 1}',
        made.prompts[prompt],
        steps,
        list(zip(*lines, strict=True)),
      )
    )
  paths = pathlib.Path(path), pathlib.Path(path).with_suffix('.html')
  paths[0].parent.mkdir(parents=True, exist_ok=True)
  body = trace_page.to_json(sampler, samples)
  paths[0].write_text(json.dumps(body, indent=1) + '\n', 'utf-8')
  paths[1].write_text(trace_page.page(title, sampler, samples), 'ascii')
  return paths
