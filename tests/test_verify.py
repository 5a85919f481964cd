"""`plait verify`: every byte of an output is vouched for, and its recipe gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import kill_loop
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import plait
from plait.cli import main
from plait.engine.manifest import signed
from plait.keeping import verify
from plait.ops.errors import CheckpointError, VerifyError
from support import faults, tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_set(tmp_path_factory.mktemp("models"), shapes=kill_loop.SHAPES)


@pytest.fixture
def made(models: list[Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def make(name: str, **options: object) -> tuple[Path, Path]:
        path = tmp_path / f"{name}.yml"
        path.write_text(tiny.recipes(models)[name])
        plait.merge(path, tmp_path / name, plait.Options(memory="256MiB", **options))  # type: ignore[arg-type]
        return path, tmp_path / name

    return make


def test_manifest(made: Callable[..., tuple[Path, Path]], models: list[Path]):
    """It names recipe, inputs, versions and figures, and for every tensor the BLAKE2b of what other libraries read from the file."""
    path, out = made("linear", shard_size="4MB")
    found = json.loads((out / "plait.json").read_text())
    assert found["recipe"] == path.read_text()
    assert found["fingerprint"] == plait.plan(path, plait.Options(memory="1GiB", shard_size="4MB")).fingerprint
    assert [f[0] for f in found["files"]] == [str(m / "model.safetensors") for m in models]
    assert found["measured"]["bytes_written"] == found["predicted"]["bytes_written"] == sum(t["bytes"] for t in found["tensors"].values())
    assert {"python", "numpy"} <= set(found["versions"])
    assert set(found["side_files"]) == {p.name for p in out.iterdir()} - {"plait.json", *(s["name"] for s in found["shards"])}
    stored = {k: v.view(torch.uint8).numpy() for s in found["shards"] for k, v in load_file(out / s["name"]).items()}
    small = found["tensors"]["model.norm.weight"]
    block = blake2b(stored["model.norm.weight"].tobytes(), digest_size=16).digest()  # one small block: its digest is BLAKE2b of the bytes
    assert small["blake2b"] == blake2b(block, digest_size=16).hexdigest()


def test_checksums_depend_on_nothing_but_the_bytes(made: Callable[..., tuple[Path, Path]], tmp_path: Path):
    """Other workers and budgets give the same checksums."""
    path, out = made("ties", workers=1)
    plait.merge(path, tmp_path / "other", plait.Options(memory="96MiB", workers=3))
    one, other = (json.loads((folder / "plait.json").read_text()) for folder in (out, tmp_path / "other"))
    assert one["tensors"] == other["tensors"]
    assert one["fingerprint"] == other["fingerprint"]


@pytest.mark.parametrize("name", ["linear", "passthrough"])
def test_any_damage_is_found(name: str, made: Callable[..., tuple[Path, Path]]):
    """One bit anywhere in a shard, a byte of a side file, a missing or a shorter file: each is named."""
    _, out = made(name)
    checked = verify(out)
    assert (checked.tensors, checked.nbytes) == (4, sum(2 * a * (b or [1])[0] for a, *b in kill_loop.SHAPES.values()))
    file = out / "model.safetensors"
    raw = file.read_bytes()
    tensors = json.loads((out / "plait.json").read_text())["tensors"]
    for at in (20, *np.random.default_rng(5).integers(0, len(raw), 12).tolist(), len(raw) - 1):
        bad = bytearray(raw)
        bad[at] ^= 16
        file.write_bytes(bad)
        hit = [n for n, t in tensors.items() if t["offset"] <= at < t["offset"] + t["bytes"]]
        with pytest.raises(VerifyError, match=f"tensor {hit[0]} in model.safetensors differs" if hit else "model.safetensors has another header"):
            verify(out)
    file.write_bytes(raw[:-1])
    with pytest.raises(VerifyError, match=rf"model.safetensors has {len(raw) - 1} of {len(raw)} bytes"):
        verify(out)
    file.write_bytes(raw)
    (out / "config.json").write_bytes((out / "config.json").read_bytes() + b" ")
    (out / "tokenizer.json").unlink()
    with pytest.raises(VerifyError) as caught:
        verify(out)
    assert {"config.json was changed", "tokenizer.json is missing"} == set(caught.value.facts["problems"])  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["linear", "ties_global", "passthrough"])
def test_against_the_recipe(name: str, made: Callable[..., tuple[Path, Path]], models: list[Path], tmp_path: Path):
    """Blocks computed again have the same bits; a changed bit shows, and so does another recipe."""
    path, out = made(name)
    options = plait.Options(memory="256MiB")
    few = verify(out, path, options=options, blocks=2, seed=1)
    every = verify(out, path, options=options, blocks=1000)
    assert few.blocks == 2
    assert every.blocks == (4 if name == "passthrough" else 5)
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(VerifyError, match=r"of \d blocks computed again 1 differ: bytes \d+ to \d+ of model.safetensors \(lm_head.weight\)"):
        verify(out, path, options=options, blocks=1000)
    raw[-3] ^= 1
    file.write_bytes(raw)
    (tmp_path / "other.yml").write_text(tiny.recipes(models)["slerp"])
    with pytest.raises(VerifyError, match="is not what the recipe gives"):
        verify(out, tmp_path / "other.yml", options=options, blocks=2)


def test_folders_without_or_with_odd_manifests(made: Callable[..., tuple[Path, Path]], models: list[Path]):
    """A folder of somebody else's, and manifests that lie about their files, are refused in a sentence."""
    with pytest.raises(CheckpointError, match=r"has no plait\.json: it is not an output of plait"):
        verify(models[0])
    _, out = made("linear")
    path = out / "plait.json"
    good = json.loads(path.read_text())
    for change in (
        lambda m: m.update(format=99),
        lambda m: m.pop("tensors"),
        lambda m: m["shards"][0].update(name="../../etc/passwd"),
        lambda m: m["shards"][0].update(header_bytes=1 << 60),
        lambda m: m["side_files"].update({"/etc/passwd": "0"}),
        lambda m: m["tensors"]["model.norm.weight"].update(shard=7),
        lambda m: m["tensors"]["model.embed_tokens.weight"].update(block=1),
        lambda m: m["tensors"].update(x=[]),
    ):
        forge(path, good, change)
        with pytest.raises(CheckpointError, match=r"plait\.json (is of format|has no|describes files as plait does not)"):
            verify(out)
    for lie in (
        lambda m: m["tensors"].clear(),
        lambda m: m["tensors"].pop("model.norm.weight"),
        lambda m: m["tensors"].update(more=m["tensors"]["model.norm.weight"]),
        lambda m: m["tensors"]["model.norm.weight"].update(offset=0),
        lambda m: m["tensors"]["model.embed_tokens.weight"].update(bytes=1 << 20),
    ):
        forge(path, good, lie)
        with pytest.raises(VerifyError, match=r"model\.safetensors holds other tensors than plait\.json says"):
            verify(out)
    forge(path, good, lambda m: None)
    verify(out)
    path.write_text(path.read_text().replace(f'"seconds": {good["measured"]["seconds"]}', '"seconds": 0.1'))
    with pytest.raises(CheckpointError, match="is not as it was written: its own checksum differs"):
        verify(out)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        verify(out)


def test_what_somebody_put_there(made: Callable[..., tuple[Path, Path]]):
    """Files that a loader may take for the model fail the check, under whatever name; others are told."""
    _, out = made("linear")
    for name in ("other.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x\n.pt"):
        (out / name).write_bytes(b"{}")
        with pytest.raises(VerifyError, match="is not of this output") as caught:
            verify(out)
        assert caught.value.message.isprintable()
        (out / name).unlink()
    (out / "notes\x1b.txt").write_text("mine")
    assert verify(out).foreign == ("notes\x1b.txt",)
    said = CliRunner().invoke(main, ["verify", str(out)]).stdout.splitlines()
    assert said[1] == "beside them, not of this output: notes\\x1b.txt"


def test_an_input_that_shrank_is_not_what_the_output_came_from(made: Callable[..., tuple[Path, Path]], models: list[Path]):
    """Copied tensors are compared to their last byte, in however small pieces the system delivers them."""
    path, out = made("passthrough")
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (out / "model.safetensors").write_bytes(raw)
    with faults.injected("short reads"), pytest.raises(VerifyError, match=r"of 4 blocks computed again 1 differ"):
        verify(out, path, options=plait.Options(memory="256MiB"))


def forge(path: Path, good: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest with a change, and the right checksum of itself."""
    bad = json.loads(json.dumps({k: v for k, v in good.items() if k != "sum"}))
    change(bad)
    path.write_bytes(signed(json.dumps(bad).encode()[:-1]))


def test_command(made: Callable[..., tuple[Path, Path]]):
    """Status 0 and a sentence when all is well, 1 and the tensor when it is not."""
    path, out = made("linear")
    run = CliRunner()
    assert "4 tensors" in run.invoke(main, ["verify", str(out)]).stdout
    assert "5 blocks computed again" in run.invoke(main, ["verify", str(out), "--against", str(path), "--memory", "256MiB"]).stdout
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    done = run.invoke(main, ["verify", str(out)])
    assert done.exit_code == 1
    assert done.stderr.startswith("plait: ")
    assert "lm_head.weight" in done.stderr
