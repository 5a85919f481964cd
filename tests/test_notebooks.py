"""What notebooks show of plans, reports, comparisons and checkpoints: their figures, without scripts, and names of strangers as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait.ops.errors import CheckpointError
from plait.planner.sizes import size
from support import tiny

OPTIONS = plait.Options(memory="256MiB", workers=2, device="cpu")
HOSTILE = "model.<script>alert('x').weight"
UNSEEN = "<script>\x1b[2J\u202e"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str]]:
    """Each kind of object with its html, of models whose tensors have a hostile name."""
    folder = tmp_path_factory.mktemp("models")
    models = tiny.write_set(folder, shapes={**tiny.SHAPES, HOSTILE: (12, 70)})
    (folder / "recipe.yml").write_text(tiny.recipes(models)["linear"])
    plait.merge(folder / "recipe.yml", folder / "out", OPTIONS)
    base, *experts = models
    found = {
        "plan": plait.plan(folder / "recipe.yml", OPTIONS),
        "report": plait.report(folder / "out"),
        "diff": plait.diff(*experts, base=base, memory="64MiB"),
        "inspection": plait.inspect(tiny.write_model(folder / "odd", {HOSTILE: np.ones((2, 2), np.float32)}, config={"architectures": [UNSEEN]})),
        "scan": plait.inspect(base, scan=True, memory="64MiB"),
    }
    found["report"]["title"] = UNSEEN
    return {name: (thing, thing._repr_html_()) for name, thing in found.items()}


@pytest.mark.parametrize("name", ["plan", "report", "diff", "inspection", "scan"])
def test_names_of_strangers_are_text(shown: dict[str, tuple[Any, str]], name: str):
    """Neither markup nor control characters of a tensor's name get through, and nothing runs or is loaded."""
    html = shown[name][1]
    assert "<script" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "http" not in html
    assert len(html) < 30_000


@pytest.mark.parametrize("name", ["plan", "report", "scan"])
def test_kinds_of_tensors_are_listed(shown: dict[str, tuple[Any, str]], name: str):
    """Layers folded; the hostile name is there as text."""
    html = shown[name][1]
    assert "model.layers.*.mlp.up_proj.weight" in html
    assert "&lt;script&gt;" in html


def test_a_configuration_is_text_too(shown: dict[str, tuple[Any, str]]):
    """What a stranger wrote as the architecture."""
    assert "&lt;script&gt;\\x1b[2J\\u202e" in shown["inspection"][1]


def test_figures_are_those_of_the_objects(shown: dict[str, tuple[Any, str]]):
    """Promised and measured peak of a report, the relative changes of a comparison, the parameters of a checkpoint, what a scan found."""
    report, html = shown["report"]
    assert size(report["memory"]["predicted_peak_bytes"]) in html
    assert size(report["memory"]["measured_peak_bytes"]) in html
    diff, html = shown["diff"]
    assert all(f"{change.relative:.3g}" in html for change in diff.total.changes)
    inspection, html = shown["inspection"]
    assert f"{inspection.parameters:,}" in html
    assert "no NaN" not in html
    assert "no NaN, no infinity" in shown["scan"][1]


def test_what_is_odd_is_said(tmp_path: Path):
    """NaN of a scan, and a tensor unlike its siblings."""
    values = {f"model.layers.{n}.mlp.up_proj.weight": np.ones((4, 4 + (n == 3)), np.float32) for n in range(6)}
    values["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    html = plait.inspect(tiny.write_model(tmp_path / "odd", values), scan=True, memory="64MiB")._repr_html_()
    assert "unlike their siblings" in html
    assert "model.layers.1.mlp.up_proj.weight holds 1 NaN" in html


def test_a_report_is_data_text_and_a_page(shown: dict[str, tuple[Any, str]]):
    """It is still a dictionary; what is damaged is one sentence."""
    report = shown["report"][0]
    assert isinstance(report, dict)
    assert '"plait-report"' in report.to_json()
    assert "peak memory" in report.to_text()
    assert report.to_html().startswith("<!doctype html>")
    with pytest.raises(CheckpointError, match="damaged"):
        type(report)({**report, "groups": 3})._repr_html_()
