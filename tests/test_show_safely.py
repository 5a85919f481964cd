"""What files say is shown as text: no word of theirs is obeyed by the terminal or by the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from plait.cli import main
from support import tiny

NAMES = ("[/x].weight", "[bold]a", "model.layers.0.[red]q", "[link=https://example.org]b")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    values = {name: np.zeros((4, 4), np.float32) for name in NAMES}
    config = {"model_type": "\x1b[2J\x07owned", "architectures": ["\u202eevil", "[bold]"]}
    return [tiny.write_model(tmp_path / name, values, config=config) for name in ("[a]", "b")]


def test_inspect(models: list[Path]) -> None:
    """Names that look like markup are listed as they are; control characters of the configuration are escaped."""
    done = CliRunner().invoke(main, ["inspect", str(models[0]), "--tensors"], terminal_width=200)
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in NAMES)
    assert "[a]" in done.output.splitlines()[0]
    assert "\\x1b[2J\\x07owned" in done.output
    assert all(line.isprintable() for line in done.output.splitlines())


def test_plan_and_merge(models: list[Path], tmp_path: Path) -> None:
    """A plan's tree shows such names too, and the merge runs."""
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(tiny.recipe("linear", models, each={"weight": 1.0}))
    planned = CliRunner().invoke(main, ["plan", str(recipe)])
    assert planned.exit_code == 0, planned.output
    assert "[/x].weight" in planned.output
    assert all(line.isprintable() for line in planned.output.splitlines())
    assert CliRunner().invoke(main, ["merge", str(recipe), str(tmp_path / "out"), "--memory", "256MiB"]).exit_code == 0
