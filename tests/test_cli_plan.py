"""`plait plan` on the command line: it answers first, in words that need no documents, and in every format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

import plait
from plait.cli import main
from plait.planner.sizes import size
from plait.planner.words import duration
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))
OPTIONS = plait.Options(memory="96MiB", workers=2)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("set")
    found = {}
    for name, text in tiny.recipes(tiny.write_set(folder)).items():
        found[name] = folder / f"{name}.yml"
        found[name].write_text(text)
    return found


def run(*arguments: object, width: int = 80, good: bool = True) -> Result:
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(main, ["plan", *map(str, arguments)], prog_name="plait")
    assert (result.exit_code == 0) is good, result.output
    return result


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--schema").stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_is_the_answer(name: str, recipes: dict[str, Path]):
    """Memory, time and the tensor that sets the peak, in a sentence without jargon, with the figures of the plan."""
    p = plait.plan(recipes[name], OPTIONS).prediction
    text = run(recipes[name], "-m", "96MiB", "-j", "2", width=200).stdout.splitlines()[0]
    assert f"needs {size(p.peak_bytes)} of memory and about {duration(p.seconds)}" in text
    assert text.endswith(f"the peak is set by {p.peak_task}") or not p.peak_task


@pytest.mark.parametrize("width", [80, 140])
def test_no_escapes_in_a_pipe_and_no_line_too_wide(width: int, recipes: dict[str, Path]):
    """Where no terminal is there is no colour, and nothing is wider than asked."""
    for more in ((), ("--why", "lm_head.weight"), ("--diff", recipes["linear"])):
        text = run(recipes["ties"], "-m", "96MiB", *more, width=width).stdout
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("name", NAMES)
def test_json_is_what_the_schema_says(name: str, recipes: dict[str, Path], schema: dict[str, Any]):
    """Every plan fits the schema that the package ships, and the schema names every key at the top."""
    data = json.loads(run(recipes[name], "-m", "96MiB", "--format", "json").stdout)
    jsonschema.validate(data, schema)
    assert set(schema["required"]) == data.keys()


def test_the_schema_refuses_what_is_no_plan(recipes: dict[str, Path], schema: dict[str, Any]):
    """It is no schema that takes everything."""
    data = json.loads(run(recipes["ties"], "-m", "96MiB", "--format", "json").stdout)
    for key, value in (("version", 2), ("fingerprint", "x"), ("workers", 0), ("what_if", [{}]), ("components", [{"name": 1}])):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**data, key: value}, schema)


def test_every_key_of_the_schema_is_documented(schema: dict[str, Any]):
    """`docs/plan-format.md` names each key at the top, and no other."""
    text = (Path(__file__).parents[1] / "docs" / "plan-format.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(table) == sorted(schema["required"])
    assert all("description" in about or "const" in about or "enum" in about for about in schema["properties"].values())


def test_other_budgets_are_shown(recipes: dict[str, Path]):
    """The smallest that works, the one given and the one that is enough, with figures of the plan."""
    text = run(recipes["ties"], "-m", "96MiB", "-j", "2").stdout
    least = plait.plan(recipes["ties"], OPTIONS).prediction.minimum_bytes
    assert re.search(rf"{re.escape(size(least))} .*least", text)
    assert re.search(r"96 MiB .*yours", text)
    assert re.search(r"[KMG]iB .*enough", text)


def test_why_names_the_nearest_of_a_misspelt_tensor(recipes: dict[str, Path]):
    """One sentence, exit status 2."""
    result = run(recipes["ties"], "--why", "lm_heat.weight", good=False)
    assert result.exit_code == 2
    assert "the output has no tensor 'lm_heat.weight'; the nearest are lm_head.weight" in result.stderr


def test_why_and_diff_as_data(recipes: dict[str, Path]):
    """Both are there as JSON."""
    why = json.loads(run(recipes["ties"], "--why", "lm_head.weight", "--format", "json").stdout)
    assert why["expression"][-1]["name"] == "output"
    diff = json.loads(run(recipes["ties"], "--diff", recipes["linear"], "--format", "json").stdout)
    assert sum(c["count"] for c in diff["changes"]) == len(tiny.SHAPES)
    assert diff["before"] == str(recipes["ties"])


def test_what_does_not_go_together_is_refused(recipes: dict[str, Path]):
    """In a sentence that says what to leave out."""
    assert "give one of them" in run(recipes["ties"], "--why", "x", "--diff", recipes["linear"], good=False).stderr
    assert "leave out --format dot" in run(recipes["ties"], "--why", "x", "--format", "dot", good=False).stderr


def test_pictures(recipes: dict[str, Path]):
    """DOT and Mermaid come out as they are, with nothing around them."""
    assert run(recipes["ties"], "--format", "dot").stdout.startswith("digraph plan {")
    assert "\nflowchart LR\n" in run(recipes["ties"], "--format", "mermaid").stdout


def test_a_plan_is_a_python_object(recipes: dict[str, Path]):
    """The same through the API: text, data and graph."""
    plan = plait.plan(recipes["ties"], OPTIONS)
    assert plan.explain(80).startswith("ties needs ")
    assert json.loads(plan.to_json())["headline"] in plan.explain(400)
    assert plan.to_networkx().number_of_nodes() == len(plan.components) * 4
