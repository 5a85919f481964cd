"""The ledger: every byte of tensor memory is leased here before it exists."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from plait.ops.errors import KernelError


@dataclass(slots=True)
class Ledger:
    """Leases of one pool of memory, counted in bytes.

    A component leases all it will hold when it opens, so an open component can always finish: no task
    that has begun waits for memory, and the oldest one that has not begun fits once the open ones are
    closed. That is the banker's rule in the one form this engine needs.

    Workspaces of ops that take turns are leased together: of all leases open at once the largest `in_turn` counts.

    Attributes:
        limit_bytes: never exceeded.
        held_bytes: leased for as long as each lease is open.
        peak_bytes: most that was ever leased.
    """

    limit_bytes: int
    held_bytes: int = 0
    peak_bytes: int = 0
    _turns: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def used_bytes(self) -> int:
        """Leased now."""
        with self._lock:
            return self._used()

    def _used(self, nbytes: int = 0, in_turn: int = 0) -> int:
        return self.held_bytes + nbytes + max(in_turn, max(self._turns, default=0))

    def lease(self, nbytes: int, in_turn: int = 0) -> bool:
        """Take `nbytes`, and `in_turn` more that one lease at a time uses, if they fit; say whether they did."""
        with self._lock:
            used = self._used(nbytes, in_turn)
            if used > self.limit_bytes:
                return False
            self.held_bytes += nbytes
            if in_turn:
                self._turns.append(in_turn)
            self.peak_bytes = max(self.peak_bytes, used)
            return True

    def release(self, nbytes: int, in_turn: int = 0) -> None:
        """Give back what a lease took.

        Raises:
            KernelError: more is given back than was taken.
        """
        with self._lock:
            if nbytes > self.held_bytes or (in_turn and in_turn not in self._turns):
                raise KernelError(f"the ledger got back {nbytes + in_turn} bytes but only {self._used()} are leased; please report this")
            self.held_bytes -= nbytes
            if in_turn:
                self._turns.remove(in_turn)
