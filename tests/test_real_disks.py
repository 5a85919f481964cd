"""Small and unwilling filesystems, really mounted: full at the beginning, full in mid-run, read-only, mount points. Needs root; skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import kill_loop
import pytest
from click.testing import CliRunner

import plait
from plait.cli import main
from plait.engine import commits
from plait.engine.events import Quiet
from plait.keeping import status, verify
from plait.ops.errors import OutputError
from plait.planner import blocks
from plait.planner.plan import Component
from support import tiny

OUTPUT_BYTES = sum(2 * a * (b or [1])[0] for a, *b in kill_loop.SHAPES.values())
ONE = plait.Options(memory="256MiB", workers=1)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts something on a new folder for the length of the test."""
    made: list[Path] = []

    def at(name: str, *how: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        try:
            done = subprocess.run(["mount", *how, str(place)], capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip("this user may not mount")
        made.append(place)
        return place

    yield at
    for place in made:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    models = tiny.write_set(tmp_path / "models", shapes=kill_loop.SHAPES)
    (tmp_path / "r.yml").write_text(tiny.recipes(models)["linear"])
    return tmp_path / "r.yml"


def command(*arguments: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(main, list(arguments), prog_name="plait")
    return done.exit_code, done.stderr.splitlines()


def filled(disk: Path) -> Path:
    """A file that takes all room that is left, to the last page."""
    path = disk / "filler"
    with open(path, "wb") as stream:
        free = os.statvfs(disk)
        stream.write(bytes(free.f_bavail * free.f_frsize))
    return path


def test_too_small_from_the_beginning(recipe: Path, mount: Callable[..., Path]):
    """Found before anything is computed, with both figures; nothing is left."""
    disk = mount("disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    code, (line,) = command("merge", str(recipe), str(disk / "out"), "--memory", "256MiB")
    assert code == 2
    assert f"{disk}/out: the output needs 7.4 MB" in line
    assert "the disk has 4.2 MB free (4194304 bytes); free some space or choose another folder" in line
    assert os.listdir(disk) == []


@pytest.mark.parametrize("moment", ["while it computes", "while it publishes"])
def test_full_in_mid_run(moment: str, recipe: Path, tmp_path: Path, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """What is done is kept, the message says what to free, and with room again the same command goes on to the same bytes."""
    disk = mount("disk", "-t", "tmpfs", "-o", "size=12m", "tmpfs")
    monkeypatch.setattr(blocks, "BLOCK", 1 << 19)
    plait.merge(recipe, tmp_path / "good", ONE)
    monkeypatch.setattr(commits.Commits.__init__, "__defaults__", (0.0, 1))

    class Filling(Quiet):
        filler: Path | None = None

        def finished_component(self, component: Component) -> None:
            if component.name == ("model.embed_tokens.weight" if moment == "while it computes" else "lm_head.weight"):
                self.filler = filled(disk)

    heard = Filling()
    with pytest.raises(OutputError, match=r"No space left on device\); free some space and run again") as caught:
        plait.merge(recipe, disk / "out", ONE, events=heard)
    assert heard.filler is not None
    kept = caught.value.facts["kept_bytes"]
    assert 0 < kept <= OUTPUT_BYTES
    assert status(disk / "out").done_bytes == kept
    heard.filler.unlink()
    assert plait.merge(recipe, disk / "out", ONE).bytes_resumed == kept
    verify(disk / "out")
    assert (disk / "out" / "model.safetensors").read_bytes() == (tmp_path / "good" / "model.safetensors").read_bytes()


def test_read_only(recipe: Path, mount: Callable[..., Path]):
    """Said at once, with what to do."""
    disk = mount("disk", "-t", "tmpfs", "-o", "size=20m,ro", "tmpfs")
    code, (line,) = command("merge", str(recipe), str(disk / "a" / "out"), "--memory", "256MiB")
    assert code == 2
    assert "Read-only file system" in line
    assert "the filesystem is read-only: choose another folder" in line


def test_mount_points(recipe: Path, tmp_path: Path, mount: Callable[..., Path]):
    """No rename can replace one, also where a folder of the same filesystem is mounted: refused before anything is computed."""
    (tmp_path / "source").mkdir()
    for place in (mount("disk", "-t", "tmpfs", "-o", "size=20m", "tmpfs"), mount("bound one", "--bind", str(tmp_path / "source"))):
        code, (line,) = command("merge", str(recipe), str(place), "--memory", "256MiB")
        assert code == 2
        assert "is the current folder or a mount point and cannot be replaced; give a new folder inside it" in line
        assert os.listdir(place) == []
        plait.merge(recipe, place / "out", ONE)
        verify(place / "out")


def test_a_link_to_another_filesystem(recipe: Path, tmp_path: Path, mount: Callable[..., Path]):
    """The work happens where the link leads, so that the last step is a rename and not a copy."""
    disk = mount("disk", "-t", "tmpfs", "-o", "size=20m", "tmpfs")
    (disk / "real").mkdir()
    (tmp_path / "out").symlink_to(disk / "real")
    plait.merge(recipe, tmp_path / "out", ONE)
    assert (tmp_path / "out").is_symlink()
    verify(disk / "real")
    assert os.listdir(disk) == ["real"]


@pytest.mark.parametrize("pages", [0, 1])
def test_no_room_for_compiled_kernels(pages: int, recipe: Path, tmp_path: Path, mount: Callable[..., Path]):
    """Neither for their sources nor for their code: the folder is named, and how to choose another."""
    disk = mount("disk", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
    os.truncate(filled(disk), (16 - pages) * 4096)
    done = subprocess.run(
        [sys.executable, "-m", "plait", "merge", str(recipe), str(tmp_path / "out"), "--memory", "256MiB"],
        env={**os.environ, "PLAIT_CACHE_DIR": str(disk)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "No space left on device); free some space there, or set PLAIT_CACHE_DIR to another folder" in line
    assert tiny.leftovers(tmp_path / "out") == []
