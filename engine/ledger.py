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
    """

    limit_bytes: int
    used_bytes: int = 0
    peak_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lease(self, nbytes: int) -> bool:
        """Take `nbytes` if they fit; say whether they did."""
        with self._lock:
            if self.used_bytes + nbytes > self.limit_bytes:
                return False
            self.used_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return True

    def release(self, nbytes: int) -> None:
        """Give `nbytes` back.

        Raises:
            KernelError: more is given back than was taken.
        """
        with self._lock:
            if nbytes > self.used_bytes:
                raise KernelError(f"the ledger got back {nbytes} bytes but only {self.used_bytes} are leased; please report this")
            self.used_bytes -= nbytes
