"""What a method's docstring says, in parts.

The first line is the summary. What follows is the formula, and an author who says no more than that has a good page. Four headings may follow, each on
a line of its own with indented text below, in any order:

    Idea:
        Why it should work, in a sentence or two.
    Differs:
        - From which reference code, in what.
    Caveats:
        - What to look out for.
    Example:
        density: 0.2
        lambda: 1.0

`Example` holds parameters of a recipe that is worth trying, in YAML, one a line. `Formula:` may be given as a heading, too; text before the first
heading then belongs to the idea.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

_HEADINGS = ("Idea", "Formula", "Differs", "Caveats", "Example")
#: Headings of ordinary docstrings, which say nothing to somebody who merges.
_OTHERS = ("Args", "Returns", "Raises", "Attributes")
_WRAPPED = 72  #: a line this long was broken where it ends, not because it ends
_HEADING = re.compile(rf"({'|'.join((*_HEADINGS, *_OTHERS))}):\s*$")


@dataclass(frozen=True, slots=True)
class MethodDoc:
    """The parts of a docstring.

    Attributes:
        summary: one line.
        idea: prose; empty where the author gave none.
        formula: what is computed, lines as they were written.
        differs: what is known to differ from reference codes, an entry each.
        caveats: likewise.
        example: parameters worth trying, `(name, text of the value)`.
    """

    summary: str
    idea: str = ""
    formula: str = ""
    differs: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    example: tuple[tuple[str, str], ...] = ()


def parse_doc(doc: str) -> MethodDoc:
    """The parts of a method's docstring."""
    summary, _, rest = inspect.cleandoc(doc).partition("\n")
    parts: dict[str, list[str]] = {"": []}
    current = parts[""]
    for line in rest.splitlines():
        heading = _HEADING.match(line)
        if heading:
            current = parts.setdefault(heading[1], [])
        elif line and not line[0].isspace() and current is not parts[""]:
            current = parts[""]  # a section ends with its indentation
            current += ["", line]
        else:
            current.append(line)
    text = {name: unwrapped(inspect.cleandoc("\n".join(["", *lines])).strip("\n")) for name, lines in parts.items()}
    body = text[""]
    return MethodDoc(
        summary.strip(),
        "\n\n".join(filter(None, (body if "Formula" in text else "", text.get("Idea", "")))),
        text.get("Formula", body),
        _items(text.get("Differs", "")),
        _items(text.get("Caveats", "")),
        _pairs(text.get("Example", "")),
    )


def unwrapped(text: str) -> str:
    """Text whose long lines go on in the next one, joined; short lines are formulas, and stay."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and len(lines[-1]) >= _WRAPPED and line.strip() and not line.startswith(("- ", "  ")):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _items(text: str) -> tuple[str, ...]:
    """Entries that begin with a dash, or paragraphs where there is none; lines of one are joined."""
    starts = r"(?m)^- +" if re.search(r"(?m)^- ", text) else r"\n\s*\n"
    return tuple(" ".join(entry.split()) for entry in re.split(starts, text) if entry.strip())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for line in text.splitlines():
        name, colon, value = line.strip().partition(":")
        if colon:
            found.append((name.strip(), value.strip()))
    return tuple(found)
