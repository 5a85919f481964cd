"""Writing behind: everything arrives, no more is on its way than was handed over, and the first error ends it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from plait.engine.writebehind import WriteBehind
from plait.ops.errors import KernelError


class Slow:
    """A sink that waits for permission."""

    def __init__(self) -> None:
        self.gate, self.got, self.fail = threading.Event(), [], False

    def write(self, shard: int, offset: int, data: np.ndarray, known: bytes = b"") -> None:
        assert self.gate.wait(10)
        if self.fail:
            raise RuntimeError("paper jam")
        self.got.append((shard, offset, bytes(data)))


def test_everything_is_written_before_close_returns():
    """Blocks of several tensors from several threads; a ticket is done only when its bytes are."""
    sink, done = Slow(), []
    behind = WriteBehind(sink, 2, done.append)
    tickets = [behind.write("w", 0, i, np.full(3, i, np.uint8)) for i in range(20)]
    assert not any(ticket._done.is_set() for ticket in tickets)
    sink.gate.set()
    behind.close()
    behind.close()
    assert sorted(sink.got) == [(0, i, bytes([i] * 3)) for i in range(20)]
    assert sum(done) == 60
    assert all(ticket._done.is_set() for ticket in tickets)


def test_an_error_ends_the_writing():
    """What waits is given up, every ticket is freed, and the next to write learns which tensor failed."""
    sink = Slow()
    sink.fail = True
    behind = WriteBehind(sink, 1, lambda nbytes: None)
    tickets = [behind.write("model.norm", 0, i, np.zeros(1, np.uint8)) for i in range(5)]
    sink.gate.set()
    for ticket in tickets:
        ticket.wait()
    with pytest.raises(KernelError, match=r"model\.norm failed: RuntimeError: paper jam"):
        behind.write("other", 0, 9, np.zeros(1, np.uint8))
    behind.close()
    assert sink.got == []
    with pytest.raises(KernelError):
        behind.check()
