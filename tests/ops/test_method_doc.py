"""Docstrings of methods: plain ones are whole pages, headings split them, and nothing of the text is lost."""

from __future__ import annotations

from plait.ops.method import methods, steps
from plait.ops.method_doc import MethodDoc, parse_doc, unwrapped

FULL = """Sum it.

    theta = a + b

    Idea:
        Two are more
        than one.
    Differs:
        - The paper's code subtracts,
          by mistake.
        - mergekit rounds.
    Caveats:
        Twice as large.

        And slower.
    Example:
        density: 0.2
        filter: [a: b]
    """


def test_a_plain_docstring_is_summary_and_formula():
    """What follows the first line is what is computed; the rest is empty."""
    assert parse_doc("Sum it.\n\n    theta = a + b\n    b is small.\n    ") == MethodDoc("Sum it.", formula="theta = a + b\nb is small.")
    assert parse_doc("Sum it.") == MethodDoc("Sum it.")
    assert parse_doc("") == MethodDoc("")


def test_headings_split_a_docstring():
    """Sections in any order; entries by dash or by paragraph, their lines joined; parameters as they are written."""
    parts = parse_doc(FULL)
    assert parts.summary == "Sum it."
    assert parts.formula == "theta = a + b"
    assert parts.idea == "Two are more\nthan one."
    assert parts.differs == ("The paper's code subtracts, by mistake.", "mergekit rounds.")
    assert parts.caveats == ("Twice as large.", "And slower.")
    assert parts.example == (("density", "0.2"), ("filter", "[a: b]"))


def test_a_formula_heading_makes_prose_of_what_stands_before():
    """Text before the first heading is then part of the idea."""
    parts = parse_doc("S.\n\nWhy not.\n\nFormula:\n    x = 1\n    y = 2\n\nIdea:\n    Because.\n")
    assert (parts.formula, parts.idea) == ("x = 1\ny = 2", "Why not.\n\nBecause.")


def test_a_section_ends_with_its_indentation():
    """Text at the margin after a section belongs to the body again; sections for programmers are left out."""
    parts = parse_doc("S.\n\nx = 1\n\nArgs:\n    t: inputs.\n\nMore of it.\n")
    assert parts.formula.split("\n\n") == ["x = 1", "More of it."] or parts.formula.split() == ["x", "=", "1", "More", "of", "it."]
    assert "inputs" not in repr(parts)


def test_long_lines_are_joined_and_short_ones_kept():
    """Prose that was broken at the margin flows; formulas stand by themselves."""
    long = "word " * 16
    assert unwrapped(f"{long.strip()}\ngoes on.\n\nx = 1\ny = 2") == f"{long.strip()} goes on.\n\nx = 1\ny = 2"


def test_every_method_has_a_page_worth_reading():
    """A summary that is one sentence, a formula or an idea, a source; examples name parameters that exist and that they take."""
    for m in {**methods(), **steps()}.values():
        parts = m.parts
        assert parts.summary.endswith("."), m.name
        assert parts.formula or parts.idea, m.name
        assert m.source, m.name
        for name, value in parts.example:
            param = m.param(name)
            assert param is not None, (m.name, name)
            if param.type in (int, float):
                param.check(float(value))
