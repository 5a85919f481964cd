"""What is in a page, without a browser: text from strangers is inert, and nothing comes from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.page import Column, Facts, Graph, GraphEdge, GraphNode, HeatMap, HeatView, LineChart, Mark, Notes, Page, Prose, Section, Series, Table, fragment
from plait.page.text import KINDS, escaped, script_json, shown

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp.\x1b[31m\x00\u2028'\"&"


class Seen(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def sample(text: str = "model.norm.weight") -> Page:
    """A page with every kind of block, `text` wherever text may come from a file."""
    chart = LineChart(text, text, [0, 1, 2], [Series(text, [1.0, None, 3.0], step=True)], labels=[text, "b", text], label_name=text, marks=[Mark(text, 2.0)])
    graph = Graph(
        text, text, [GraphNode("a", text, "input", facts=((text, text),)), GraphNode("b", text), GraphNode("c", text, "op", "b")], [GraphEdge("a", "c", 4)]
    )
    heat = HeatMap(text, text, text, [text], [text, "b"], [HeatView(text, [[0.5, None]], about=text), HeatView("second", [[1.0, 2.0]], "percent")])
    table = Table(text, [Column(text, code=True), Column("bytes", "bytes")], [[text, 1 << 20], [text, None]])
    blocks = [Prose(text, lead=True), Facts([(text, text), ("a", "b", text)]), Notes([text]), chart, graph, heat, table]
    return Page(text, text, [Section(text, blocks)], text)


def test_nothing_comes_from_outside():
    """No element names a file or an address, and the policy allows none."""
    seen = Seen(sample().render())
    assert not [(tag, attrs) for tag, attrs in seen.tags if {"src", "srcset", "action", "background"} & set(attrs)]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in seen.tags)
    (policy,) = [attrs["content"] for _, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in re.sub(r"style-src [^;]*;", "", policy)


def test_hostile_text_makes_no_element():
    """Names that would end a script or open an element give the same elements as plain ones, and no handler."""
    plain, hostile = Seen(sample().render()), Seen(sample(HOSTILE).render())
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in hostile.tags]
    assert not [name for _, attrs in hostile.tags for name in attrs if name.startswith("on")]
    assert "\u202e" not in sample(HOSTILE).render()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s), max_leaves=8))
def test_script_data_are_json_that_ends_no_script(value: object):
    """Whatever the data hold, they are JSON, encode as UTF-8 and have no character that html looks for."""
    text = script_json(value)
    json.loads(text)
    text.encode()
    assert not set("<>&\u2028\u2029") & set(text)


@given(st.text())
def test_escaped_text_has_no_markup(text: str):
    """Nothing that html or an eye would take for something else is left."""
    assert not set("<>\"'\u202e\x1b\x00") & set(escaped(text))


def test_numbers_are_shown_by_kind():
    """Each kind shows zero, a large number and what is not known."""
    assert [shown(1536, kind) for kind in KINDS] == ["1536", "1.5 KiB", "25 min 36 s", "1,536", "1536", "153600.0 %"]
    assert {shown(None, kind) for kind in KINDS} == {shown(float("nan"), kind) for kind in KINDS} == {"–"}


def test_a_page_carries_only_the_scripts_it_needs():
    """Without a graph the large library stays out."""
    table = Page("t", "", [Section("s", [Table("c", [Column("a")], [["x"]])])]).render()
    assert len(table) < 40_000
    assert "cytoscape" not in table
    assert "uPlot" not in table


def test_a_fragment_has_no_script():
    """Notebooks get html alone."""
    html = fragment(HOSTILE, list(sample(HOSTILE).sections[0].blocks))
    assert "<script" not in html
    assert html.startswith('<div class="plait">')


@pytest.mark.parametrize("name", ["cytoscape", "dagre", "uPlot"])
def test_libraries_come_with_their_licence(name: str):
    """Each vendored library has its licence beside it, and its version is written down."""
    vendor = files("plait.page") / "assets" / "vendor"
    assert "Permission is hereby granted" in (vendor / f"{name}.LICENSE").read_text("utf-8")
    assert name.lower() in (vendor / "VERSIONS").read_text("utf-8")
