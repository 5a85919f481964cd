"""What Ctrl-C and a request to end mean for a merge: the first finishes the blocks in hand, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from plait.ops.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second ends the process, which is safe: the journal is valid at every instant.

    Where signals cannot be caught (outside the main thread) nothing changes.

    Raises:
        Stopped: as the block raised it, with the exit status of the signal.
    """
    stop = threading.Event()
    caught: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            os.write(2, (b"\x1b[?25h" if sys.stderr.isatty() else b"") + b"plait: left at once; the same command continues what was finished\n")
            os._exit(128 + number)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # whoever ignores one, as nohup does, means it
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield stop
    except Stopped as error:
        error.exit_status = 128 + caught[0] if caught else error.exit_status
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
