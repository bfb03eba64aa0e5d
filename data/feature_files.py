"""What a prepared TFDS dataset names: classes of TFDS and its own files only.

TFDS imports whatever module features.json says that a feature is of, and reads
the files that dataset_info.json says that a split is in.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from data import json_text

_TRUSTED = 'tensorflow_datasets.core.features.'
_CLASSES = ('type', 'pythonClassName', 'python_class_name')


def check(folder: pathlib.Path) -> None:
  """ValueError where a dataset below a folder has features of other modules."""
  for path in sorted(folder.rglob('features.json')):
    tree = json_text.load(path, dict, 'copy the dataset anew')
    for name in _class_names(tree, path):
      if not name.startswith(_TRUSTED) or '__' in name:
        raise ValueError(
          f'{path} names the class {name[:80]!r}; only those of {_TRUSTED[:-1]}'
          ' are read, for the module of any other would be executed.'
        )


def check_inside(folder: pathlib.Path, files: list[Any]) -> None:
  """ValueError for a file that a dataset has outside of its folder."""
  root = os.path.abspath(folder) + os.sep
  for file in map(str, files):
    if '\0' in file or not os.path.abspath(file).startswith(root):
      raise ValueError(
        f'{folder} names the file {file[:200]!r}, which is not in it; copy the'
        ' dataset anew.'
      )


def _class_names(tree: Any, path: pathlib.Path) -> Iterator[str]:
  """Every class that a feature is said to be of."""
  nodes = [tree]
  while nodes:
    node = nodes.pop()
    if isinstance(node, list):
      nodes += node
    elif isinstance(node, dict):
      nodes += node.values()
      yield from (
        node[key] for key in _CLASSES if isinstance(node.get(key), str)
      )
      if isinstance(node.get('content'), str):
        # An older form: JSON in JSON.
        way_out = 'copy the dataset anew'
        nodes.append(json_text.parse(node['content'], str(path), way_out))
