"""Ctrl-C and requests to end, in each part of a run: the message, the exit status, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plait.keeping import status, verify
from support import tiny

#: A merge that says `here` and waits for its standard input to end before it calls the function at `module`, `name`.
DWELLING = """
import importlib, sys
home = importlib.import_module(sys.argv[1])
real = getattr(home, sys.argv[2])
def dwelling(*args, **kwargs):
    setattr(home, sys.argv[2], real)
    print("here", flush=True)
    sys.stdin.read()
    return real(*args, **kwargs)
setattr(home, sys.argv[2], dwelling)
sys.argv[1:3] = []
from plait.cli import main
main()
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    models = tiny.write_set(tmp_path / "models")
    (tmp_path / "r.yml").write_text(tiny.recipes(models)["ties"])
    return tmp_path / "r.yml"


def signalled(recipe: Path, where: tuple[str, str], sent: signal.Signals, group: bool = False, **environment: str) -> tuple[int, str]:
    """Exit status and standard error of a merge that got a signal at a place; with `group` its whole process group gets it, as a terminal does."""
    command = [sys.executable, "-c", DWELLING, *where, "merge", str(recipe), str(recipe.parent / "out"), "--memory", "256MiB", "--workers", "2"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        (os.killpg if group else os.kill)(process.pid, sent)
        _, said = process.communicate()
        return process.returncode, said


#: A command line whose imports say `here` in their middle and wait for standard input to end.
IMPORTING = """
import runpy, sys
class Dwelling:
    def find_spec(self, name, path=None, target=None):
        if name == "plait.bench":
            sys.meta_path.remove(self)
            print("here", flush=True)
            sys.stdin.read()
sys.meta_path.insert(0, Dwelling())
sys.argv = ["plait", "--version"]
runpy.run_module("plait", run_name="__main__", alter_sys=True)
"""


def test_while_modules_are_imported():
    """Ctrl-C is one line there, too, and no traceback."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", IMPORTING], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "plait: interrupted; nothing was changed\n")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", [("plait.api", "_plan_recipe"), ("plait.engine.executor", "foresee_scopes")], ids=["planning", "beginning"])
def test_before_anything_is_done(where: tuple[str, str], sent: signal.Signals, code: int, recipe: Path):
    """One line, the status of the signal, and nothing is left."""
    ended, said = signalled(recipe, where, sent)
    assert (ended, said) == (code, "plait: the run was stopped before it was finished\n")
    assert tiny.leftovers(recipe.parent / "out") == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_while_kernels_are_compiled(sent: signal.Signals, recipe: Path, tmp_path: Path):
    """A terminal sends Ctrl-C to compilers, too: it is the merge that ends, as asked, and no kernel is blamed."""
    ended, said = signalled(recipe, ("plait.engine.compile", "_ended"), sent, group=True, PLAIT_CACHE_DIR=str(tmp_path / "cache"))
    assert (ended, said) == (128 + sent, "plait: the run was stopped before it was finished, while its kernels were compiled\n")
    assert tiny.leftovers(recipe.parent / "out") == []


@pytest.mark.parametrize("step", ["finish_folder", "place_folder"])
def test_while_it_publishes(step: str, recipe: Path):
    """What is left to do is done: the output is whole."""
    ended, said = signalled(recipe, ("plait.engine.writer", step), signal.SIGTERM)
    assert ended == 0, said
    verify(recipe.parent / "out")
    assert status(recipe.parent / "out").state == "whole"


def test_an_ignored_signal_stays_ignored(recipe: Path):
    """Whoever starts a merge with SIGINT ignored, as shells do in the background, does not have it stopped by one."""
    command = [sys.executable, "-c", DWELLING, "plait.engine.executor", "foresee_scopes", "merge", str(recipe), str(recipe.parent / "out"), "-q"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 0
    verify(recipe.parent / "out")
