"""Text survives the way into arrays and back, cut at a character where it must be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.ops import strings

characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(characters, max_size=5), st.integers(1, 200))
def test_round_trip(given_strings, width):
    text = strings.pack(given_strings, width)
    assert text.data.shape == (len(given_strings), width)
    assert (text.data.dtype, text.length.dtype) == (np.uint8, np.int32)
    for row, string in enumerate(given_strings):
        found = strings.string_at(text, row)
        assert found == strings.cut(string, width)
        assert string.startswith(found)
        left = string[len(found) : len(found) + 1].encode()
        assert not left or len(found.encode()) + len(left) > width
        assert not text.data[row, text.length[row] :].any()


@given(characters, characters)
def test_a_shorter_string_leaves_nothing_of_the_one_before(first, second):
    text = strings.empty((2, 2), 60)
    strings.write(text, (1, 0), first)
    strings.write(text, (1, 0), second)
    assert strings.string_at(text, (1, 0)) == strings.cut(second, 60)
    assert not text.data[0].any()
    assert not text.data[1, 1].any()


def test_half_a_surrogate_pair_becomes_a_question_mark():
    assert strings.cut("a\ud83db", 10) == "a?b"
