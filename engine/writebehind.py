"""Writing behind the workers' backs: while a block is on its way to the disk, its worker computes the next one.

Every worker owns two output buffers and waits until one of them is free, so no more than two blocks a worker are ever on their way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from plait.engine.blockrun import Array
from plait.engine.faults import named
from plait.engine.lanes import FOR_WORK, WRITING, Lane, Lanes
from plait.engine.sink import Sink


class Ticket:
    """One block on its way."""

    __slots__ = ("_done",)

    def __init__(self) -> None:
        """Not written yet."""
        self._done = threading.Event()

    def wait(self) -> None:
        """Until the block is written, or given up."""
        self._done.wait()

    def set(self) -> None:
        """The buffer is free again."""
        self._done.set()


class WriteBehind:
    """Threads that write blocks to a sink, in the order in which they come.

    Args:
        sink: takes the bytes.
        threads: how many write at once.
        written: called after each block with its bytes, from a writing thread.
        lanes: of the run, to which the threads add theirs.
    """

    def __init__(self, sink: Sink, threads: int, written: Callable[[int], None], lanes: Lanes | None = None) -> None:
        """Start the threads."""
        self._sink, self._written, self._lanes = sink, written, lanes or Lanes()
        mine = [self._lanes.lane(f"writer {i}") for i in range(1, threads + 1)]
        self._queue: queue.SimpleQueue[tuple[str, int, int, Array, bytes, Ticket] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, args=(lane,), name=f"plait-write-{lane.number}", daemon=True) for lane in mine]
        for thread in self._threads:
            thread.start()

    def write(self, tensor: str, shard: int, offset: int, data: Array, known: bytes = b"") -> Ticket:
        """Have bytes of a tensor written, with their digest where it is known; they must not change until the ticket is done.

        Raises:
            BaseException: what went wrong with an earlier block.
        """
        self.check()
        ticket = Ticket()
        self._queue.put((tensor, shard, offset, data, known, ticket))
        return ticket

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until everything is written, and end the threads; harmless when called again."""
        for _ in self._threads:
            self._queue.put(None)
        interrupted: BaseException | None = None
        while self._threads:
            try:
                self._threads[-1].join()
                self._threads.pop()
            except KeyboardInterrupt as error:  # what they write to must not be closed under them
                self.give_up(error)
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def give_up(self, error: BaseException) -> None:
        """Write nothing that is still waiting."""
        with self._lock:
            self._error = self._error or error

    def _work(self, lane: Lane) -> None:
        self._lanes.sit(lane)
        while (item := self._queue.get()) is not None:
            tensor, shard, offset, data, known, ticket = item
            lane.task = tensor
            lane.switch(WRITING)
            try:
                if self._error is None:
                    with named(tensor):
                        self._sink.write(shard, offset, data, known)
                        self._written(data.nbytes)
            except BaseException as error:
                self.give_up(error)
            finally:
                lane.switch(FOR_WORK)
                ticket.set()
