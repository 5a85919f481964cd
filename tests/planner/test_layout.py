"""Output files: safetensors, torch and NumPy read what the layout and the donor's side files say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError, PlanError
from plait.planner.checkpoint import open_checkpoint
from plait.planner.donor import output_config, side_files
from plait.planner.layout import index_json, make_layout
from plait.planner.safetensors_header import read_header
from plait.planner.types import Checkpoint, Layout, SideFile

TORCH_CODES = ("F64", "F32", "BF16", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def write(layout: Layout, folder: Path) -> dict[str, bytes]:
    """Fill a layout's files with bytes of our choice; all below 2, so that booleans are sound."""
    data = {name: np.random.default_rng(i).integers(0, 2, p.nbytes, dtype=np.uint8).tobytes() for i, (name, p) in enumerate(layout.places.items())}
    for number, shard in enumerate(layout.shards):
        blob = bytearray(shard.size)
        blob[: len(shard.header)] = shard.header
        for name, place in layout.places.items():
            if place.shard == number:
                blob[place.offset : place.offset + place.nbytes] = data[name]
        (folder / shard.name).write_bytes(blob)
    return data


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensor_lists = st.lists(st.tuples(st.text("abc_é", min_size=1, max_size=8), st.sampled_from(TORCH_CODES), shapes), max_size=12, unique_by=lambda t: t[0])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=tensor_lists, limit=st.sampled_from([1, 40, 200, 10**9]))
def test_safetensors_loads_any_layout(tensors: list[tuple[str, str, tuple[int, ...]]], limit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Mixed dtypes, 0-d and empty tensors, any limit: the safetensors library gives back every byte, aligned, from every shard."""
    import torch

    folder = tmp_path_factory.mktemp("layout")
    layout = make_layout(tensors, limit)
    data = write(layout, folder)
    wanted = {name: (code, shape) for name, code, shape in tensors}
    seen = set()
    for shard in layout.shards:
        entries = read_header(folder / shard.name).entries
        with safetensors.safe_open(folder / shard.name, "pt") as loaded:
            for name in loaded.keys():  # noqa: SIM118
                code, shape = wanted[name]
                value = loaded.get_tensor(name)
                assert tuple(value.shape) == shape
                assert loaded.get_slice(name).get_dtype() == code
                assert value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == data[name]
                assert entries[name].start % BY_CODE[code].itemsize == 0
                assert entries[name].start == layout.places[name].offset
                seen.add(name)
        names = [n for n, p in layout.places.items() if p.shard == layout.shards.index(shard)]
        assert sum(layout.places[n].nbytes for n in names) <= limit or len([n for n in names if layout.places[n].nbytes]) == 1
    assert seen == set(wanted)
    assert list(layout.places) == [name for name, _, _ in tensors]


def test_model_order_is_kept() -> None:
    """Where every element is aligned, tensors lie in model order, not in that of names or dtypes."""
    layout = make_layout([("z", "BF16", (4,)), ("a", "F32", (1,)), ("m", "BF16", (3,))])
    offsets = [layout.places[n].offset for n in "zam"]
    assert offsets == [len(layout.shards[0].header) + k for k in (0, 8, 12)]


def test_misaligned_order_puts_wide_elements_first() -> None:
    """F32 behind an odd number of BF16 elements would start off a multiple of 4: that shard is ordered by element size."""
    layout = make_layout([("odd", "BF16", (3,)), ("norm", "F32", (2,)), ("odd2", "BF16", (1,))])
    assert sorted(layout.places, key=lambda n: layout.places[n].offset) == ["norm", "odd", "odd2"]
    assert len(layout.shards[0].header) % 8 == 0


def test_numpy_maps_in_place(tmp_path: Path) -> None:
    """A reader that maps the file can view every tensor without a copy."""
    layout = make_layout([("odd", "U8", (3,)), ("wide", "F64", (2, 2))])
    data = write(layout, tmp_path)
    mapped = np.memmap(tmp_path / "model.safetensors", mode="r")
    place = layout.places["wide"]
    view = mapped[place.offset : place.offset + place.nbytes].view("<f8")
    assert view.flags.aligned
    assert view.tobytes() == data["wide"]


def test_shard_names_and_index() -> None:
    """Shards are named and indexed as transformers expects; a tensor over the limit has a shard of its own."""
    layout = make_layout([("a", "F32", (4,)), ("big", "F32", (100,)), ("b", "F32", (4,)), ("c", "F32", (4,))], 32)
    assert [s.name for s in layout.shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads(index_json(layout, {"made_by": "test"}))
    assert index["metadata"] == {"total_size": 4 * 112, "made_by": "test"}
    assert index["weight_map"] == {
        "a": "model-00001-of-00003.safetensors",
        "big": "model-00002-of-00003.safetensors",
        "b": "model-00003-of-00003.safetensors",
        "c": "model-00003-of-00003.safetensors",
    }
    assert list(index["weight_map"]) == ["a", "big", "b", "c"]


def test_impossible_layouts() -> None:
    """Two tensors of one name, the reserved name, and a limit of nothing are refused."""
    for tensors in ([("a", "F32", (1,)), ("a", "F32", (1,))], [("__metadata__", "U8", (1,))]):
        with pytest.raises(PlanError, match="two tensors named"):
            make_layout(tensors)
    with pytest.raises(PlanError, match="positive shard size"):
        make_layout([], 0)


@pytest.fixture
def donor(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "donor"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "2_Dense").mkdir()
    layout = make_layout([("w", "F32", (2,))])
    write(layout, folder)
    names = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "qwen.tiktoken", "chat_template.jinja", "generation_config.json", "LICENSE"]
    names += ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "special_tokens_map.json"]
    never = ["modeling_x.py", "vocab.bin", "pytorch_model.bin", "README.md", "training_args.bin", "notes.txt", "2_Dense/model.safetensors", ".gitattributes"]
    for name in [*names, *never]:
        (folder / name).write_text(f"content of {name}")
    config = {"model_type": "llama", "torch_dtype": "float32", "num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "limit": math.inf}
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder, "org/donor")


def made(donor: Checkpoint, **options: object) -> dict[str, SideFile]:
    arguments = {"dtype_name": "bfloat16", "num_layers": None, "recipe_text": "a: b\n", "summary": {}, **options}
    return {side.name: side for side in side_files(donor, **arguments)}  # type: ignore[arg-type]


def test_side_files_are_copied_by_list(donor: Checkpoint) -> None:
    """Tokenizer, template, generation and pooling files go along; code, weights, strange files and the old card do not."""
    files = made(donor)
    generated = {"config.json", "README.md", "plait_recipe.yml"}
    copied = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "qwen.tiktoken", "chat_template.jinja", "generation_config.json", "LICENSE"}
    copied |= {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "special_tokens_map.json"}
    assert set(files) == generated | copied
    for name in copied:
        source = files[name].source
        assert source is not None
        assert Path(source).read_text() == f"content of {name}"
    assert files["plait_recipe.yml"].content == b"a: b\n"


def test_side_files_do_not_follow_links_out(donor: Checkpoint, tmp_path: Path) -> None:
    """A tokenizer that is a link to a file elsewhere is not copied into the output."""
    (tmp_path / "secret").write_text("key")
    target = Path(donor.path) / "tokenizer.json"
    target.unlink()
    target.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="link out of its model folder"):
        made(donor)


def test_config_takes_dtype_and_layers(donor: Checkpoint) -> None:
    """The configuration has the output's dtype and layer count; what a recipe does not change stays."""
    config = json.loads(made(donor, num_layers=6)["config.json"].content or b"")
    assert config == {"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 6, "layer_types": ["a", "b"] * 3, "limit": math.inf}
    assert donor.config["torch_dtype"] == "float32"


def test_config_keys() -> None:
    """`dtype` or `torch_dtype`, whichever is there, also in a nested text configuration; other counts by other names."""
    assert output_config({"dtype": "x"}, dtype_name="float16", num_layers=None) == {"dtype": "float16"}
    assert output_config({}, dtype_name="float16", num_layers=3) == {"torch_dtype": "float16", "num_hidden_layers": 3}
    nested = {"text_config": {"dtype": "x", "num_hidden_layers": 2, "layer_types": ["a", "b"]}, "vision_config": {"num_hidden_layers": 9}}
    out = output_config(nested, dtype_name="float16", num_layers=1)
    assert out["text_config"] == {"dtype": "float16", "num_hidden_layers": 1, "layer_types": ["a"]}
    assert out["vision_config"] == {"num_hidden_layers": 9}
    assert output_config({"n_layer": 2}, dtype_name=None, num_layers=5) == {"n_layer": 5}
    assert output_config({"num_hidden_layers": 2, "mlp_only_layers": [0, 5]}, dtype_name=None, num_layers=1)["mlp_only_layers"] == [0, 5]


def test_per_layer_lists_follow_their_sources() -> None:
    """A frankenmerge's per-layer lists are those of the layers it took; without a pattern or sources it is refused by key."""
    config = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    assert output_config(config, dtype_name=None, num_layers=4, layer_sources=[0, 2, 1, 2])["layer_types"] == ["a", "c", "b", "c"]
    with pytest.raises(PlanError, match="`layer_types` lists 3 layers without a pattern and the output has 4"):
        output_config(config, dtype_name=None, num_layers=4)


def test_model_card(donor: Checkpoint) -> None:
    """The card has valid front matter, the recipe in a fence that it cannot break, and no folder of this machine."""
    recipe = "models:\n- model: x # ``` a fence\n"
    summary = {"name": "out", "method": "ties", "base": "org/donor", "models": ["/home/someone/private/expert-a", "org/b"]}
    card = (made(donor, recipe_text=recipe, summary=summary)["README.md"].content or b"").decode()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"base_model": ["org/donor", "expert-a", "org/b"], "tags": ["merge", "plait"], "library_name": "sentence-transformers"}
    assert f"````yaml\n{recipe}````" in body
    assert "`ties`" in body
    assert "someone" not in card
    assert "`2_Dense` of the donor holds weights of its own" in body
