"""`python -m plait` is the command `plait`."""

import atexit
import os
import signal
import sys
import threading
from typing import Any


def _command_line() -> Any:
    """The command line; Ctrl-C in the tenths of a second that its imports take is told as it is later."""
    try:
        from plait.cli import main
    except KeyboardInterrupt:
        print("plait: interrupted; nothing was changed", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    return main


def command() -> None:
    """Run the command line, and leave without taking the interpreter apart: its hundreds of modules would take 40 ms, a fortieth of a merge."""
    try:
        _command_line()()
    except SystemExit as end:
        others = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
        if others or not (end.code is None or isinstance(end.code, int)):
            raise
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # Python says that a pipe is closed, as for every program
            raise end from None
        os._exit(end.code or 0)


if __name__ == "__main__":  # or run by another program, which goes on afterwards
    (command if sys.orig_argv[1:3] == ["-m", "plait"] else _command_line())()
