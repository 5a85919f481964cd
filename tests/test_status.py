"""`plait status`: nothing, running, interrupted, whole or somebody else's, and how to go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kill_loop
from click.testing import CliRunner

import plait
from plait.cli import main
from plait.keeping import status
from support import tiny

RUNNING = """
import sys, time
from plait.engine import commits, shardfile
commits.Commits.__init__.__defaults__ = (0.01, 1)
write, calls = shardfile.ShardFile.write, []
def slow(*args):
    calls.append(1)
    if len(calls) == 5:
        time.sleep(0.3)
        print("slow", flush=True)
        sys.stdin.read()
    write(*args)
shardfile.ShardFile.write = slow
from plait.cli import main
main()
"""


def said(out: Path) -> str:
    return CliRunner().invoke(main, ["status", str(out)]).stdout


def test_life_of_an_output(tmp_path: Path):
    """From nothing to whole; the lock tells running from interrupted, and the figures are those of the journal."""
    models = tiny.write_set(tmp_path / "models", shapes=kill_loop.SHAPES)
    path, out = tmp_path / "r.yml", tmp_path / "out"
    path.write_text(tiny.recipes(models)["linear"])
    assert status(out).state == "nothing"
    assert said(out) == f"{out}: nothing is there\n"
    command = [sys.executable, "-c", RUNNING, "merge", str(path), str(out), "--memory", "256MiB", "--workers", "1", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"slow\n"
        found = status(out)
        assert (found.state, found.title, found.recipe) == ("running", "linear", str(path))
        assert 0 < found.done_bytes < found.total_bytes
        assert "running, linear from" in said(out)
        process.kill()
        process.wait()
    found = status(out)
    assert found.state == "interrupted"
    lines = said(out).splitlines()
    assert lines[0].startswith(f"{out}: interrupted at ")
    assert lines[0].endswith(f", linear from {path}")
    assert f"`plait merge {path} {out}` continues, --restart begins anew, `rm -r {tmp_path}/.out.plait-partial` drops it" in lines[1]
    data = json.loads(CliRunner().invoke(main, ["status", str(out), "--format", "json"]).stdout)
    assert data["done_bytes"] == found.done_bytes
    assert plait.merge(path, out, memory="256MiB").bytes_resumed == found.done_bytes
    found = status(out)
    assert (found.state, found.done_bytes, found.whole) == ("whole", found.total_bytes, True)
    assert f"`plait verify {out}` reads it again" in said(out)


def test_somebody_elses(tmp_path: Path):
    """A folder that plait did not write is said to be one, an empty folder is nothing."""
    (tmp_path / "mine").mkdir()
    assert status(tmp_path / "mine").state == "nothing"
    (tmp_path / "mine" / "x").write_text("")
    assert status(tmp_path / "mine").state == "other"
    assert status(tmp_path / "mine" / "x").state == "other"


def test_what_kills_leave(tmp_path: Path):
    """A run killed before anything was durable, one killed between exchanging and removing the old output, and one between two renames."""
    out, partial, old = tmp_path / "out", tmp_path / ".out.plait-partial", tmp_path / ".out.plait-old"
    partial.mkdir()
    lines = said(out).splitlines()
    assert lines[0] == f"{out}: interrupted before anything was finished"
    assert lines[1] == f"the same command begins anew, `rm -r {partial}` drops it"
    models = tiny.write_set(tmp_path / "models", experts=1)
    (tmp_path / "r.yml").write_text(tiny.recipes(models)["passthrough"])
    plait.merge(tmp_path / "r.yml", out, memory="256MiB")
    partial.mkdir()
    assert said(out).splitlines()[1] == f"`rm -r {partial}` drops what a killed run left beside it"
    partial.rmdir()
    out.rename(old)
    assert said(out) == f"{out}: interrupted while its old output was replaced; that lies whole in {old}, and the next merge puts it back first\n"
    assert "rm" not in said(out)


def test_odd_paths(tmp_path: Path):
    """Whatever a path holds, what is said of it can be printed, and a shell can take the advice as it stands."""
    out = tmp_path / "a b\n\x1b[31m"
    (tmp_path / f".{out.name}.plait-partial").mkdir()
    lines = said(out).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert "a b\\n\\x1b[31m" in lines[0]
    assert "`rm -r '" in lines[1]
    assert CliRunner().invoke(main, ["status", "/"]).exit_code == 2
