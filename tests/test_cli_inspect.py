"""`plait inspect` as a command: tables of 80 columns, data, pictures and pages, and wrong uses in a sentence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from plait.cli import main
from plait.show_diff import aligned, shortened
from support import tiny

SCHEMA = Path(__file__).parents[1] / "docs" / "inspect.md"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and two models tuned from it."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tiny.SHAPES.items()}
    made = []
    for name, size in (("base", 0.0), ("math", 0.1), ("code", 0.05)):
        values = {n: (x + size * rng.standard_normal(x.shape)).astype(np.float32) for n, x in base.items()}
        made.append(str(tiny.write_model(folder / name, values, config={"model_type": "llama", "architectures": ["LlamaForCausalLM"]})))
    return made


def run(*arguments: str, width: int = 80) -> Result:
    return CliRunner().invoke(main, ["inspect", *arguments], terminal_width=width, env={"COLUMNS": str(width)})


def table(text: str) -> list[str]:
    """Lines of the table: from its heading to the first empty line."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("tensors"))
    return lines[first : lines.index("", first)] if "" in lines[first:] else lines[first:]


def test_two_models_against_their_base(models: list[str]):
    """Groups, layers folded, within 80 columns; and what the figures suggest."""
    base, math, code = models
    done = run(math, code, "--diff", "--base", base, "--memory", "64MiB")
    assert done.exit_code == 0, done.output
    rows = table(done.stdout)
    assert all(len(line) <= 80 for line in rows)
    assert re.match(r"tensors +change A change B cosine +signs +both", rows[0])
    assert any(re.match(r"  2 x mlp\.up_proj +0\.1\S* +0\.05", line) for line in rows)
    assert "nearly orthogonal" in done.stdout


def test_ranks_are_columns_of_their_own(models: list[str]):
    base, math, code = models
    rows = table(run(math, code, "--base", base, "--rank", "--memory", "64MiB").stdout)
    assert all(len(line) <= 80 for line in rows)
    assert rows[0].endswith("rank A rank B")


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([0.035, 0.0312, 0.00559], ["0.0350", "0.0312", "0.0056"]),
        ([0.2, None, 0.0], ["0.200", "-", "0.000"]),
        ([0.5, 0.0000003], ["0.50000", "3e-07"]),
        ([12.0, 3.25, math.inf, math.nan], ["12.0", "3.2", "inf", "nan"]),
        ([1e30, 0.5], ["1e+30", "0.5"]),
        ([None], ["-"]),
    ],
)
def test_numbers_of_a_column_stand_in_line(values: list[float | None], cells: list[str]):
    """One number of decimals for a column, and no change is shown as none."""
    assert aligned(values) == cells


def test_a_long_label_loses_its_middle_and_stays_on_its_line(tmp_path: Path):
    """With ranks at 80 columns there is little room: both ends of a name are kept, and points stand below one another."""
    assert shortened("input_layernorm", 15) == "input_layernorm"
    assert shortened("  16 x post_attention_layernorm", 20) == "  16 x po…_layernorm"
    values = {f"model.layers.{layer}.post_attention_layernorm.weight": np.full(8, 1.0, np.float32) for layer in range(16)}
    base, math_, code = (str(tiny.write_model(tmp_path / n, {k: v + d for k, v in values.items()})) for n, d in (("base", 0), ("math", 0.25), ("code", 0.5)))
    rows = table(run(math_, code, "--base", base, "--rank", "--memory", "64MiB").stdout)
    assert [row.split("  ")[0] for row in rows[1:3]] == ["all", "norm"]
    assert len(rows) == 4
    assert re.match(r"  16 x post_\S*…\S*_layernorm  +0\.250 +0\.500 ", rows[3])
    assert all(len(row) <= 80 for row in rows)


def test_two_models_without_a_base(models: list[str]):
    rows = table(run(models[0], models[1], "--diff", "--tensors", "--memory", "64MiB").stdout)
    assert re.match(r"tensors +change largest +same +signs +spread", rows[0])
    assert {name for name in tiny.SHAPES if any(name in line for line in rows)} == tiny.SHAPES.keys()


def keys_of(data: dict[str, object]) -> set[str]:
    """Every key of nested objects; names of tensors, groups and layers are not keys of the format."""
    open_ended = {"roles", "layers", "kinds", "bitwise_equal", "left_out", "dtypes", "stacks", "odd"}
    found: set[str] = set()
    for key, value in data.items():
        found.add(key)
        for inner in value.values() if key in open_ended and isinstance(value, dict) else [value]:
            for item in inner if isinstance(inner, list) else [inner]:
                if isinstance(item, dict):
                    found |= keys_of(item)
    return found


def test_every_key_of_the_data_is_documented(models: list[str]):
    """docs/inspect.md names each key of the two JSON forms."""
    base, math, code = models
    text = SCHEMA.read_text()
    outputs = [(math, code, "--base", base, "--rank"), (base, math, "--diff"), (base,)]
    for arguments in outputs:
        data = json.loads(run(*arguments, "--format", "json").stdout)
        assert data["version"] == 1
        missing = {key for key in keys_of(data) if f"`{key}`" not in text}
        assert not missing


def test_data_of_a_comparison(models: list[str]):
    data = json.loads(run(models[0], models[1], "--diff", "--format", "json").stdout)
    assert {t["name"] for t in data["tensors"]} == tiny.SHAPES.keys()
    assert data["total"]["elements"] == tiny.elements()
    assert set(data["layers"]) == {"0", "1"}
    assert 0.05 < data["total"]["delta"]["relative"] < 0.2


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures(models: list[str], tmp_path: Path, ending: str, magic: bytes):
    """Heat maps in each format."""
    pytest.importorskip("matplotlib")
    base, math, code = models
    where = tmp_path / f"map{ending}"
    done = run(math, code, "--base", base, "--plot", str(where))
    assert done.exit_code == 0, done.output
    assert where.read_bytes().startswith(magic)


def test_a_page(models: list[str], tmp_path: Path):
    """One file with every tensor, and nothing from a network."""
    base, math, code = models
    where = tmp_path / "map.html"
    assert run(math, code, "--base", base, "--html", str(where)).exit_code == 0
    text = where.read_text("utf-8")
    assert all(name in text for name in tiny.SHAPES)
    assert "sign conflict" in text
    assert not re.search(r"(src|href)=.?https?:", text)


def test_a_scan(models: list[str]):
    done = run(models[0], "--scan", "--memory", "64MiB")
    assert done.exit_code == 0, done.output
    assert "no NaN, no infinity" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{0}", "{1}"), "give one checkpoint, or --diff to compare two"),
        (("{0}", "--diff"), "a comparison takes two checkpoints"),
        (("{0}", "--rank"), "--rank compares"),
        (("{0}", "{1}", "--diff", "--scan"), "--scan looks at one checkpoint"),
        (("{0}", "{1}", "--diff", "--plot", "map.gif"), "names no kind of picture; end it with .png, .svg, .pdf"),
        (("{0}", "{1}", "--diff", "--memory", "1MiB"), "is too small"),
        (("{0}", "nowhere", "--diff"), "no model 'nowhere' on this machine"),
    ],
)
def test_wrong_uses_are_told_in_a_sentence(models: list[str], arguments: tuple[str, ...], words: str):
    done = run(*(a.format(*models) for a in arguments))
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.startswith("plait: ")
