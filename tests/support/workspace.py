"""The most private memory that one call takes, in a fresh process.

A sampler alone misses short peaks when other processes keep it from running, so the kernel's own high
water is asked too. That one counts pages of files besides: the most that were resident at any time are
taken off. Libraries are only ever read in, so these are those of the end, or of before the system took some back.
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
files = kept("RssFile")
done = threading.Event()
def watch():
    global peak, files
    while not done.is_set():
        peak, files = max(peak, kept("RssAnon")), max(files, kept("RssFile"))
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
result = {work}
done.set()
watcher.join()
peak = max(peak, kept("VmHWM") - max(files, kept("RssFile")) - kept("RssShmem"))
print(json.dumps(peak - base))
"""


def measured_bytes(setup: str, work: str) -> int:
    """Growth of private memory at its peak during `work`, an expression, after the statements of `setup`; torch is imported and has one thread."""
    done = subprocess.run([sys.executable, "-c", _MEASURE.format(setup=setup, work=work)], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))
