"""The most private memory that one call takes, in a fresh process.

A sampler alone misses short peaks when other processes keep it from running, so the kernel's own high
water is asked too. That one counts pages of files besides: those resident at the end are taken off,
which are at least as many as at the peak, since libraries are only ever read in.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

needs_rss_anon = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is read from /proc")

_MEASURE = """
import json, sys, threading, time
import torch
def kept(name):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(name + ":"))
torch.set_num_threads(1)
{setup}
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the high water begins anew
base = peak = kept("RssAnon")
done = threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, kept("RssAnon"))
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
result = {work}
done.set()
watcher.join()
peak = max(peak, kept("VmHWM") - kept("RssFile") - kept("RssShmem"))
print(json.dumps(peak - base))
"""


def measured_bytes(setup: str, work: str) -> int:
    """Growth of private memory at its peak during `work`, an expression, after the statements of `setup`; torch is imported and has one thread."""
    done = subprocess.run([sys.executable, "-c", _MEASURE.format(setup=setup, work=work)], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))
