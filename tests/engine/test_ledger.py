"""The ledger never grants more than its limit, counts what it grants, and notices what was never leased."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.engine.ledger import Ledger
from plait.ops.errors import KernelError


def _together(leases: list[tuple[int, int]]) -> int:
    return sum(nbytes for nbytes, _ in leases) + max((in_turn for _, in_turn in leases), default=0)


@given(st.integers(0, 1000), st.lists(st.tuples(st.booleans(), st.integers(0, 400), st.integers(0, 300)), max_size=60))
def test_any_sequence_stays_within_the_limit(limit: int, steps: list[tuple[bool, int, int]]):
    """Leases are granted exactly when they fit, beside the largest that is used in turn; used and peak are those of a list of open leases."""
    book, peak = Ledger(limit), 0
    open_leases: list[tuple[int, int]] = []
    for take, nbytes, in_turn in steps:
        if take:
            fits = _together([*open_leases, (nbytes, in_turn)]) <= limit
            assert book.lease(nbytes, in_turn) is fits
            if fits:
                open_leases.append((nbytes, in_turn))
        elif open_leases:
            book.release(*open_leases.pop())
        peak = max(peak, _together(open_leases))
        assert (book.used_bytes, book.peak_bytes) == (_together(open_leases), peak)
        assert book.used_bytes <= limit


def test_giving_back_more_than_was_taken():
    """A lease that never was is an error with its numbers, and changes nothing."""
    book = Ledger(100)
    assert book.lease(40)
    with pytest.raises(KernelError, match="41 bytes but only 40"):
        book.release(41)
    assert book.used_bytes == 40
    with pytest.raises(KernelError, match="only 40"):
        book.release(20, 7)
    assert book.used_bytes == 40


def test_fixed_use_counts():
    """What is in use from the start is not granted again."""
    book = Ledger(100, 60, 60)
    assert not book.lease(41)
    assert book.lease(40)
    assert book.peak_bytes == 100


def test_threads_share_one_limit():
    """Eight threads that lease and release at once never hold more than the limit together."""
    book, over = Ledger(10), []

    def work() -> None:
        for _ in range(3000):
            if book.lease(3):
                if book.used_bytes > 10:
                    over.append(book.used_bytes)
                book.release(3)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not over
    assert book.used_bytes == 0
    assert 3 <= book.peak_bytes <= 9
