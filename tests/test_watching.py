"""A watched command: its end, its time limit, what comes before it, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.ops.errors import KernelError
from plait.watching import Command, watch, watch_each


def test_what_a_command_took(tmp_path: Path):
    """Status, words, memory and processor time of the command itself, in the folder and with the variables that it was given."""
    code = "import os, sys, time; x = bytearray(b'1') * (64 << 20); print(os.getcwd(), os.environ['MARK'], flush=True); time.sleep(0.2); sys.exit(3)"
    found = watch(Command((sys.executable, "-c", code), {"MARK": "here"}, str(tmp_path)))
    assert (found.status, found.output) == (3, f"{tmp_path} here\n")
    assert found.peak_bytes > 64 << 20
    assert 0 < found.cpu_s < found.wall_s + 1


def test_the_limit_ends_it_and_what_it_started():
    """A shell and its child are gone; the commands after it do not run."""
    first, *rest = watch_each([Command(("sh", "-c", "sleep 61 & wait"), limit_s=0.3), Command(("true",))])
    assert first.status is None
    assert first.wall_s < 10
    assert not rest
    assert "sleep 61" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()


def test_a_command_before_it_does_not_count(tmp_path: Path):
    """Measured below another command, whose own seconds are not among them; up to the first that fails."""
    before = tmp_path / "later"
    before.write_text('#!/bin/sh\nsleep 0.7\nexec "$@"\n')
    before.chmod(0o755)
    found = watch_each([Command(("true",)), Command(("false",)), Command(("true",))], (str(before),))
    assert [f.status for f in found] == [0, 1]
    assert found[0].wall_s < 0.6


def test_a_command_before_it_that_runs_nothing_is_named():
    """Its status and last words are in the message."""
    with pytest.raises(KernelError, match=r"`sh -c echo no; exit 4` ended with status 4 and measured nothing: no"):
        watch_each([Command(("true",))], ("sh", "-c", "echo no; exit 4"))


def test_whoever_ends_the_caller_ends_the_command(tmp_path: Path):
    """An interrupt of the process that watches reaches what runs below a command before it."""
    mark = tmp_path / "pid"
    inner = f"import os, pathlib, time; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = f"import sys; from plait.watching import *; watch_each([Command((sys.executable, '-c', {inner!r}))], ('nice',))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (mark.exists() and mark.read_text()):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    pid = int(mark.read_text())
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < until, os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
