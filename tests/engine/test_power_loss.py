"""Power fails after any operation of a run: what the journal says is durable is, and the destination is absent, the old output or the whole new one."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from plait.engine import checksum, commits, publish
from plait.engine.journal import JOURNAL_NAME, read_journal
from plait.engine.publish import working_folder
from plait.engine.writer import OutputFolder
from plait.planner.layout import make_layout
from plait.planner.types import SideFile
from support.powerloss import Disk, after_power_loss


@pytest.mark.parametrize("how", ["lost", "kept", "mixed"])
def test_every_prefix_of_the_operations(how: str, tmp_path: Path):
    """Power fails after any operation of a run: whatever the journal then says is durable is, and the run that continues gives the same bytes."""
    layout = make_layout([(f"w{i}", "U8", (700,)) for i in range(8)], 3000)
    data = {name: np.random.default_rng(i).bytes(place.nbytes) for i, (name, place) in enumerate(layout.places.items())}
    made = {"plait": "1", "fingerprint": "f", "files": [], "shards": [], "layout": 0, "computation": 0, "blocks": [], "libraries": {}, "recipe": ""}

    def fill(out: OutputFolder) -> int:
        todo = [(n, at) for n, p in layout.places.items() for at in (0, 350) if not out.found.covers(p.shard, p.offset + at, 350)]
        for name, at in todo:
            out.write(layout.places[name].shard, layout.places[name].offset + at, memoryview(data[name])[at : at + 350])
        return len(todo)

    home = tmp_path / "disk"
    home.mkdir()
    disk = Disk(home)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        patch.setattr(commits.Commits.__init__, "__defaults__", (0.0, 1000))
        with OutputFolder(home / "out", layout, identity=lambda: made) as out:
            fill(out)
            out.publish([SideFile("config.json", content=b"{}")])
    good = {p.name: p.read_bytes() for p in (home / "out").iterdir() if p.name.startswith("model")}
    draw, resumed = random.Random(3), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        for cut in range(len(disk.log) + 1):
            new = tmp_path / "new"
            after_power_loss(disk.log[:cut], home, new, how, draw)
            final = new / "out"
            if not final.exists():
                told_of, there = read_journal(working_folder(final) / JOURNAL_NAME).entries, working_folder(final)
                for number, first, nbytes, known in ((int(e["shard"]), int(e["offset"]), int(e["nbytes"]), e["digest"].tobytes()) for e in told_of):
                    names = (f"shard-{number + 1:05d}.partial", layout.shards[number].name)
                    piece = next(there / name for name in names if (there / name).exists()).read_bytes()[first : first + nbytes]
                    assert checksum.digest(piece) == known, f"operation {cut}: the journal names bytes that are not there"
                with OutputFolder(final, layout, identity=lambda: made) as out:
                    assert out.found.nbytes == int(told_of["nbytes"].sum()), f"operation {cut}: something durable was not believed"
                    resumed += fill(out) < 16
                    out.publish([SideFile("config.json", content=b"{}")])
            assert {p.name: p.read_bytes() for p in final.iterdir() if p.name.startswith("model")} == good, f"operation {cut}"
            shutil.rmtree(new)
    assert resumed > 10


@pytest.mark.parametrize("how", ["lost", "kept", "mixed"])
def test_every_prefix_of_a_replacement(how: str, tmp_path: Path):
    """Power fails after any operation of a run that replaces an old output, where names cannot be exchanged: the old one or the new one is whole."""
    layout = make_layout([(f"w{i}", "U8", (700,)) for i in range(4)], 3000)
    home = tmp_path / "disk"
    home.mkdir()

    def content(version: int) -> dict[str, bytes]:
        return {name: np.random.default_rng([version, i]).bytes(place.nbytes) for i, (name, place) in enumerate(layout.places.items())}

    def write(destination: Path, version: int) -> None:
        made = {"plait": "1", "fingerprint": str(version), "files": [], "shards": [], "layout": 0, "computation": version, "blocks": [], "libraries": {}}
        with OutputFolder(destination, layout, identity=lambda: {**made, "recipe": ""}, overwrite=True) as out:
            for name, data in content(version).items():
                place = layout.places[name]
                if not out.found.covers(place.shard, place.offset, place.nbytes):
                    out.write(place.shard, place.offset, data)
            out.publish([SideFile("config.json", content=b"{}")])

    def read(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("model")}

    disk, wanted, lengths, seen = Disk(home), [], [], set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "exchange", lambda one, other: False)
        disk.watch(patch)
        patch.setattr(commits.Commits.__init__, "__defaults__", (0.0, 1000))
        for version in (1, 2):
            write(home / "out", version)
            wanted.append(read(home / "out"))
            lengths.append(len(disk.log))
    draw = random.Random(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        for cut in range(lengths[0], len(disk.log) + 1):
            new = tmp_path / "new"
            after_power_loss(disk.log[:cut], home, new, how, draw)
            there = new / "out" if (new / "out").exists() else new / ".out.plait-old"
            assert read(there) in (wanted if there.name == "out" else wanted[:1]), f"operation {cut}"
            seen.add(f"{there.name} {wanted.index(read(there)) + 1}")
            write(new / "out", 2)
            assert read(new / "out") == wanted[1], f"operation {cut}"
            shutil.rmtree(new)
    assert {"out 1", "out 2"} <= seen
    assert how == "lost" or ".out.plait-old 1" in seen
