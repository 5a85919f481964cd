"""What every test may use: the helpers under `tests/support`, and where the reference outputs lie."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import plait.engine.compile

sys.path.insert(0, str(Path(__file__).parent))  # `import support.…` under --import-mode=importlib
plait.engine.compile.compile_here = True  # quicker for many kernels; the command-line tests see the other way
os.environ.setdefault("PLAIT_VERIFY", "1")  # every program that a test lowers is checked against the planner's rules
os.environ.setdefault("PLAIT_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "kernels"))  # compile once for all tests, and leave the user's cache alone
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for jobs that a shell starts in the background; tests of Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)
