"""The counter-based random stream: published answers, and the same words however they are asked for."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from plait.ops.kernels.jit_philox import philox_fill, with_wide_vectors
from plait.ops.kernels.philox import philox4x32, random_u32, stream_key, threshold

ONES = 0xFFFFFFFF
KEY = stream_key(42, "dare", "./math", "model.layers.0.mlp.up_proj.weight")
words = st.integers(0, ONES)


def fill(start, count, key=KEY):
    out = np.full(count + 2, 0xABCD, np.uint32)
    philox_fill(out[1 : count + 1], start, count, *(np.uint32(v) for v in key))
    assert out[0] == out[-1] == 0xABCD, "wrote outside the range asked for"
    return out[1 : count + 1]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers_of_random123(counter, key, answer):
    """The three Philox4x32-10 answers published with Random123, from all three implementations where they can express the counter."""
    assert philox4x32(counter, key) == answer
    offset = 4 * (counter[0] | counter[1] << 32)
    if offset < 2**63:
        stream = (*key, *counter[2:])
        assert tuple(int(v) for v in random_u32(stream, offset, 4)) == answer
        assert tuple(int(v) for v in fill(offset, 4, stream)) == answer


def test_stream_key_is_blake2b():
    """The digest that coreutils' `b2sum -l 128` gives for the same bytes, as little-endian words."""
    digest = bytes.fromhex("d15188e24e85d4bd22f2130e5fd1755d")
    assert np.frombuffer(digest, "<u4").tolist() == list(KEY)


def test_every_part_of_the_key_matters():
    """Another seed, purpose, model, tensor or draw is another stream; moving text from one field to the next is too."""
    base = (1, "dare", "a", "t", 0)
    others = [(2, *base[1:]), (1, "della", "a", "t", 0), (1, "dare", "b", "t", 0), (1, "dare", "a", "u", 0), (1, "dare", "a", "t", 1), (1, "darea", "", "t", 0)]
    assert len({stream_key(*parts) for parts in [base, *others]}) == 7


@settings(deadline=None)
@given(key=st.tuples(words, words, words, words), start=st.integers(0, 2**40), count=st.integers(0, 300))
def test_all_implementations_agree(key, start, count):
    """NumPy, Numba and the scalar definition give the same words for any range of any stream."""
    expected = [philox4x32(((o // 4) & ONES, o // 4 >> 32, *key[2:]), key[:2])[o % 4] for o in range(start, start + count)]
    assert random_u32(key, start, count).tolist() == expected
    assert fill(start, count, key).tolist() == expected


@pytest.mark.parametrize("chunk", [1, 7, 4096, 100_000])
def test_any_chunking_gives_the_same_stream(chunk):
    """Pieces of any size put together are the stream made at once, also where NumPy's own chunks end."""
    n = 100_000 if chunk > 100 else 500
    whole = random_u32(KEY, 3, n)
    for make in (lambda s, c: random_u32(KEY, s, c), fill):
        parts = [make(3 + s, min(chunk, n - s)) for s in range(0, n, chunk)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_counter_carries_into_its_second_word():
    """Offsets around 4 * 2^32, where the block number leaves 32 bits."""
    start = 4 * 2**32 - 6
    expected = [philox4x32(((o // 4) & ONES, o // 4 >> 32, *KEY[2:]), KEY[:2])[o % 4] for o in range(start, start + 12)]
    assert random_u32(KEY, start, 12).tolist() == fill(start, 12).tolist() == expected


def test_streams_look_uniform_and_independent():
    """Bytes pass a chi-square test, keep rates are right, and two models' masks do not correlate."""
    n = 1 << 20
    a, b = random_u32(KEY, 0, n), random_u32(stream_key(42, "dare", "./code", "model.layers.0.mlp.up_proj.weight"), 0, n)
    counts = np.bincount(a.view(np.uint8), minlength=256)
    chi2 = float(((counts - 4 * n / 256) ** 2 / (4 * n / 256)).sum())
    assert 140 < chi2 < 400  # 255 degrees of freedom: mean 255, standard deviation 23
    for density in (0.1, 0.5, 0.9):
        kept = float((a < threshold(density)).mean())
        assert abs(kept - density) < 5 * (density * (1 - density) / n) ** 0.5
    assert abs(np.corrcoef(a < threshold(0.5), b < threshold(0.5))[0, 1]) < 4 / n**0.5


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0, 0),
        (1, 2**32),
        (1.0, 2**32),
        ("0.5", 2**31),
        (0.1, 429496730),
        (Fraction(1, 2**33), 0),
        (Fraction(3, 2**33), 2),
        ("1e-9", 4),
        (np.float64(0.1), 429496730),
    ],
)
def test_threshold_is_exact_and_rounds_half_to_even(density, expected):
    """Decimal text times 2^32; 0.5 rounds to 0 and 1.5 to 2."""
    assert threshold(density) == expected


@pytest.mark.parametrize("bad", [-0.1, 1.01, "nan", "half"])
def test_threshold_refuses_what_is_no_density(bad):
    """Anything that is not a number from 0 to 1 is an error."""
    with pytest.raises(ValueError, match=r"outside 0 to 1|not a number"):
        threshold(bad)


def test_negative_ranges_are_refused():
    """There are no elements before the first."""
    with pytest.raises(ValueError, match="negative"):
        random_u32(KEY, -1, 4)


def test_wide_vectors_are_asked_for_in_the_caller_alone():
    """The function that asks has the attribute in what LLVM is given; another does not."""

    @njit
    def asks(x):
        with_wide_vectors()
        return x + 1

    @njit
    def does_not(x):
        return x + 1

    assert asks(1) == does_not(1) == 2
    wide = '"prefer-vector-width"="512"'
    assert wide in "".join(asks.inspect_llvm().values())
    assert wide not in "".join(does_not.inspect_llvm().values())
