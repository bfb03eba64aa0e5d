"""The page is well-formed, stands alone and holds every byte once."""

import html.parser
import re

import hypothesis
import numpy as np
import pytest

from evals import patch_lengths
from evals import patch_page
from tests.evals import test_patch_text as texts

VOID = {'meta', 'br'}


class Reader(html.parser.HTMLParser):
  """Follows the tags; collects what stands for the bytes of documents."""

  def __init__(self):
    super().__init__()
    self.open = []
    self.tags = []
    self.attributes = []
    self.documents = []
    self.cells = []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append(tag)
    self.attributes.append(attributes)
    if tag == 'div' and attributes.get('class') == 'text':
      self.documents.append([])
    if 'patch' in attributes.get('class', '').split() and self.documents:
      self.documents[-1].append([])
    if tag == 'i':
      self.documents[-1][-1].append([attributes, ''])
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == 'i':
      self.documents[-1][-1][-1][1] += data
    elif self.documents and self.open and self.open[-1] in ('span', 'div'):
      raise AssertionError(f'text beside the bytes: {data!r}')


def read(page):
  reader = Reader()
  reader.feed(page)
  reader.close()
  assert not reader.open
  return reader


def make(*parts, choices=(), full=5.0, title='Patches of <i>&amp;'):
  lengths = np.array([1, 2, 3])
  found = patch_lengths.statistics(lengths, cut=1)
  facts = [('rule', '<b>Rule</b>'), *patch_lengths.described(found)]
  return patch_page.page(title, found, facts, choices, 'a.b', parts, full)


def by_title(patch):
  return bytes(int(cell['title'][:2], 16) for cell, _ in patch)


def by_sight(patch):
  """Bytes as a reader sees them: boxes in hexadecimal, else characters."""
  return b''.join(
    bytes.fromhex(seen) if cell.get('class') == 'hex' else seen.encode()
    for cell, seen in patch
  )


@hypothesis.given(
  texts.texts, hypothesis.strategies.sets(hypothesis.strategies.integers(0, 80))
)
def test_every_byte_is_there_once(text, starts):
  part = texts.shown(text, starts)
  (document,) = read(make(part)).documents
  assert [by_title(patch) for patch in document] == texts.patches_of(part)
  assert [by_sight(patch) for patch in document] == texts.patches_of(part)
  places = [
    int(re.match(r'.. at (\d+),', cell['title'])[1])
    for patch in document
    for cell, _ in patch
  ]
  assert places == list(range(len(text)))


def test_entropies_are_those_before_and_after_the_byte():
  nats = np.array([0.5, 1.25, 2.5, 9.0])
  (document,) = read(make(texts.shown(b'abc', [1], nats))).documents
  cells = [cell for patch in document for cell, _ in patch]
  assert [cell['style'] for cell in cells] == [
    '--e:0.10', '--e:0.25', '--e:0.50',
  ]  # fmt: skip
  assert cells[1]['title'] == (
    '62 at 1, patch 1: 1.250 nats before it, 2.500 after'
  )
  over = read(make(texts.shown(b'a', [], np.array([9.0, 0.0])))).documents
  assert over[0][0][0][0]['style'] == '--e:1.00'


def test_it_stands_alone_and_is_ascii():
  part = texts.shown(texts.HOSTILE, range(0, 90, 3))
  part = part._replace(name='<b>\udcff\x1b\n日.txt', size=10**6)
  page = make(part, texts.shown(b'', []), choices=[
    patch_lengths.Choice(4.5, 1.25, 4.51), patch_lengths.Choice(99, None, 8.0),
  ])  # fmt: skip
  assert page.isascii()
  assert page.startswith('<!doctype html>')
  assert 'prefers-color-scheme: dark' in page
  reader = read(page)
  for banned in ('script', 'link', 'img', 'iframe', 'b', 'a'):
    assert banned not in reader.tags
  for attributes in reader.attributes:
    assert attributes.keys() <= {
      'charset', 'class', 'content', 'lang', 'name', 'style', 'title',
    }  # fmt: skip
  assert 'url(' not in page
  assert '@import' not in page
  assert len(reader.documents) == 2
  assert reader.documents[1] == []
  assert '&lt;b&gt;\\udcff\\x1b\\n&#26085;.txt' in page
  assert 'the first' in page
  assert '<td>4.5</td><td>1.25</td><td>4.510</td>' in page
  assert '<td>99</td><td>none</td><td>8.000</td>' in page
  for written in ('&lt;', '&gt;', '&amp;', '&quot;', '&#x27;'):
    assert f'">{written}</i>' in page
  assert '<td>&lt;b&gt;Rule&lt;/b&gt;</td>' in page


@pytest.mark.parametrize('with_nats', [False, True])
def test_bars_and_their_legend_are_for_entropies(with_nats):
  nats = np.zeros(3) if with_nats else None
  page = make(texts.shown(b'ab', [], nats))
  assert ('a full bar is 5.00 nats' in page) == with_nats
  assert ('style="--e' in page) == with_nats
