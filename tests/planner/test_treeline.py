"""Lines of a tree are wrapped so that they can be read: numbers keep their units, nothing is lost, nothing is obeyed."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plait.planner.treeline import Line

KNOWN = ["reads", "12 GiB", "7 s", "3 x", "41 %", "2.1 TFLOP", "of", "[bold]", "a" * 30]
WORDS = st.lists(st.one_of(st.sampled_from(KNOWN), st.text("xyz é", min_size=1)), max_size=20)


@given(WORDS, st.integers(12, 90), st.integers(0, 13))
def test_nothing_is_lost_and_no_line_is_too_wide(words: list[str], width: int, hang: int):
    """Every character but white space comes out, in order, within the width."""
    text = " ".join(words)
    lines = Line(text, hang).wrapped(width)
    assert max(map(len, lines)) <= width
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)


@given(WORDS, st.integers(24, 90))
def test_a_number_keeps_its_unit(words: list[str], width: int):
    """No line ends in a number whose unit begins the next."""
    lines = [line.strip() for line in Line(" ".join(words)).wrapped(width)]
    for a, b in pairwise(lines):
        assert not (re.search(r"(^| )[\d.]+$", a) and re.match(r"(GiB|s|x|%|TFLOP)( |$)", b))


def test_what_is_continued_hangs():
    """Below its own column."""
    assert Line("label   " + "word " * 8, 8).wrapped(24) == ["label   word word word", "        word word word", "        word word"]
