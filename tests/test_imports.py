"""Imports run one way, plait -> engine -> planner -> ops, and nothing that only plans or streams imports torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.golden import COMPACT

REPO = Path(__file__).parents[1]
#: Each part, and the parts of plait that its files may import.
ALLOWED = {"ops": {"ops"}, "planner": {"ops", "planner"}, "engine": {"ops", "planner", "engine"}}
HEAVY = {"torch", "numba"}


def imports(source: str) -> list[str]:
    """Full names of every module that `source` imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def import_time(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run when a module is imported: not those in functions or under TYPE_CHECKING."""
    todo, found = list(tree.body), []
    while todo:
        node = todo.pop()
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def parts_imported(source: str) -> set[str]:
    """Which of plait's parts a file imports; `plait` itself stands for the public face."""
    dotted = [name.split(".") for name in imports(source) if name.split(".")[0] == "plait"]
    return {name[1] if len(name) > 1 and name[1] in ALLOWED else "plait" for name in dotted}


@pytest.mark.parametrize("part", ALLOWED)
def test_direction(part: str):
    """A file imports nothing from a part above its own."""
    files = sorted((REPO / part).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(REPO)): extra for f in files if (extra := parts_imported(f.read_text()) - ALLOWED[part])}
    assert not wrong


def test_direction_notices_a_wrong_import():
    """The check sees imports in functions, from the public face and of submodules."""
    assert parts_imported("def f():\n    from plait.engine import run") == {"engine"}
    assert parts_imported("import plait.planner.plan\nfrom plait import api\nimport os") == {"planner", "plait"}


@pytest.mark.parametrize("part", ["ops", "planner", "plait"])
def test_no_module_imports_torch_or_numba_at_its_top(part: str):
    """What plans imports neither at module level; kernels compiled by numba live in files that only the engine imports."""
    wrong = []
    for file in sorted((REPO / part).rglob("*.py")):
        if file.parent.name == "kernels" or "demo" in file.relative_to(REPO).as_posix():
            continue
        top = import_time(ast.parse(file.read_text()))
        names = [name for node in top for name in imports(ast.unparse(node)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        wrong += [f"{file.relative_to(REPO)}: {name}" for name in names if name.split(".")[0] in HEAVY]
    assert not wrong


#: Runs `python -m plait ARGS` (or just imports) in a process that reports at its end what it has imported.
WRAPPER = """
import json, runpy, sys
status = 0
try:
    if sys.argv[1:]:
        runpy.run_module("plait", run_name="__main__", alter_sys=True)
    else:
        import plait, plait.cli
except SystemExit as end:
    status = end.code or 0
sys.stdout.flush()
print(json.dumps([status, sorted({name.split(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def modules_after(*args: str, cwd: Path) -> set[str]:
    """Top-level modules in memory when `plait ARGS` has ended well."""
    done = subprocess.run([sys.executable, "-c", WRAPPER, *args], cwd=cwd, capture_output=True, text=True, timeout=120)
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize("args", [(), ("--help",), ("--version",), ("plan", "ties/fp32/config.yml")], ids=lambda a: a[0] if a else "import")
def test_planning_imports_neither_torch_nor_numba(args: tuple[str, ...]):
    """Importing the command line, asking for help and planning stay light."""
    assert not modules_after(*args, cwd=COMPACT / "mergekit") & HEAVY


@pytest.mark.parametrize("case", ["linear", "ties", "slerp", "dare_ties", "della", "model_stock"])
def test_a_streaming_merge_never_imports_torch(case: str, tmp_path: Path):
    """Maps, folds and rows run without torch from the first byte to the last."""
    modules = modules_after("merge", f"{case}/bf16/config.yml", str(tmp_path / "out"), "--memory", "256MiB", cwd=COMPACT / "mergekit")
    assert "torch" not in modules
    assert (tmp_path / "out" / "model.safetensors").exists()
