"""The tree of a plan says what a person asks first, and reads well in a terminal of 80 columns."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

import plait
from plait.planner import blocks
from plait.planner.explain import groups, to_text
from plait.planner.plan import Plan
from plait.planner.sizes import enough, size
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    folder = tmp_path_factory.mktemp("set")
    models = tiny.write_set(folder)
    found = {}
    for name, text in tiny.recipes(models).items():
        (folder / "r.yml").write_text(text)
        found[name] = plait.plan(folder / "r.yml", plait.Options(memory="96MiB", workers=2, device="cpu", backend="numba"))
    return found


def flat(text: str) -> str:
    """The tree without its branches and line breaks."""
    return re.sub(r"[\s│├└─]+", " ", text)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_the_main_figures_are_there(name: str, width: int, plans: dict[str, Plan]):
    """Peak, budget, smallest budget, bytes read and written, workers, fingerprint, every input and every role."""
    plan, text = plans[name], to_text(plans[name], width)
    p, said = plan.prediction, flat(text)
    assert said.startswith(plan.title)
    assert plan.fingerprint[:12] in said
    assert f"peak memory {size(p.peak_bytes)} of 96 MiB (smallest budget that works: {enough(p.minimum_bytes)})" in said
    assert f"reads {size(p.bytes_read)}" in said
    assert f"writes {size(p.bytes_written)}" in said
    assert "runs on 2 workers" in said
    for role in ("embedding", "mlp", "norm", "head"):
        assert re.search(rf"\b{role} \d+ tensors?, ", said), role
    without_breaks = re.sub(r"\s*[│├└─ ]*\n[│├└─ ]*", "", text)
    for folder in {str(Path(f.path).parent) for f in plan.files}:
        assert folder in without_breaks or folder in said


@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_wider_than_the_terminal(name: str, plans: dict[str, Plan]):
    """Lines are folded, never cut off: nothing is lost between 80 columns and 400."""
    narrow, wide = to_text(plans[name], 80), to_text(plans[name], 400)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    assert re.sub(r"[\s│├└─]", "", narrow) == re.sub(r"[\s│├└─]", "", wide)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_stays_with_its_unit(name: str, plans: dict[str, Plan]):
    """No line ends in a number whose unit begins the next."""
    lines = [line.rstrip() for line in to_text(plans[name], 80).splitlines()]
    torn = [(a, b) for a, b in pairwise(lines) if re.search(r"\d$", a) and re.match(r"[\s│├└─]*(B|[KMGT]iB)\b", b)]
    assert torn == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linear", "pass 1: map of"),
        ("slerp", "pass 1: 3 folds → pass 2: map of"),
        ("ties", "pass 1: 2 exact thresholds → pass 2: map of"),
        ("ties_global", "2 model-wide exact thresholds"),
        ("della", "row ranks"),
        ("linear_wsc", "row folds"),
        ("iso_c", "whole: polar"),
        ("passthrough", "bytes copied"),
    ],
)
def test_each_kind_of_work_has_its_words(name: str, words: str, plans: dict[str, Plan]):
    """A reader sees which passes there are and what happens in them."""
    assert words in flat(to_text(plans[name], 200))


def test_layers_are_folded_into_groups(plans: dict[str, Plan]):
    """Equal tensors of different layers are one line that says how many."""
    text = to_text(plans["ties"], 200)
    assert "2 x model.layers.*.mlp.up_proj.weight  90x70 bf16" in text
    assert "model.layers.0" not in re.sub("set by.*", "", text)
    found = groups(plans["ties"])
    assert sum(g.count for members in found.values() for g in members) == len(tiny.SHAPES)
    assert list(found) == ["embedding", "mlp", "norm", "head"]


def test_sweeps_and_mispredictions_are_said(plans: dict[str, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model-wide statistic says that the model is gone through twice; a threshold whose inputs are read again what it may read more."""
    assert "2 over the model" in flat(to_text(plans["ties_global"], 200))
    assert "thrice" not in to_text(plans["ties_global"])
    (tmp_path / "r.yml").write_text(tiny.recipes(tiny.write_set(tmp_path / "m"))["ties"])
    monkeypatch.setattr(blocks, "SEEN_WHOLE", 0)
    again = plait.plan(tmp_path / "r.yml", plait.Options(memory="1GiB", workers=1, device="cpu", residency="reread"))
    assert again.prediction.bytes_read_extra > 0
    assert f"up to {size(again.prediction.bytes_read_extra)} where a sample mispredicts" in flat(to_text(again, 200))


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path: Path):
    """Brackets in paths and tensor names are text, not styles."""
    models = tiny.write_set(tmp_path / "[bold]set[/]", shapes={"model.[red]odd[/].weight": (4, 4), "model.norm.weight": (4,)})
    (tmp_path / "r.yml").write_text(tiny.recipes(models)["linear"])
    text = to_text(plait.plan(tmp_path / "r.yml", plait.Options(memory="96MiB")), 400)
    assert "model.[red]odd[/].weight  4x4 bf16" in text
    assert "[bold]set[/]" in text
