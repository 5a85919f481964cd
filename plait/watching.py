"""One command as a whole process: how long it takes on the clock and on the processors, and how much private memory (RssAnon) it has at most.

    python -m plait.watching REQUEST ANSWER      is how `watch_each(..., through=...)` measures below a command that comes first

Private memory is sampled, so a peak shorter than the interval can be missed; pages of the page cache do not count.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from plait.ops.errors import KernelError

SAMPLE_S = 0.004
_GRACE_S = 5.0  #: for a command that is asked to end, before it is made to


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Attributes:
        words: of its command line.
        environment: variables beside those of this process.
        folder: to run it in; None for the current one.
        limit_s: seconds after which it is stopped.
        every_s: seconds between samples of its memory.
    """

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    limit_s: float | None = None
    every_s: float = SAMPLE_S


@dataclass(frozen=True, slots=True)
class Watched:
    """One process from its start to its end.

    Attributes:
        status: its exit status; None where it was stopped at its time limit.
        wall_s: seconds on the clock.
        cpu_s: seconds of all its threads, and of processes that it started and waited for.
        peak_bytes: most private memory of any sample, imports included.
        output: what it printed.
    """

    status: int | None
    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


def private_bytes(pid: int) -> int:
    """Private memory of a process in bytes; 0 when it has ended, or where the system does not say."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ProcessLookupError):
        pass
    return 0


def watch(command: Command) -> Watched:
    """Run a command to its end, or to its time limit.

    It has a session of its own, so that it ends with all that it started, and Ctrl-C in a terminal reaches the caller alone, which ends it.

    Raises:
        OSError: it cannot be started.
    """
    peak = 0
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = _start(command, log.fileno())
        stopped = False
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                peak = max(peak, private_bytes(process.pid))
                if command.limit_s is not None and time.perf_counter() - begun > command.limit_s and not stopped:
                    stopped = True
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(command.every_s)
            process.returncode = os.waitstatus_to_exitcode(ended[1])
        except BaseException:
            _end(process)
            raise
        wall = time.perf_counter() - begun
        log.seek(0)
        said = log.read().decode(errors="replace")
    return Watched(None if stopped else process.returncode, wall, ended[2].ru_utime + ended[2].ru_stime, peak, said)


def watch_each(commands: Sequence[Command], through: Sequence[str] = ()) -> list[Watched]:
    """Run commands one after another, up to the first that fails or is stopped.

    Args:
        commands: to run.
        through: a command that is put before the process that measures them, such as `nice` or `taskset -c 0` or one that waits for a
            lock; its own time does not count.

    Raises:
        OSError: one cannot be started.
        KernelError: `through` did not run them.
    """
    if through:
        return _through(commands, through)
    found: list[Watched] = []
    for command in commands:
        found.append(watch(command))
        if found[-1].status != 0:
            break
    return found


def variables(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that a measured command runs in: this one, and more.

    Its bytecode is kept, as that of an installed package is. A shell that forbids it (`PYTHONDONTWRITEBYTECODE`) would have every run from
    a working tree compile 150 modules first, a fifth of a second.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **(more or {})}


def _start(command: Command, log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.words, cwd=command.folder, env=variables(command.environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Has a process and its session end: asked first, then made to."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _through(commands: Sequence[Command], through: Sequence[str]) -> list[Watched]:
    """Measures in a process of its own, which the command before it starts when it likes."""
    with tempfile.TemporaryDirectory(prefix="plait-watch-") as scratch, tempfile.TemporaryFile() as log:
        request, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        request.write_text(json.dumps([asdict(c) for c in commands]))
        process = _start(Command((*through, sys.executable, "-m", "plait.watching", str(request), str(answer))), log.fileno())
        try:
            process.wait()
        except BaseException:
            _end(process)
            raise
        if not answer.exists():
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-1500:]
            raise KernelError(f"`{' '.join(through)}` ended with status {process.returncode} and measured nothing: {said or 'it said nothing'}")
        return [Watched(**found) for found in json.loads(answer.read_text())]


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


def main(request: Path, answer: Path) -> None:
    """Measures what a request asks for; whoever ends this process ends what it measures."""
    signal.signal(signal.SIGTERM, _leave)
    commands = [Command(**wanted) for wanted in json.loads(request.read_text())]
    answer.write_text(json.dumps([asdict(found) for found in watch_each(commands)]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
