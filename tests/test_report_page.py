"""The page of a report: what the run wrote is on it, and in a browser it is drawn without a complaint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import plait
from plait.cli import main
from plait.page import LineChart, Table
from plait.page.text import escaped
from plait.planner.sizes import size
from plait.report_page import report_page
from support import tiny
from support.browser import needs_browser, running


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a small merge."""
    folder = tmp_path_factory.mktemp("merge")
    text = tiny.recipes(tiny.write_set(folder))["ties"]
    (folder / "recipe.yml").write_text(text)
    plait.merge(folder / "recipe.yml", folder / "out", plait.Options(memory="256MiB", workers=2, device="cpu"))
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def test_promised_memory_has_the_predicted_peak(found: dict[str, Any]):
    """The promised course of memory is highest at the promised peak."""
    at = found["predicted_timeline"]["columns"].index("private_bytes")
    assert max(point[at] for point in found["predicted_timeline"]["points"]) == found["memory"]["predicted_peak_bytes"]


def test_figures_are_those_of_the_report(found: dict[str, Any]):
    """Prediction and measurement stand beside one another, each kind of tensor has a row, and both courses of memory are drawn."""
    page = report_page(found)
    blocks = [block for section in page.sections for block in section.blocks]
    html = page.render()
    for nbytes in (found["memory"]["predicted_peak_bytes"], found["memory"]["measured_peak_bytes"], found["bytes"]["measured_read"]):
        assert escaped(size(nbytes)) in html
    groups = next(b for b in blocks if isinstance(b, Table) and b.caption.startswith("Predicted and measured"))
    assert [row[0] for row in groups.rows] == [g["label"] for g in found["groups"]]
    charts = [b for b in blocks if isinstance(b, LineChart)]
    if found["timeline"]["points"]:
        assert {s.name for s in charts[0].series} == {"private memory, measured", "leased", "promised"}
        assert len(charts) == 1 + len(found["timeline"]["lanes"])


def test_from_the_command_line(found: dict[str, Any], tmp_path: Path):
    """`--html FILE` writes the page; a damaged report is one sentence."""
    (tmp_path / "report.json").write_text(json.dumps(found))
    stored = CliRunner().invoke(main, ["report", str(tmp_path), "--html", str(tmp_path / "page.html")])
    assert stored.exit_code == 0, stored.output
    assert (tmp_path / "page.html").read_text("utf-8") == report_page(found).render()
    (tmp_path / "report.json").write_text(json.dumps({**found, "groups": 3}))
    damaged = CliRunner().invoke(main, ["report", str(tmp_path), "--html", str(tmp_path / "page.html")])
    assert damaged.exit_code == 2
    assert "is damaged" in damaged.output


@needs_browser
def test_a_browser_draws_it(found: dict[str, Any], tmp_path: Path):
    """No request, no complaint, and a readout of what a lane did."""
    (tmp_path / "report.html").write_text(report_page(found).render(), "utf-8")
    with running() as browser:
        browser.open(tmp_path / "report.html")
        for plot in browser.all(".plot"):
            plot.send_keys("\ue010")
        assert all(browser.texts(".chart .readout:not(.key)"))
        assert browser.requests() == []
        assert browser.complaints() == []
