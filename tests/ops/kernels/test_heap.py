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


_DECOMPOSE = """
import json, threading
import torch
from plait.engine import whole
from plait.ops.kernels.heap import give_back, keep_large_apart

def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

if not {freed}:
    whole.free_buffers = lambda *, all_threads: None
keep_large_apart()
torch.set_num_threads(2)
base = anonymous()
gate, ended = threading.Barrier(3), threading.Barrier(3)

def work():
    with turn, whole.torch_threads(one=False):
        torch.linalg.eigh(torch.eye(1024, dtype=torch.float64))
        torch.mm(torch.ones(2048, 1024), torch.ones(1024, 2048))
    gate.wait()
    ended.wait()

turn = threading.Lock()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
gate.wait()
give_back()
print(json.dumps(anonymous() - base))
ended.wait()
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="MKL is what torch brings for x86")
def test_the_matrix_library_keeps_no_buffers():
    """Two threads that decompose in turn keep nothing to speak of between the ops, as long as they live; without the call each keeps its buffers."""
    grown = [
        int(json.loads(subprocess.run([sys.executable, "-c", _DECOMPOSE.format(freed=freed)], capture_output=True, text=True, check=True).stdout))
        for freed in (True, False)
    ]
    assert grown[0] < 8 << 20
    assert grown[1] > grown[0] + (6 << 20)
