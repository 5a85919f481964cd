"""What was written becomes durable in batches: flush the data, then say so in the journal, a second or 128 MiB at a time.

A thread of its own does it, so that nobody waits for the disk's cache to be flushed, unless more than twice the batch would be at stake.
A run that ends within the first second never flushes anything before its publication.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

INTERVAL_S = 1.0
BATCH_BYTES = 128 << 20


class Commits:
    """Ranges that were written, on their way into the journal; every method may be called from any thread.

    Args:
        sync: flushes the data of the given shards.
        record: appends packed entries to the journal, durably.
        interval_s: time after which what was written is committed.
        batch_bytes: bytes after which it is.
    """

    def __init__(
        self, sync: Callable[[Iterable[int]], None], record: Callable[[bytes], None], interval_s: float = INTERVAL_S, batch_bytes: int = BATCH_BYTES
    ) -> None:
        """Commit nothing yet."""
        self._sync, self._record = sync, record
        self._interval_s, self._batch_bytes = interval_s, batch_bytes
        self._changed = threading.Condition()
        self._pending, self._shards, self._bytes, self._busy_bytes = bytearray(), set[int](), 0, 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._error: BaseException | None = None
        self.all = bytearray()  #: every entry so far, packed
        self.durable_bytes = 0

    def note(self, shard: int, nbytes: int, packed: bytes) -> None:
        """Bytes of a shard were written: commit them soon. Waits while too much is uncommitted.

        Raises:
            BaseException: what went wrong with an earlier commit.
        """
        with self._changed:
            self._pending += packed
            self.all += packed
            self._shards.add(shard)
            self._bytes += nbytes
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._work, name="plait-journal", daemon=True)
                self._thread.start()
            if self._bytes >= self._batch_bytes:
                self._changed.notify_all()
            while self._bytes + self._busy_bytes > 2 * self._batch_bytes and not self._closing and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def give_up(self, error: BaseException) -> None:
        """Record nothing more. Once a flush has failed the system may have dropped what it could not write, and the next flush succeeds."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def finish(self, commit: bool) -> None:
        """End the thread; with `commit` everything noted is durable when this returns. Harmless when called again.

        Raises:
            BaseException: a commit failed; earlier ones stay good.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        interrupted: BaseException | None = None
        while self._thread is not None and self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt as error:  # what it writes to must not be closed under it
                interrupted = error
        if interrupted is not None:
            raise interrupted
        if self._error is not None:
            raise self._error
        if commit:
            try:
                self._commit()
            except BaseException as error:
                self.give_up(error)
                raise

    def _work(self) -> None:
        try:
            while self._wait():
                self._commit()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._busy_bytes = 0
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Until it is time to commit; False when the run is over."""
        due = time.monotonic() + self._interval_s
        with self._changed:
            while not self._closing and self._bytes < self._batch_bytes:
                left = due - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return not self._closing

    def _commit(self) -> None:
        with self._changed:
            packed, shards, nbytes = bytes(self._pending), self._shards, self._bytes
            self._pending, self._shards, self._bytes = bytearray(), set(), 0
            self._busy_bytes = nbytes
        if packed:
            self._sync(sorted(shards))
            self._record(packed)
        with self._changed:
            self.durable_bytes += nbytes
            self._busy_bytes = 0
            self._changed.notify_all()
