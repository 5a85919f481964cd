"""Freed memory leaves the process."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

_CHURN = """
import json, sys, threading
import numpy as np
from plait.ops.kernels.heap import keep_large_apart

def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

if {apart}:
    keep_large_apart()
base = anonymous()
small = []

def churn():
    for megabytes in (30, 25, 20, 15, 10):
        matrix = np.ones(megabytes << 17)
        small.append(np.ones(1000))  # lies behind the matrix, wherever that came from the heap
        del matrix

threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(anonymous() - base))
"""


def kept(*, apart: bool) -> int:
    """Bytes that stay in a process whose threads made and freed matrices, with small arrays between them."""
    done = subprocess.run([sys.executable, "-c", _CHURN.format(apart=apart)], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what other C libraries keep is not known")
def test_large_arrays_leave_nothing_behind():
    """Matrices that are kept apart are gone when they are freed, even with small arrays made after them; otherwise their memory stays."""
    assert kept(apart=True) < 2 << 20
    assert kept(apart=False) > 10 << 20
