"""What a section of a page is made of; here those that need no script: facts, notes and paragraphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from plait.page.text import escaped


class Block(ABC):
    """A part of a section.

    Attributes:
        scripts: files of `assets/` that show it, in loading order, beside `page.js`.
        styles: style sheets of `assets/` beside `page.css`.
    """

    scripts: ClassVar[tuple[str, ...]] = ()
    styles: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def render(self, ident: str) -> str:
        """Html of the block, with `ident` as its id; a script fills it from `data`."""

    def data(self) -> Any:
        """What its script needs, JSON-able; None where there is no script."""
        return None

    def static(self) -> str:
        """Html that says the essence without scripts, for notebooks."""
        return self.render("")


@dataclass(frozen=True)
class Facts(Block):
    """Figures with their names, the first things to read.

    Attributes:
        items: name, value and, where there is more to say, a second line.
    """

    items: Sequence[tuple[str, str] | tuple[str, str, str]]

    def render(self, ident: str) -> str:
        """A description list, a card a figure."""
        cards = []
        for name, value, *more in self.items:
            small = f"<small>{escaped(more[0])}</small>" if more and more[0] else ""
            cards.append(f"<div><dt>{escaped(name)}</dt><dd><b>{escaped(value)}</b>{small}</dd></div>")
        return f'<dl class="facts">{"".join(cards)}</dl>'


@dataclass(frozen=True)
class Notes(Block):
    """A list of sentences.

    Attributes:
        lines: one each.
    """

    lines: Sequence[str]

    def render(self, ident: str) -> str:
        """An unordered list."""
        return f'<ul class="notes">{"".join(f"<li>{escaped(line)}</li>" for line in self.lines)}</ul>'


@dataclass(frozen=True)
class Prose(Block):
    """A paragraph.

    Attributes:
        text: of it.
        lead: it is set larger.
    """

    text: str
    lead: bool = False

    def render(self, ident: str) -> str:
        """A paragraph."""
        return f"<p{' class=lead' if self.lead else ''}>{escaped(self.text)}</p>"
