"""`docs/guide.md` is run as it stands: its files written, its commands and Python executed in order, and what it shows compared with what comes.

Blocks: `yaml` is a file named by its first line; `bash` holds commands after `$ `, each with what it prints; `python` is executed, and a `text`
block right behind it is what that prints. In what is shown, `...` stands for anything, a time (`0.9 s`) for any time, a rate for any rate, and blanks for
any number of them. A command followed by a line `^C` is interrupted when it has finished some tensors.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPO = Path(__file__).parents[1]
GUIDE = REPO / "docs" / "guide.md"
#: A `plait` at which somebody presses Ctrl-C after 40 tensors.
_INTERRUPTED = """
import os, signal
from plait.following import PlainLines
real = PlainLines.finished_component
def finished(self, component):
    real(self, component)
    if self.finished == 40:
        os.kill(os.getpid(), signal.SIGINT)
PlainLines.finished_component = finished
from plait.cli import main
main()
"""
#: What stands for others in what the guide shows, and how those look: left-out lines or words, rates, times.
_STANDS_FOR = {r"\.\.\.": r"(?:.|\n)*?", r"[\d.]+ [KMG]iB/s": r"[\d.]+ [KMG]?i?B/s", r"\b\d+(?:\.\d+)? s\b": r"\d+(?:\.\d+)? (?:s|min)"}


class Block(NamedTuple):
    """A fenced block: its language, its text and the line of the guide that it begins on."""

    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    text = GUIDE.read_text("utf-8")
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in fences]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Commands of a bash block, each with what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def pattern(shown: str) -> re.Pattern[str]:
    """What output may look like that the guide shows so."""
    parts = re.split(f"({'|'.join(_STANDS_FOR)})", neat(shown))
    likes = [next((like for what, like in _STANDS_FOR.items() if re.fullmatch(what, part)), re.escape(part)) for part in parts]
    return re.compile("".join(likes))


def neat(text: str) -> str:
    """Without blanks at ends and repeated ones: how wide a column is hangs on the times in it."""
    return "\n".join(re.sub(" +", " ", line.rstrip()) for line in text.strip().splitlines())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `plait` and `python` are those of this test, with the scripts beside."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "interrupted.py").write_text(_INTERRUPTED)
    for name, what in (("plait", "-m plait"), ("python", ""), ("interrupted", str(tools / "interrupted.py"))):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
        (tools / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    (work / "scripts").symlink_to(REPO / "scripts")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(work)
    return work


def run(command: str, interrupted: bool) -> str:
    """What a command prints on both streams."""
    command = re.sub(r"^plait ", "interrupted ", command) if interrupted else command
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == (130 if interrupted else 0), f"{command}: {done.stdout}"
    return done.stdout


def executed(block: Block, names: dict[str, Any]) -> str:
    """What a block of Python prints."""
    code = compile("\n" * block.line + block.text, str(GUIDE), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def test_the_guide_shows_what_happens(place: Path):
    """Every file, command and piece of Python, in order."""
    names: dict[str, Any] = {"__name__": "__main__"}
    told: str | None = None
    seen = dict.fromkeys(("yaml", "bash", "python", "text"), 0)
    for block in blocks():
        where = f"docs/guide.md:{block.line}"
        assert not told or block.language == "text", f"{where}: what the Python above prints is not shown\n{told}"
        assert block.language in seen, f"{where}: a block of {block.language or 'no language'} is not run"
        seen[block.language] += 1
        if block.language == "yaml":
            name = re.match(r"# (\S+)\n", block.text)
            assert name, f"{where}: the first line names the file"
            (place / name[1]).write_text(block.text)
        elif block.language == "bash":
            assert block.text.startswith("$ "), where
            for command, shown in commands(block.text):
                interrupted = shown.startswith("^C\n")
                compare(f"{where}: {command}", shown.removeprefix("^C\n"), run(command, interrupted))
        elif block.language == "python":
            told = executed(block, names)
        else:
            assert told is not None, f"{where}: belongs to no Python"
            compare(where, block.text, told)
            told = None
    assert all(seen.values()), seen


def compare(where: str, shown: str, came: str) -> None:
    assert pattern(shown).fullmatch(neat(came)), f"{where} shows\n{neat(shown)}\n--- and there came\n{neat(came)}"


def test_shown_output_may_leave_out_and_take_another_time():
    """Times, rates and `...` stand for others; nothing else does."""
    assert pattern("needs 14.7 MiB and about 0.9 s (126 MiB/s)\n...\nend").fullmatch("needs 14.7 MiB and about 12 s (1.5 GiB/s)\nmore\nand more\nend")
    assert not pattern("needs 14.7 MiB").fullmatch("needs 14.8 MiB")
    assert not pattern("a 0.9 s b").fullmatch("a 0.9 s b c")


def test_its_pictures_are_there_and_made_by_the_script(monkeypatch: pytest.MonkeyPatch):
    """Each picture lies in docs/images and has a name that scripts/screenshots.py makes."""
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    screenshots = importlib.import_module("screenshots")
    made = {f"{t.name}-{width}" for t in screenshots.TERMINALS for width in t.widths} | {
        f"{p.name}-{face}" for p in screenshots.PAGES for face in ("light", "dark")
    }
    pictures = re.findall(r"!\[[^\]]+\]\(images/([\w-]+)\.png\)", GUIDE.read_text("utf-8"))
    assert len(pictures) == GUIDE.read_text("utf-8").count("![") >= 3
    assert all((REPO / "docs" / "images" / f"{name}.png").is_file() for name in pictures)
    assert set(pictures) <= made


def test_its_links_lead_somewhere():
    """Files of the repository that it points to."""
    links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)#:]+)(?:#[^)]*)?\)", GUIDE.read_text("utf-8"))
    assert links
    assert [link for link in links if not (GUIDE.parent / link).exists()] == []
