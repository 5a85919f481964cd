"""The page itself: its frame, its scripts and styles, and the data of its blocks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from plait.page.blocks import Block
from plait.page.text import escaped, script_json

#: Nothing comes from outside, and no script runs but those whose hashes are listed; style attributes carry colours and heights.
_POLICY = "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        heading: of it, unique in the page.
        blocks: its parts.
    """

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: its name.
        subtitle: one line under it.
        sections: in order.
        footer: what made it.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str = ""

    def render(self) -> str:
        """The html file as text, to be stored as UTF-8."""
        placed = list(self._placed())
        blocks = [block for _, members in placed for _, block in members]
        scripts = [_asset(name) for name in _once("page.js", *(name for b in blocks for name in b.scripts))]
        styles = [_asset(name) for name in _once("page.css", *(name for b in blocks for name in b.styles))]
        hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
        links = "".join(f'<a href="#s{n}">{escaped(s.heading)}</a>' for n, (s, _) in enumerate(placed))
        body = "".join([_section(n, section, members) for n, (section, members) in enumerate(placed)])
        data = "".join(
            f'<script type="application/json" id="{ident}-data">{script_json(found)}</script>'
            for _, members in placed
            for ident, block in members
            if (found := block.data()) is not None
        )
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY.format(hashes=hashes)}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
            f"<title>{escaped(self.title)}</title>"
            f"{''.join(f'<style>{s}</style>' for s in styles)}</head><body>"
            f'<a class="skip" href="#main">Skip to the content</a><header><div><h1>{escaped(self.title)}</h1><p>{escaped(self.subtitle)}</p></div>'
            '<button type="button" id="theme" aria-label="Light or dark"></button></header>'
            f'<nav class="contents" aria-label="Sections">{links}</nav><main id="main" tabindex="-1">'
            f"<noscript><p>Tables, charts and the graph of this page need JavaScript; it asks no network for anything.</p></noscript>{body}</main>"
            f"<footer>{escaped(self.footer)}</footer>{data}{''.join(f'<script>{s}</script>' for s in scripts)}</body></html>\n"
        )

    def _placed(self) -> Iterator[tuple[Section, list[tuple[str, Block]]]]:
        """Sections, with an id for each block."""
        number = 0
        for section in self.sections:
            members = []
            for block in section.blocks:
                members.append((f"b{number}", block))
                number += 1
            yield section, members


def _section(number: int, section: Section, members: Sequence[tuple[str, Block]]) -> str:
    inner = "".join(block.render(ident) for ident, block in members)
    return f'<section id="s{number}" aria-labelledby="h{number}"><h2 id="h{number}">{escaped(section.heading)}</h2>{inner}</section>'


def fragment(title: str, blocks: Sequence[Block]) -> str:
    """A compact piece of html without scripts, for `_repr_html_` in a notebook; it takes the notebook's colours."""
    inner = "".join(block.static() for block in blocks)
    return f'<div class="plait"><style>{_asset("fragment.css")}</style><h3>{escaped(title)}</h3>{inner}</div>'


def _once(*names: str) -> list[str]:
    return list(dict.fromkeys(names))


@cache
def _asset(name: str) -> str:
    """A script or style sheet of the package, without a pointer to files that are not there."""
    text = (files("plait.page") / "assets" / name).read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("//# sourceMappingURL"))
