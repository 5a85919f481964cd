"""A line of a tree, wrapped as people would: numbers stay with their units, and what is continued stands below its own column."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

#: Stands for a space at which no line is broken; no text from a file or recipe has it.
_GLUE = "\x00"
_UNIT = re.compile(r"(?<=\d) (?=(?:B|[KMGT]iB|s|min|h|%|x|[MGTP]?FLOP)\b|%)")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text, plain, whatever brackets it holds.

    Attributes:
        text: of the line.
        hang: columns by which what is continued is set in.
        bold: leading characters that are set in bold.
    """

    text: str
    hang: int = 2
    bold: int = 0

    def wrapped(self, width: int) -> list[str]:
        """The line as lines of no more than `width` columns."""
        glued = _UNIT.sub(_GLUE, self.text.replace(_GLUE, " "))
        hang = self.hang if self.hang < width // 2 else 0
        lines = textwrap.wrap(glued, max(width, 1), subsequent_indent=" " * hang, break_on_hyphens=False, replace_whitespace=False, expand_tabs=False)
        return [line.replace(_GLUE, " ") for line in lines] or [""]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        for number, line in enumerate(self.wrapped(options.max_width)):
            shown = Text(line, no_wrap=True)
            if number == 0 and self.bold:
                shown.stylize("bold", 0, self.bold)
            yield shown


def headed(head: str, rest: str = "", hang: int = 2) -> Line:
    """A line that begins with a bold word."""
    return Line(f"{head}  {rest}" if rest else head, hang, len(head))
