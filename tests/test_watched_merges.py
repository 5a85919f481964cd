"""What is seen of a merge while it runs: on a terminal, in a log, as JSON, from Python, and as a trace."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import plait
from plait.engine import told
from plait.engine.events import Quiet
from plait.engine.moments import Sample, Step, Task
from plait.engine.trace import Trace
from plait.ops.errors import OutputError
from support import tiny

TWO = plait.Options(memory="256MiB", workers=2)
SCHEMA = json.loads(Path(told.__file__).with_name("events.schema.json").read_text())
#: A merge in which every read takes a while, so that there is something to see; and a line comes every half second.
SLOW = """
import os, time
real = os.preadv
def slow(*args):
    time.sleep(0.1)
    return real(*args)
os.preadv = slow
import plait.following
plait.following._LINE_S = 0.5
plait.following.PlainLines.__init__.__defaults__ = (0.5,)
from plait.cli import main
main()
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    models = tiny.write_set(tmp_path / "models")

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.yml"
        path.write_text(tiny.recipes(models)[name])
        return path

    return write


def on_a_terminal(arguments: list[str], rows: int, columns: int, during: Callable[[subprocess.Popen[bytes], int, str], None] | None = None) -> tuple[int, str]:
    """Exit status of a merge and all that it drew on a terminal of some size; `during` is called with what there is, again and again."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([ours], [], [], 0.2)
        try:
            seen += os.read(ours, 65536) if ready else b""
        except OSError:  # the last of them has gone
            break
        if during is not None:
            during(process, ours, seen.decode(errors="replace"))
    os.close(ours)
    return process.wait(10), seen.decode()


def lines_of(seen: str) -> list[str]:
    return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPES.sub("", seen))]


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (4, 40), (50, 200)])
def test_a_live_view_on_a_terminal(rows: int, columns: int, recipe: Callable[[str], Path], tmp_path: Path):
    """Progress, memory and workers within the terminal's size, drawn a few times a second; the cursor comes back and the last line stays."""
    begun = time.monotonic()
    status, seen = on_a_terminal(["merge", str(recipe("ties")), str(tmp_path / "out"), "--memory", "256MiB"], rows, columns)
    passed = time.monotonic() - begun
    assert status == 0
    lines = lines_of(seen)
    assert max(len(line) for line in lines if line.startswith(("ties", "memory", "workers", " "))) <= columns
    assert any("ties" in line and "%" in line for line in lines)
    tall = rows >= 6
    assert any(line.startswith("memory") and "MiB" in line for line in lines) is tall
    assert any(line.startswith("workers") and "reading" in line for line in lines) is tall
    assert 2 <= sum("%" in line and line.startswith("ties") for line in lines) <= 5 * passed + 3
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert "written" in ESCAPES.sub("", seen[seen.rindex("\x1b[?25h") :])
    assert "Traceback" not in seen


def test_a_terminal_that_changes_its_size(recipe: Callable[[str], Path], tmp_path: Path):
    """The view follows."""
    sizes = iter([(20, 50), (3, 20), (40, 120)])

    def resize(process: subprocess.Popen[bytes], terminal: int, seen: str) -> None:
        if "memory" in seen and (size := next(sizes, None)) is not None:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    status, seen = on_a_terminal(["merge", str(recipe("ties")), str(tmp_path / "out"), "--memory", "256MiB"], 24, 80, resize)
    assert status == 0
    assert next(sizes, None) is None
    assert "Traceback" not in seen


def test_ctrl_c_leaves_the_terminal_clean(recipe: Callable[[str], Path], tmp_path: Path):
    """The view goes, the cursor comes back, and one line says how to go on."""
    pressed: list[float] = []

    def press(process: subprocess.Popen[bytes], terminal: int, seen: str) -> None:
        if "workers" in seen and not pressed:
            os.write(terminal, b"\x03")
            pressed.append(time.monotonic())

    status, seen = on_a_terminal(["merge", str(recipe("ties")), str(tmp_path / "out"), "--memory", "256MiB"], 24, 80, press)
    assert status == 128 + signal.SIGINT
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    after = ESCAPES.sub("", seen[seen.rindex("\x1b[?25h") :])
    assert "plait: the run was stopped before it was finished" in after
    assert "Traceback" not in seen


def run_slowly(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SLOW, *arguments], capture_output=True, text=True, timeout=120)


def test_plain_lines_where_there_is_no_terminal(recipe: Callable[[str], Path], tmp_path: Path):
    """One every so often, without a control character; --quiet says nothing; a quick merge has but its last line."""
    found = run_slowly("merge", str(recipe("ties")), str(tmp_path / "out"), "--memory", "256MiB")
    assert found.returncode == 0, found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("ties: ")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"ties: \d+%, \d of 7 tensors, .* of .*, .*/s, [\d:]+ left; .* leased, .* used of 256 MiB", line)
    assert " written, " in found.stderr
    assert "\x1b" not in found.stderr
    quiet = run_slowly("merge", str(recipe("ties")), str(tmp_path / "quiet"), "--memory", "256MiB", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_streaming_merge_without_a_terminal_imports_no_rich(recipe: Callable[[str], Path], tmp_path: Path):
    """Nobody would see it."""
    script = "import sys\nfrom plait.cli import main\ntry: main()\nfinally: print('rich.live' in sys.modules, file=sys.stdout)"
    command = [sys.executable, "-c", script, "merge", str(recipe("linear")), str(tmp_path / "out"), "--memory", "256MiB"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


# -- events for machines ----------------------------------------------------------------------------
def checked(events: list[dict[str, Any]]) -> None:
    """True to the schema, in order of time, with a beginning and an end; what begins ends."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for event in events:
        validator.validate(event)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "done"
    open_tasks: set[int] = set()
    for event in events:
        if event["event"] == "task_started":
            open_tasks.add(event["task"])
        elif event["event"] in ("pass_started", "pass_finished"):
            assert event["task"] in open_tasks
        elif event["event"] == "task_finished":
            open_tasks.remove(event["task"])
    assert not open_tasks
    counts = Counter(kinds)
    assert counts["pass_started"] == counts["pass_finished"]
    last = [event for event in events if event["event"] == "sample"][-1]
    assert last["done_read_bytes"] == events[0]["predicted_read_bytes"]
    assert last["done_written_bytes"] == events[0]["predicted_written_bytes"]


@pytest.mark.parametrize("name", ["linear", "ties", "ties_global", "passthrough", "iso_c"])
def test_events_from_python(name: str, recipe: Callable[[str], Path], tmp_path: Path):
    """`on_event` gets dictionaries that JSON holds, for every kind of plan."""
    heard: list[dict[str, Any]] = []
    plait.merge(recipe(name), tmp_path / "out", TWO, on_event=heard.append)
    checked(json.loads(json.dumps(heard)))
    assert sorted(e["tensor"] for e in heard if e["event"] == "tensor_complete") == sorted(tiny.SHAPES)


def test_events_as_lines(recipe: Callable[[str], Path], tmp_path: Path):
    """A file beside the usual words, or standard error without them."""
    log = tmp_path / "log.jsonl"
    found = run_slowly("merge", str(recipe("linear")), str(tmp_path / "one"), "--memory", "256MiB", "--log-json", str(log))
    assert "written" in found.stderr
    checked([json.loads(line) for line in log.read_text().splitlines()])
    found = run_slowly("merge", str(recipe("linear")), str(tmp_path / "two"), "--memory", "256MiB", "--log-json", "-")
    checked([json.loads(line) for line in found.stderr.splitlines()])
    nowhere = run_slowly("merge", str(recipe("linear")), str(tmp_path / "three"), "--log-json", str(tmp_path / "no" / "log"))
    assert nowhere.returncode == 2
    assert "cannot write the log" in nowhere.stderr


def test_a_log_that_breaks_does_not_end_the_run(recipe: Callable[[str], Path], tmp_path: Path):
    """A full disk for the log is told at the end; the output is whole."""
    found = run_slowly("merge", str(recipe("linear")), str(tmp_path / "out"), "--memory", "256MiB", "--log-json", "/dev/full")
    assert found.returncode == 0
    assert "/dev/full: the log ends early" in found.stderr
    assert (tmp_path / "out" / "plait.json").exists()


def test_an_error_is_an_event(recipe: Callable[[str], Path], tmp_path: Path):
    """A listener that raises ends the run, and the others hear why."""
    heard: list[dict[str, Any]] = []

    class Broken(Quiet):
        def task_finished(self, task: Task) -> None:
            raise RuntimeError("no ink")

    with pytest.raises(plait.KernelError, match="no ink"):
        plait.merge(recipe("linear"), tmp_path / "out", TWO, events=Broken(), on_event=heard.append)
    assert heard[-1]["event"] == "failed"
    assert "no ink" in heard[-1]["message"]
    assert not (tmp_path / "out").exists()


def test_hooks_are_called_one_at_a_time_and_nested(recipe: Callable[[str], Path], tmp_path: Path):
    """From several threads, never two at once."""
    within = 0

    class Nosy(Quiet):
        def _look(self) -> None:
            nonlocal within
            within += 1
            time.sleep(0.001)
            assert within == 1
            within -= 1

        def pass_started(self, step: Step) -> None:
            self._look()

        def progress(self, read: int, written: int) -> None:
            self._look()

        def sampled(self, sample: Sample) -> None:
            self._look()

    plait.merge(recipe("ties"), tmp_path / "out", plait.Options(memory="256MiB", workers=4), events=Nosy())


# -- traces -----------------------------------------------------------------------------------------
def checked_trace(path: Path) -> list[dict[str, Any]]:
    """Loads; slices of a thread follow one another; tensors begin before they end; counters go on in time."""
    events = json.loads(path.read_text())
    ends: dict[int, float] = defaultdict(float)
    levels: dict[str, float] = defaultdict(float)
    begun: dict[int, float] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= ends[event["tid"]] - 1e-3
            assert event["dur"] > 0
            ends[event["tid"]] = event["ts"] + event["dur"]
        elif event["ph"] == "C":
            assert event["ts"] >= levels[event["name"]]
            levels[event["name"]] = event["ts"]
        elif event["ph"] == "b":
            begun[event["id"]] = event["ts"]
        elif event["ph"] == "e":
            assert event["ts"] >= begun.pop(event["id"])
    assert not begun
    assert levels
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    assert set(ends) <= named
    return events


@pytest.mark.parametrize("name", ["linear", "ties_global", "iso_c", "passthrough"])
def test_a_trace_is_valid(name: str, recipe: Callable[[str], Path], tmp_path: Path):
    """For every kind of plan; it accounts for the time of the threads that the report has."""
    plait.merge(recipe(name), tmp_path / "out", TWO, trace=tmp_path / "trace.json")
    events = checked_trace(tmp_path / "trace.json")
    told_s = {lane["name"]: lane["seconds"] for lane in plait.report(tmp_path / "out")["lanes"]}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for state in ("reading", "writing"):
        for tid, lane in names.items():
            traced = sum(e["dur"] for e in events if e["ph"] == "X" and e["tid"] == tid and e["name"] == state) / 1e6
            assert traced == pytest.approx(told_s[lane][state], abs=2e-3), (lane, state)


def test_a_trace_stays_small(recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slices are put together once there are many, and their times are not lost."""
    monkeypatch.setattr("plait.engine.trace._MANY", 20)
    monkeypatch.setattr("plait.engine.trace._LATER", 10)
    monkeypatch.setattr("plait.engine.trace._FINEST_NS", 1)
    trace = Trace(tmp_path / "trace.json", 0.0)
    trace.started(plait.plan(recipe("linear"), TWO))
    from plait.engine.lanes import READING, WRITING, Lane

    lane = Lane("w", 0)
    for n in range(20_000):
        trace.slice(lane, READING if n % 2 else WRITING, n * 1000, (n + 1) * 1000)
    trace.__exit__(None, None, None)
    slices = [e for e in json.loads((tmp_path / "trace.json").read_text()) if e["ph"] == "X"]
    assert len(slices) < 300
    assert sum(e["dur"] for e in slices) == pytest.approx(20_000)


def test_a_trace_that_cannot_be_written(recipe: Callable[[str], Path], tmp_path: Path):
    """Where it cannot begin nothing is computed; where it cannot go on the output is whole all the same, and that is said."""
    with pytest.raises(OutputError, match="cannot write the trace"):
        plait.merge(recipe("linear"), tmp_path / "out", TWO, trace=tmp_path / "no" / "trace.json")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="the output itself is in place"):
        plait.merge(recipe("linear"), tmp_path / "out", TWO, trace="/dev/full")
    assert (tmp_path / "out" / "plait.json").exists()
