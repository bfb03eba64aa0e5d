import math

import numpy as np
import pytest

from bounds import alphabet


@pytest.mark.parametrize('name', sorted(alphabet.ALPHABETS))
def test_classes_are_a_partition(name):
  kind = alphabet.ALPHABETS[name]
  members = sorted(x for group in kind.classes for x in group)
  assert members == list(range(257))
  for index, group in enumerate(kind.classes):
    assert set(kind.class_of[list(group)]) == {index}


def test_ascii_has_tab_newline_95_characters_end_and_escape():
  kind = alphabet.named('ascii')
  assert kind.size == 99
  text = np.frombuffer(b'a\xe9\x00b', np.uint8)
  # 159 bytes share the escape, 'a' and 'b' are spelled for nothing.
  assert kind.spelling_bits(text) == pytest.approx(2 * math.log2(159))
  assert alphabet.named('bytes').spelling_bits(text) == 0


def test_unknown_name_is_refused():
  with pytest.raises(ValueError, match=r'--alphabet=klingon .* bytes, ascii'):
    alphabet.named('klingon')
