"""A page in a real browser: search, sort, fold, hover and colours, without a request and without a complaint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plait.page import Column, Graph, GraphEdge, GraphNode, HeatMap, HeatView, LineChart, Mark, Page, Prose, Section, Series, Table
from support.browser import Browser, needs_browser, running

pytestmark = needs_browser
MIB = 1 << 20
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def page() -> Page:
    rows = [[f"model.layers.{n}.weight", "attention" if n % 2 else "mlp", n * MIB, n / 7] for n in range(300)] + [[HOSTILE, "other", None, None]]
    table = Table("All tensors", [Column("name", code=True), Column("role"), Column("size", "bytes"), Column("time", "seconds")], rows, sort=(2, True))
    host = Series("host", [1 * MIB, 4 * MIB, 2 * MIB, 2 * MIB], step=True)
    chart = LineChart("Memory", "words", [0, 1, 2, 3], [host], labels=["a", "b", HOSTILE, "d"], label_name="task", marks=[Mark("budget", 5 * MIB)])
    heat = HeatMap("Change", "layer", "role", ["0", "1"], ["q", "k"], [HeatView("cosine", [[0.25, 0.5], [None, 1.0]]), HeatView("norm", [[1, 4], [3, 2]])])
    nodes = [GraphNode("in", "input", "input"), GraphNode("all", "layers", "output", facts=(("bytes", "1 GiB"),))]
    nodes += [GraphNode(f"l{n}", f"layer {n}", "output", "all") for n in range(12)] + [GraphNode("t", HOSTILE, "output", "l3")]
    graph = Graph("Flow", "a summary", nodes, [GraphEdge("in", "all", 3), GraphEdge("in", "t", 1)])
    parts = [("Words", Prose(HOSTILE)), ("Graph", graph), ("Memory", chart), ("Heat", heat), ("Tensors", table)]
    return Page("A title", "sub", [Section(name, [block]) for name, block in parts])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    """The page; whatever a test does with it, it asked for nothing, complained about nothing, and ran no text."""
    file = tmp_path / "page.html"
    file.write_text(page().render(), "utf-8")
    browser.complaints()
    browser.open(file)
    yield browser
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.driver.title == "A title"


def names(browser: Browser) -> list[str]:
    return browser.texts(".table tbody td.name")


def test_search_finds_rows_of_all_pages(opened: Browser):
    """All words must be in a row, whatever the case; the count says how many."""
    assert len(names(opened)) == 50
    opened.one("input[type=search]").send_keys("LAYERS.29 attention")
    assert names(opened) == [f"model.layers.{n}.weight" for n in (299, 297, 295, 293, 291, 29)]
    assert opened.texts(".count") == ["6 of 301 rows"]
    opened.one("input[type=search]").clear()
    opened.one("input[type=search]").send_keys("owned")
    assert names(opened) == [HOSTILE]


def test_sorting_and_pages_by_keyboard(opened: Browser):
    """A heading sorts, again the other way round; unknown values come last; Enter works as a click does."""
    assert names(opened)[0] == "model.layers.299.weight"
    head = opened.all(".table thead button")[0]
    head.send_keys("\ue007")
    assert names(opened)[1:4] == ["model.layers.0.weight", "model.layers.1.weight", "model.layers.2.weight"]
    assert opened.one(".table thead th").get_attribute("aria-sort") == "ascending"
    opened.all(".table thead button")[2].click()
    opened.all(".table thead button")[2].click()
    assert names(opened)[0] == "model.layers.0.weight"
    for _ in range(6):
        opened.one(".next").click()
    assert names(opened) == [HOSTILE]
    assert not opened.one(".next").is_enabled()


def test_the_graph_folds_and_unfolds(opened: Browser):
    """A click on a group shows what it holds, and arrows go to what is seen; Fold all closes it."""
    shown = "return document.querySelector('.graph').plaitGraph.cy"
    place = f"{shown}.getElementById(arguments[0]).renderedPosition()"
    size = opened.script("const c = document.querySelector('.canvas'); return [c.clientWidth, c.clientHeight]")
    assert opened.script(f"{shown}.nodes().length") == 2

    def click(ident: str) -> None:
        at = opened.script(place, ident)
        opened.click(opened.one(".canvas"), at["x"] - size[0] / 2, at["y"] - size[1] / 2)

    click("all")
    opened.wait(f"{shown}.nodes().length === 14")
    assert "1 GiB" in opened.one(".chosen").text
    assert opened.script(f"{shown}.edges().map(e => e.data('target'))") == ["all", "l3"]
    click("l3")
    opened.wait(f"{shown}.nodes().length === 15")
    opened.one("[data-do=fold]").click()
    opened.wait(f"{shown}.nodes().length === 2")


def test_the_graph_works_from_the_keyboard_and_as_a_list(opened: Browser):
    """Arrows walk, Enter unfolds; the list beside it unfolds to the same nodes."""
    opened.one(".canvas").send_keys("\ue014", "\ue014", "\ue007")
    opened.wait("return document.querySelector('.graph').plaitGraph.cy.nodes().length === 14")
    opened.one(".outline > summary").click()
    opened.wait("return document.querySelectorAll('.outline li').length === 2")
    opened.one(".outline li summary").click()
    opened.wait("return document.querySelectorAll('.outline li').length === 14")


def test_charts_are_read_by_pointer_and_keyboard(opened: Browser):
    """The readout names time, value and task."""
    opened.script("document.querySelector('.u-over').scrollIntoView({block: 'center'})")
    opened.point(opened.one(".u-over"), -20)
    opened.wait("return document.querySelector('.chart .readout:not(.key)').textContent.includes('host 4 MiB')")
    assert "task b" in opened.one(".chart .readout:not(.key)").text
    opened.one(".plot").send_keys("\ue010", "\ue012")
    assert HOSTILE in opened.one(".chart .readout:not(.key)").text


def test_heat_map_reads_and_switches(opened: Browser):
    """Pointer and keys read a cell; another statistic colours the cells anew."""
    cell = opened.all(".heat tbody td")[1]
    colour = "return getComputedStyle(document.querySelectorAll('.heat tbody td')[1]).backgroundColor"
    before = opened.script(colour)
    opened.point(cell)
    assert opened.one(".heat .readout").text == "0, k: 0.5 cosine"
    opened.all(".heat input")[1].click()
    assert opened.one(".heat .readout").text == "0, k: 4 norm"
    assert opened.script(colour) != before
    opened.one(".heat .scroll").send_keys("\ue015")
    assert opened.one(".heat .readout").text == "1, k: 2 norm"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened: Browser, scheme: str, tmp_path: Path):
    """The system decides first, the button after that."""
    bright = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128"
    opened.open(tmp_path / "page.html", scheme=scheme)
    assert opened.script(bright) == (scheme == "light")
    opened.one("#theme").click()
    assert opened.script(bright) == (scheme == "dark")


def test_narrow_windows_do_not_scroll_sideways(opened: Browser, tmp_path: Path):
    """At the width of a phone the page stays within it."""
    opened.open(tmp_path / "page.html", width=390, height=800)
    assert opened.script("return document.documentElement.scrollWidth") <= 390
