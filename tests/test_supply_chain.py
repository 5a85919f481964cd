"""What plait does not do: it uses no network, imports nothing from a checkpoint, and its dependencies are pinned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import tiny

REPO = Path(__file__).parents[1]
#: What could open a connection; `socket` itself is imported by parts of the standard library that open none.
NETWORK = {"urllib", "http", "requests", "httpx", "aiohttp", "socket", "ssl", "ftplib", "smtplib", "xmlrpc", "huggingface_hub", "urllib3"}
#: Runs `plait ARGS` where a connection, a name look-up or importing one of these modules would be found.
WRAPPER = """
import runpy, sys
refused = []

def hook(event, args):
    if event.startswith("socket.") and event not in ("socket.gethostname",):
        refused.append(event)
        raise PermissionError(f"no network here: {event}")
    if event == "import" and args[0].split(".")[0] in ("requests", "httpx", "aiohttp", "huggingface_hub", "urllib3", "ftplib", "smtplib", "xmlrpc"):
        refused.append(args[0])
    if event == "import" and args[0] in ("urllib.request", "http.client", "ssl"):
        refused.append(args[0])
    if event == "import" and "hostile_module" in args[0]:
        refused.append(args[0])

sys.addaudithook(hook)
try:
    runpy.run_module("plait", run_name="__main__", alter_sys=True)
finally:
    print("refused:", *refused, file=sys.stderr)
"""


def files() -> list[Path]:
    return sorted(f for part in ("ops", "planner", "engine", "plait") for f in (REPO / part).rglob("*.py"))


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_no_network_and_no_code_of_a_checkpoint(command: str, tmp_path: Path) -> None:
    """With every socket refused a merge runs, and code that lies in a model folder, and that its configuration names, is not imported."""
    models = tiny.write_set(tmp_path / "models", experts=1)
    for model in models:
        config = (model / "config.json").read_text()[:-1] + ', "auto_map": {"AutoModel": "hostile_module.Model"}, "trust_remote_code": true}'
        (model / "config.json").write_text(config)
        for name in ("hostile_module.py", "modeling.py", "__init__.py", "sitecustomize.py"):
            (model / name).write_text("raise SystemExit('code of a checkpoint ran')\n")
    (tmp_path / "recipe.yml").write_text(tiny.recipe("linear", models, each={"weight": 0.5}))
    target = ["out"] if command == "merge" else []
    done = subprocess.run(
        [sys.executable, "-c", WRAPPER, command, str(tmp_path / "recipe.yml"), *target, "--memory", "256MiB"],
        cwd=tmp_path / "models" / "base" if command == "plan" else tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "refused:"
    if command == "merge":
        assert (tmp_path / "out" / "model.safetensors").exists()
        assert not list((tmp_path / "out").glob("*.py"))


def test_nothing_imports_a_network_module() -> None:
    """No file of plait imports one, not even inside a function."""
    found = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file.relative_to(REPO)}: {name}" for name in names if name.split(".")[0] in NETWORK]
    assert not found


def test_nothing_is_unpickled_or_evaluated_from_files() -> None:
    """No file of plait loads a pickle, a torch file or YAML with tags."""
    unsafe = re.compile(r"\bpickle\.(load|loads|Unpickler)\b|\btorch\.load\(|\byaml\.(load|unsafe_load|full_load)\(|allow_pickle=True|\bmarshal\.loads?\(")
    wrong = [f"{file.relative_to(REPO)}: {line.strip()}" for file in files() for line in file.read_text().splitlines() if unsafe.search(line)]
    wrong = [line for line in wrong if "weights_only=True" not in line]
    assert not wrong


def test_every_dependency_is_pinned() -> None:
    """Each package that pyproject.toml names has an exact version in the constraints."""
    pinned = {re.split(r"==", line)[0].lower().replace("_", "-") for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line}
    text = (REPO / "pyproject.toml").read_text()
    lists = re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M), re.search(r"^\[project\.optional-dependencies\](.*?)^\[", text, re.S | re.M)
    named = {name.lower().replace("_", "-") for found in lists if found for name in re.findall(r'"([A-Za-z][\w.-]*)', found[1])}
    assert {"numpy", "torch", "hypothesis"} <= named
    # torch's CUDA build names the one version of Triton that it works with, and a second pin could only contradict it
    assert named - {"triton"} <= pinned
