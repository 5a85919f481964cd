"""A graph to zoom into: groups fold and unfold, layers of them lie from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from plait.page.blocks import Block
from plait.page.text import escaped


class GraphNode(NamedTuple):
    """A node, or a group that holds others.

    Attributes:
        ident: unique.
        label: what is written on it; lines are divided by `\\n`.
        kind: one of `input`, `pass`, `op`, `group` and `output`: its colour.
        parent: ident of the group that holds it; empty at the top.
        facts: more about it, name and value, shown when it is chosen.
        open: a group that is unfolded at first.
    """

    ident: str
    label: str
    kind: str = "group"
    parent: str = ""
    facts: Sequence[tuple[str, str]] = ()
    open: bool = False


class GraphEdge(NamedTuple):
    """An arrow; where an end is folded away it goes to the group that is seen.

    Attributes:
        source, target: idents.
        weight: bytes that go along it; its width.
    """

    source: str
    target: str
    weight: float = 0.0


@dataclass(frozen=True)
class Graph(Block):
    """Nodes, groups and arrows.

    Attributes:
        title: of the graph.
        summary: one sentence that says what it shows.
        nodes: groups before what they hold.
        edges: the arrows.
        height: in pixels.
    """

    scripts: ClassVar[tuple[str, ...]] = ("vendor/cytoscape.min.js", "vendor/dagre.min.js", "graph.js")
    title: str
    summary: str
    nodes: Sequence[GraphNode]
    edges: Sequence[GraphEdge]
    height: int = 480

    def render(self, ident: str) -> str:
        """A figure with the drawing, what is chosen, and the same as a list."""
        return (
            f'<figure class="graph" id="{ident}" data-block="graph"><figcaption><b>{escaped(self.title)}</b> <span>{escaped(self.summary)}</span></figcaption>'
            '<div class="tools"><button type="button" data-do="fit">Fit</button><button type="button" data-do="in" aria-label="Zoom in">+</button>'
            '<button type="button" data-do="out" aria-label="Zoom out">−</button><button type="button" data-do="fold">Fold all</button>'
            '<span class="hint">Click a group to unfold it. Drag to move, Ctrl and wheel to zoom; keys: arrows, Enter, + and −.</span></div>'
            f'<div class="canvas" style="height:{self.height}px" tabindex="0" role="application" '
            f'aria-label="{escaped(f"{self.title}. {self.summary}")} The same as a list follows."></div>'
            '<div class="chosen" aria-live="polite">Point at a node, or walk with the arrow keys, to read about it.</div>'
            '<details class="outline"><summary>The same as a list</summary></details></figure>'
        )

    def data(self) -> Any:
        """Nodes and arrows; facts of a kind are many, so they are plain lists."""
        return {
            "nodes": [[n.ident, n.label.split("\n"), n.kind, n.parent, [list(f) for f in n.facts], n.open] for n in self.nodes],
            "edges": [[e.source, e.target, e.weight] for e in self.edges],
        }

    def static(self) -> str:
        """The sentence."""
        return f"<p><b>{escaped(self.title)}</b> {escaped(self.summary)}</p>"
