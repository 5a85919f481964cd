"""One html file that needs nothing else: tables to search, charts to hover over, heat maps and graphs, light and dark.

    page = Page("ties", "201 tensors", [Section("Tensors", [Table("All tensors", [Column("name"), Column("size", "bytes")], rows)])])
    Path("plan.html").write_text(page.render(), "utf-8")

A page never asks a network for anything: scripts and data lie inside it, and its content security policy lets nothing else in. Text may
come from strangers' files: it is escaped here, and every part of a page is given plain text.
"""

from plait.page.blocks import Block, Facts, Notes, Prose
from plait.page.chart import LineChart, Mark, Series
from plait.page.graph import Graph, GraphEdge, GraphNode
from plait.page.heatmap import HeatMap, HeatView
from plait.page.shell import Page, Section, fragment
from plait.page.table import Column, Table

__all__ = [
    "Block",
    "Column",
    "Facts",
    "Graph",
    "GraphEdge",
    "GraphNode",
    "HeatMap",
    "HeatView",
    "LineChart",
    "Mark",
    "Notes",
    "Page",
    "Prose",
    "Section",
    "Series",
    "Table",
    "fragment",
]
