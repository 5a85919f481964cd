"""Headers and model folders: real files read as safetensors reads them, bad files refused in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from plait.ops.errors import CheckpointError
from plait.planner.checkpoint import open_checkpoint, resolve_model
from plait.planner.safetensors_header import read_header
from support.steps import assert_proportional


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) for name, shape in shapes.items()}


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def u8(begin: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **changes}


def sharded(folder: Path) -> Path:
    folder.mkdir()
    save_file(arrays(a=(2, 3), b=(4,)), folder / "model-00001-of-00002.safetensors")
    save_file(arrays(c=(5,)), folder / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def refused(path: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1200
    for word in words:
        assert word in message
    return message


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    """Names, shapes, dtypes and bytes are those that the safetensors library itself reads."""
    held = {**arrays(w=(3, 4), scalar=(), empty=(0, 7)), "ids": np.arange(5), "flag": np.array([True, False])}
    path = tmp_path / "one.safetensors"
    save_file(held, path, metadata={"format": "np"})
    header = read_header(path)
    assert header.metadata == {"format": "np"}
    assert header.identity.size == path.stat().st_size
    blob = path.read_bytes()
    with safetensors.safe_open(path, "np") as reference:
        assert set(reference.keys()) == set(header.entries)
        for name, entry in header.entries.items():
            assert list(entry.shape) == reference.get_slice(name).get_shape()
            assert entry.dtype == reference.get_slice(name).get_dtype()
            assert blob[entry.start : entry.start + entry.nbytes] == held[name].tobytes()


def test_tensors_come_in_file_order(tmp_path: Path) -> None:
    """Tensors are listed by shard and then by offset, whatever the order of the header."""
    raw_file(tmp_path / "m-00002-of-00002.safetensors", {"z": u8(4, 6), "y": u8(0, 4)}, bytes(6))
    raw_file(tmp_path / "m-00001-of-00002.safetensors", {"x": u8(0, 1)}, b"1")
    assert list(open_checkpoint(tmp_path).tensors) == ["x", "y", "z"]


def test_sharded_folder_and_label(tmp_path: Path) -> None:
    """An indexed folder gives all tensors, both files and the configuration, under the user's label."""
    folder = sharded(tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "llama", "limit": Infinity}')
    checkpoint = open_checkpoint(folder, "base")
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert [Path(f.path).name for f in checkpoint.files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.label == "base"
    assert open_checkpoint(folder / "model.safetensors.index.json").tensors == checkpoint.tensors


def test_identity_follows_the_header(tmp_path: Path) -> None:
    """The same size and time with another header is another identity."""
    path = raw_file(tmp_path / "m.safetensors", {"a": u8(0, 2)}, b"12")
    first = read_header(path).identity
    raw_file(path, {"b": u8(0, 2)}, b"12")
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns))
    second = read_header(path).identity
    assert (first.size, first.mtime_ns) == (second.size, second.mtime_ns)
    assert first.header != second.header


BAD_HEADERS = {
    "empty": (b"", b"", "not valid JSON"),
    "garbage": (b"{not json", b"", "not valid JSON"),
    "list": ([1], b"", "not a JSON object"),
    "text": ("x", b"", "not a JSON object"),
    "invalid UTF-8": (b'{"a\xff": {}}', b"", "not UTF-8"),
    "NaN": (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 1]}}', b"1", "whole numbers"),
    "float": (b'{"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}', b"1", "whole numbers"),
    "huge number": (b'{"a": {"dtype": "U8", "shape": [1' + b"0" * 5000 + b'], "data_offsets": [0, 1]}}', b"1", "overflows"),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "not a list of tensors"),
    "deep nesting, padded": (b'{"a":' + b"[          " * 100_000 + b"]" * 100_000 + b"}", b"", "nested too deeply"),
    "dense commas": (b'{"a":[' + b"1," * 100_000 + b"1]}", b"", "not a list of tensors"),
    "tensor twice": (b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', b"", "'a' twice"),
    "key twice": (b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', b"", "'dtype' twice"),
    "missing key": ({"a": {"dtype": "U8", "shape": [1]}}, b"1", "'a' is not described"),
    "extra key": ({"a": u8(0, 1, more=1)}, b"1", "'a' is not described"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "unknown dtype": ({"a": u8(0, 1, dtype="C64")}, b"1", "'C64'"),
    "unhashable dtype": ({"a": u8(0, 1, dtype=["U8"])}, b"1", "dtype"),
    "packed dtype": ({"a": u8(0, 1, dtype="F4")}, b"1", "packed below a byte"),
    "negative dimension": ({"a": u8(0, 1, shape=[-1])}, b"1", "'a' has a shape"),
    "boolean dimension": ({"a": u8(0, 1, shape=[True])}, b"1", "'a' has a shape"),
    "many dimensions": ({"a": u8(0, 1, shape=[1] * 65)}, b"1", "'a' has a shape"),
    "three offsets": ({"a": u8(0, 1, data_offsets=[0, 1, 2])}, b"1", "'a' has a shape"),
    "wrong bytes": ({"a": u8(0, 4, shape=[3])}, b"1234", "takes 4 bytes but shape [3] in U8 needs 3"),
    "reversed offsets": ({"a": u8(0, 4, data_offsets=[4, 0])}, b"1234", "takes -4 bytes"),
    "overflow": ({"a": u8(0, 0, shape=[2**40, 2**40])}, b"", "'a' overflows"),
    "overflow times zero": ({"a": u8(0, 0, shape=[2**63, 0])}, b"", "'a' overflows"),
    "hole": ({"a": u8(0, 1), "b": u8(2, 3)}, b"123", "'b' leaves a hole of 1 bytes after 'a'"),
    "hole at the start": ({"a": u8(2, 3)}, b"123", "'a' leaves a hole of 2 bytes at the start"),
    "overlap": ({"a": u8(0, 2), "b": u8(1, 3)}, b"123", "'b' overlaps 'a'"),
    "trailing bytes": ({"a": u8(0, 1)}, b"123", "2 bytes after its last tensor"),
    "truncated data": ({"a": u8(0, 2000), "b": u8(2000, 9000)}, bytes(1500), "7500 bytes are missing, from tensor 'a' on"),
    "escape in a name": ({"a\x1b[2J": u8(0, 1)}, b"1", "control characters"),
    "lone surrogate": (b'{"a\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"1", "control characters"),
    "climbing name": ({"../../etc/x": u8(0, 1)}, b"1", "climbing path"),
    "dotted name": ({"..": u8(0, 1)}, b"1", "climbing path"),
    "absolute name": ({"/etc/x": u8(0, 1)}, b"1", "climbing path"),
    "empty name": ({"": u8(0, 1)}, b"1", "no sensible length"),
    "endless name": ({"x" * 5000: u8(0, 1)}, b"1", "no sensible length"),
    "no tensors": ({}, b"", "holds no tensors"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header(case: str, tmp_path: Path) -> None:
    """A damaged or hostile header gives one sentence that names the file and what is wrong."""
    header, data, words = BAD_HEADERS[case]
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    refused(path, "bad.safetensors" if case != "no tensors" else str(tmp_path), words)


BAD_STARTS = {
    "no bytes": (b"", "truncated: 0 bytes"),
    "seven bytes": (b"1234567", "truncated: 7 bytes"),
    "length beyond the file": ((1000).to_bytes(8, "little") + b"{}", "truncated: its header alone would take 1.0 kB and the file holds 10 bytes"),
    "absurd length": ((2**63 - 1).to_bytes(8, "little") + b"{}", "claims a header of 9223372036854775807 bytes"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "pickle": (b"PK\x03\x04" + bytes(60), "pickle"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_bad_start(case: str, tmp_path: Path) -> None:
    """A file that does not begin like safetensors is told apart from a truncated one."""
    content, words = BAD_STARTS[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, "model.safetensors", words)


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    """A shard cut short is refused with its name and both sizes."""
    folder = sharded(tmp_path / "m")
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    refused(folder, "model-00002-of-00002.safetensors is truncated", "4 bytes are missing", "'c'", "download or copy it again")


def test_fifo_does_not_block(tmp_path: Path) -> None:
    """A pipe under a model's name is refused at once."""
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path, "not a regular file")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_never_escape_the_error_tree(data: st.DataObject, tmp_path: Path) -> None:
    """Any change of any bytes of a file gives a checkpoint or a CheckpointError, and safetensors accepts no file that we read differently."""
    path = tmp_path / "m.safetensors"
    blob = bytearray(save(arrays(a=(2,), b=(1, 3)), {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255) | st.sampled_from(b'[]{}",:0129'))
    path.write_bytes(bytes(blob[: data.draw(st.integers(0, len(blob)))]) if data.draw(st.booleans()) else bytes(blob))
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    with safetensors.safe_open(path, "np") as reference:
        assert {n: list(t.shape) for n, t in checkpoint.tensors.items()} == {n: reference.get_slice(n).get_shape() for n in reference.keys()}  # noqa: SIM118


def test_listed_shard_absent(tmp_path: Path) -> None:
    """A shard that the index lists but the folder lacks is named together with the index."""
    folder = sharded(tmp_path / "m")
    (folder / "model-00001-of-00002.safetensors").unlink()
    refused(folder, "model-00001-of-00002.safetensors is listed in model.safetensors.index.json but is not in the folder")


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "a\\x.safetensors", "model.bin", "x\n.safetensors", "", 3, None]
)
def test_index_names_only_plain_files(shard: object, tmp_path: Path) -> None:
    """An index cannot point out of its folder, at other kinds of file, or at nothing."""
    save_file(arrays(a=(1,)), tmp_path / "secret.safetensors")
    folder = sharded(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(folder, "model.safetensors.index.json", "'a'", "only name safetensors files of its own folder")


def test_links_stay_inside(tmp_path: Path) -> None:
    """A link out of a model folder is refused, and so is a loop of links; a link within it is fine."""
    save_file(arrays(a=(1,)), tmp_path / "secret.safetensors")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    refused(folder, "link out of its model folder")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    refused(folder, "link that leads nowhere")
    (folder / "model.safetensors").unlink()
    os.replace(tmp_path / "secret.safetensors", folder / "data.bin")
    (folder / "model.safetensors").symlink_to("data.bin")
    assert list(open_checkpoint(folder).tensors) == ["a"]


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    """A tensor that the index puts where it is not, or that two shards hold, is an error."""
    folder = sharded(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["d"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    refused(folder, "'d'", "no shard holds it")
    content["weight_map"].update(d="model-00002-of-00002.safetensors", a="model-00002-of-00002.safetensors")
    del content["weight_map"]["d"]
    index.write_text(json.dumps(content))
    refused(folder, "'a'", "it is in model-00001-of-00002.safetensors")
    save_file(arrays(c=(5,), a=(6,)), folder / "model-00002-of-00002.safetensors")
    refused(folder, "'a' is in both")


def test_ambiguous_folders(tmp_path: Path) -> None:
    """Files that could be meant in two ways are not guessed at."""
    save_file(arrays(a=(1,)), tmp_path / "adapter_model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]
    save_file(arrays(b=(1,)), tmp_path / "other.safetensors")
    refused(tmp_path, "holds 2 safetensors files and no index", "adapter_model.safetensors", "give the path")
    assert list(open_checkpoint(tmp_path / "other.safetensors").tensors) == ["b"]
    folder = sharded(tmp_path / "m")
    save_file(arrays(a=(1,)), folder / "model.safetensors")
    refused(folder, "loaders disagree")


def test_sets_without_an_index(tmp_path: Path) -> None:
    """A numbered set is accepted when complete, and an incomplete one names the shard that is absent."""
    folder = sharded(tmp_path / "m")
    (folder / "model.safetensors.index.json").unlink()
    assert list(open_checkpoint(folder).tensors) == ["a", "b", "c"]
    os.rename(folder / "model-00001-of-00002.safetensors", folder / "model-00001-of-00003.safetensors")
    os.rename(folder / "model-00002-of-00002.safetensors", folder / "model-00003-of-00003.safetensors")
    refused(folder, "model-00002-of-00003.safetensors is absent from a set of 3 shards")


def test_other_formats_say_how_to_convert(tmp_path: Path) -> None:
    """A folder of pickles, and a pickle itself, say that only safetensors is read and how to convert."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    refused(tmp_path, "holds no safetensors file", "pytorch_model.bin", "may run code", "safetensors")
    refused(tmp_path / "pytorch_model.bin", "not a safetensors file", "may run code", "safetensors")
    os.rename(tmp_path / "pytorch_model.bin", tmp_path / "model.gguf")
    refused(tmp_path, "'model.gguf' holds weights in a format that plait does not read", "convert it to safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not valid JSON"), ("[1]", "JSON object"), ("[" * 100_000, "not valid JSON"), ('{"a": "' + "x" * 16_000_000 + '"}', "too many")],
)
def test_bad_config(content: str, words: str, tmp_path: Path) -> None:
    """A configuration that is no JSON object or far too long is refused by name."""
    save_file(arrays(a=(1,)), tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).config == {}
    (tmp_path / "config.json").write_text(content)
    refused(tmp_path, "config.json", words)


def test_missing_path(tmp_path: Path) -> None:
    """A path that is not there says so."""
    refused(tmp_path / "nowhere", "there is no such file or folder")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "home" / "hub"
    repo = cache / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abcd")
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    save_file(arrays(a=(1,)), repo / "blobs" / "ffff")
    (snapshot / "model.safetensors").symlink_to("../../blobs/ffff")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_resolve_from_the_hub_cache(hub: Path) -> None:
    """Names and revisions are found in the local cache, whose links to blobs are followed."""
    assert resolve_model("org/name") == hub
    assert resolve_model("org/name@main") == hub
    assert resolve_model("org/name@0123abcd") == hub
    assert list(open_checkpoint(resolve_model("org/name")).tensors) == ["a"]
    (hub.parent.parent / "refs" / "main").write_text("../../../..")
    with pytest.raises(CheckpointError):
        resolve_model("org/name")


def test_resolve_paths(hub: Path, tmp_path: Path) -> None:
    """A path is taken from the current folder, then from beside the recipe, before the cache."""
    (tmp_path / "recipes" / "local").mkdir(parents=True)
    assert resolve_model("local", tmp_path / "recipes") == tmp_path / "recipes" / "local"
    (tmp_path / "local").mkdir()
    assert resolve_model("local", tmp_path / "recipes") == tmp_path / "local"
    assert resolve_model(str(tmp_path / "local")) == tmp_path / "local"


def test_resolve_failure_lists_the_places(hub: Path, tmp_path: Path) -> None:
    """An unknown model says every place tried, that nothing is downloaded, and what to do."""
    with pytest.raises(CheckpointError) as caught:
        resolve_model("org/absent@v2", tmp_path / "recipes")
    message = str(caught.value)
    for place in (tmp_path / "org/absent@v2", tmp_path / "recipes/org/absent@v2", tmp_path / "home/hub/models--org--absent", tmp_path / "none/huggingface/hub"):
        assert str(place) in message
    assert "never downloads" in message
    assert "hf download org/absent" in message


def test_reading_costs_the_same_for_each_tensor(tmp_path: Path) -> None:
    """One file of many tensors, and a model in many shards with its index: the work is proportional to the tensors."""
    from plait.planner.layout import index_json, make_layout

    def one_file(count: int) -> Callable[[], Any]:
        layout = make_layout([(f"model.layers.{i // 100}.mlp.experts.{i % 100}.up_proj.weight", "BF16", (8, 8)) for i in range(count)], 10**12)
        path = tmp_path / f"{count}.safetensors"
        with open(path, "wb") as stream:
            stream.write(layout.shards[0].header)
            stream.truncate(layout.shards[0].size)
        return lambda: read_header(path)

    def sharded(count: int) -> Callable[[], Any]:
        layout = make_layout([(f"model.layers.{i // 9}.{i % 9}.weight", "BF16", (8192, 8192)) for i in range(count)], 5 * 10**9)
        folder = tmp_path / f"model{count}"
        folder.mkdir()
        for shard in layout.shards:
            with open(folder / shard.name, "wb") as stream:
                stream.write(shard.header)
                stream.truncate(shard.size)
        (folder / "model.safetensors.index.json").write_bytes(index_json(layout))
        return lambda: open_checkpoint(folder)

    assert len(one_file(1000)().entries) == 1000
    assert_proportional(one_file, 2000, 200)
    assert len(sharded(700)().tensors) == 700
    assert_proportional(sharded, 240, 1000)


def test_planner_headers_import_no_kernels() -> None:
    """Reading headers imports neither torch nor numba."""
    code = "import sys, plait.planner.checkpoint, plait.planner.layout, plait.planner.donor, plait.planner.inspect\n"
    code += "print({'torch', 'numba'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
