"""Kill merges with SIGKILL, at random moments and at each named step of publication, and see that nothing is lost and nothing lies.

    python tests/kill_loop.py --count 200 --seed 1

After every kill the destination is absent or verifies whole; then the same merge, under another budget and number of workers, ends with the
bytes of a run that nobody disturbed. Exits 1 at the first exception, with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("PLAIT_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "kernels"))

import plait
from plait.keeping import status, verify
from support import tiny

#: Several blocks of 2^20 elements in one tensor, one in another, and small ones.
SHAPES = {"model.embed_tokens.weight": (2500, 1000), "model.layers.0.mlp.up_proj.weight": (1200, 1000), "model.norm.weight": (70,), "lm_head.weight": (50, 70)}
METHODS = ("linear", "ties", "ties_global", "della", "slerp", "passthrough", "linear_wsc")
BUDGETS, WORKERS = ("96MiB", "160MiB", "400MiB"), (1, 2, 3)
#: Where a merge kills itself: before the n-th call of a function of the run's last part, or of the journal.
STEPS = (
    ("engine.journal", "JournalWriter.append", 1),
    ("engine.journal", "JournalWriter.append", 2),
    ("engine.journal", "_sync_folder", 1),
    ("engine.partial", "Partial.settle", 1),
    ("engine.writer", "finish_folder", 1),
    ("engine.publish", "_write_side", 1),
    ("engine.publish", "_write_side", 4),
    ("engine.writer", "manifest", 1),
    ("engine.publish", "sync_folder", 1),
    ("engine.writer", "place_folder", 1),
    ("engine.publish", "sync_folder", 2),
    ("engine.writer", "OutputFolder._close", 1),
    ("engine.publish", "DestinationLock.release", 1),
)
#: The same for merges that replace an old output, by an exchange of names or by two renames.
REPLACING = (
    ("engine.writer", "replace_folder", 1),
    ("engine.publish", "exchange", 1),
    *(("engine.publish", "os.rename", n) for n in (1, 2, 3, 4)),
    ("engine.publish", "sync_folder", 3),
    ("engine.publish", "remove_working", 1),
    ("engine.publish", "shutil.rmtree", 1),
    ("engine.writer", "OutputFolder._close", 1),
)
CHILD = """
import importlib, os, sys, time
from plait.engine import commits, shardfile
commits.Commits.__init__.__defaults__ = (0.02, 1 << 20)
write = shardfile.ShardFile.write
def slowly(*args):
    time.sleep({delay})
    write(*args)
shardfile.ShardFile.write = slowly
from plait.engine import publish
if {aside}:
    publish.exchange = lambda one, other: False
module, name, left = {step!r}
if left:
    home = importlib.import_module("plait." + module)
    *owners, last = name.split(".")
    for owner in owners:
        home = getattr(home, owner)
    function = getattr(home, last)
    def stepping(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    setattr(home, last, stepping)
from plait.cli import main
print("running", flush=True)
main()
"""


class Loop:
    """Recipes over one set of tiny models, with the bytes that undisturbed runs give.

    Args:
        folder: to work in.
        seed: of everything that is drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw, self.seen = folder, random.Random(seed), Counter[str]()
        models = tiny.write_set(folder / "models", shapes=SHAPES)
        self.recipes = {name: folder / f"{name}.yml" for name in METHODS}
        self.expected: dict[str, bytes] = {}
        for name, path in self.recipes.items():
            path.write_text(tiny.recipes(models)[name])

    def reference(self, name: str) -> bytes:
        """What an undisturbed run gives."""
        if name not in self.expected:
            out = self.folder / f"good-{name}"
            plait.merge(self.recipes[name], out, memory="256MiB")
            self.expected[name] = (out / "model.safetensors").read_bytes()
        return self.expected[name]

    def one(self, number: int) -> None:
        """One merge that is killed: into a new folder or, every third, over an old output."""
        if number % 3 == 2:
            self.replacing(number)
        else:
            self.fresh(number)

    def replacing(self, number: int) -> None:
        """Kill a merge over an old output: that one or the new one is there whole at every instant, and then the same command ends well."""
        name, other = self.draw.sample(METHODS, 2)
        old, new, out = self.reference(other), self.reference(name), self.folder / "out"
        shutil.copytree(self.folder / f"good-{other}", out)
        step = REPLACING[number // 6 % len(REPLACING)] if number % 2 else ("", "", 0)
        self.killed(name, out, step, "--overwrite")
        aside = self.folder / ".out.plait-old"
        there = out if out.exists() else aside  # between two renames
        verify(there)
        held = (there / "model.safetensors").read_bytes()
        assert held in (old, new) if there is out else held == old
        self.seen["old was put aside" if there is aside else "new was in place" if held == new else "old was in place"] += 1
        options = plait.Options(memory=self.draw.choice(BUDGETS), workers=self.draw.choice(WORKERS), overwrite=True)
        self.seen["continued"] += plait.merge(self.recipes[name], out, options).bytes_resumed > 0
        self.finished(name, out)

    def fresh(self, number: int) -> None:
        """Kill a merge into a new folder, perhaps once more while it is continued, and finish it."""
        name, out = self.draw.choice(METHODS), self.folder / "out"
        self.reference(name)
        step = STEPS[number // 2 % len(STEPS)] if number % 2 else ("", "", 0)
        for again in range(self.draw.choice((1, 1, 2))):
            self.killed(name, out, step if not again else ("", "", 0))
            if out.exists():
                verify(out)
                self.seen["was whole"] += 1
                break
        if not out.exists():
            self.seen[status(out).state] += 1
            options = plait.Options(memory=self.draw.choice(BUDGETS), workers=self.draw.choice(WORKERS))
            report = plait.merge(self.recipes[name], out, options)
            self.seen["continued"] += report.bytes_resumed > 0
            assert report.bytes_resumed + report.bytes_written == sum(2 * a * (b or [1])[0] for a, *b in SHAPES.values())
        self.finished(name, out)

    def finished(self, name: str, out: Path) -> None:
        """An output is what an undisturbed run gives, and nothing else is left."""
        assert (out / "model.safetensors").read_bytes() == self.expected[name], f"{name}: other bytes than an undisturbed run"
        verify(out)
        left = {p for p in tiny.leftovers(out) if p != "out"} - {".out.plait-lock"}
        assert not left, left
        shutil.rmtree(out)

    def killed(self, name: str, out: Path, step: tuple[str, str, int], *more: str) -> None:
        """One process, killed by itself at a step or by us at a random moment."""
        script = CHILD.format(step=step, delay=self.draw.choice((0.01, 0.03, 0.08)), aside=self.draw.random() < 0.5)
        options = ["--memory", self.draw.choice(BUDGETS), "--workers", str(self.draw.choice(WORKERS)), "--quiet", *more]
        command = [sys.executable, "-c", script, "merge", str(self.recipes[name]), str(out), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            if not step[2]:
                time.sleep(self.draw.uniform(0.02, 0.8))
                process.send_signal(signal.SIGKILL)
            said = process.stderr.read().decode()
            ended = process.wait(60)
        assert ended in (0, -signal.SIGKILL), said
        self.seen["killed"] += ended != 0
        self.seen[f"{name} killed"] += ended != 0


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    """The whole loop; what was seen how often."""
    loop = Loop(folder, seed)
    for number in range(count):
        try:
            loop.one(number)
        except BaseException:
            print(f"kill {number} of seed {seed} failed; the files are in {folder}", file=sys.stderr)
            raise
    return loop.seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(dict(run(Path(scratch), chosen.count, chosen.seed)))
