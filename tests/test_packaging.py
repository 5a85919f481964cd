"""The wheel holds what the tree holds, and what is installed from it imports anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
#: Folder in the tree -> package in the wheel.
PARTS = {"plait": "plait", "ops": "plait/ops", "planner": "plait/planner", "engine": "plait/engine"}


def run(*command: str, cwd: Path, plain: Path | None = None) -> str:
    """Output of a Python command that must succeed.

    `plain` is a folder that plait is installed in: it goes before the site-packages, and -S keeps an editable install out of the way.
    """
    env = dict(os.environ)
    if plain:
        env["PYTHONPATH"] = os.pathsep.join([str(plain), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        command = ("-S", *command)
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would ship, so that building leaves nothing in the repository."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\n")
    copy = tmp_path_factory.mktemp("tree")
    for name in names:
        if name.split("/")[0] in PARTS or name in {"pyproject.toml", "README.md", "LICENSE"}:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((REPO / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree), cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(target)  # a pure-Python wheel's files are laid out as installed
    return target


def test_wheel_holds_the_modules_of_the_tree(tree: Path, wheel: Path):
    """No subpackage is forgotten and nothing else slips in."""
    expected = {f"{package}/{f.relative_to(tree / part).as_posix()}" for part, package in PARTS.items() for f in (tree / part).rglob("*.py")}
    names = {n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py")}
    assert names == expected


def test_wheel_carries_licence_types_and_command(wheel: Path):
    """LICENSE, py.typed and the console script are in the wheel."""
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "plait/py.typed" in names
    script = next(n for n in names if n.endswith("entry_points.txt"))
    assert "plait = plait.__main__:command" in archive.read(script).decode()


def test_wheel_holds_the_scripts_of_pages(tree: Path, wheel: Path, installed: Path, tmp_path: Path):
    """Every asset is there as in the tree, the licences of the libraries included, and a page with a graph is made from them."""
    assets = tree / "plait" / "page" / "assets"
    archive = zipfile.ZipFile(wheel)
    expected = {f"plait/page/assets/{f.relative_to(assets).as_posix()}": f.read_bytes() for f in assets.rglob("*") if f.is_file()}
    assert {n: archive.read(n) for n in archive.namelist() if n.startswith("plait/page/assets/")} == expected
    assert {"cytoscape.LICENSE", "dagre.LICENSE", "uPlot.LICENSE"} <= {Path(n).name for n in expected}
    code = "from plait.page import *; print(len(Page('t', '', [Section('s', [Graph('g', '', [GraphNode('a', 'a')], [])])]).render()))"
    assert int(run("-c", code, cwd=tmp_path, plain=installed)) > 400_000


def test_installed_wheel_imports_from_elsewhere(installed: Path, tmp_path: Path):
    """Every part comes from the installed files, from any folder."""
    code = "import plait, plait.ops, plait.planner, plait.engine as e, plait.ops.methods, plait.ops.kernels; print(plait.__file__, e.__file__, sep='\\n')"
    plait_file, engine_file = run("-c", code, cwd=tmp_path, plain=installed).splitlines()
    assert Path(plait_file) == installed / "plait" / "__init__.py"
    assert Path(engine_file) == installed / "plait" / "engine" / "__init__.py"


def test_source_tree_shadows_a_plain_install_as_a_whole(installed: Path, tree: Path):
    """`python -m plait` inside the source tree finds the parts beside its plait/ folder, not half of each."""
    code = "import plait, plait.ops.op as o, plait.planner as p, plait.engine as e; print(*(m.__file__ for m in (plait, o, p, e)), sep='\\n')"
    files = [Path(f).resolve() for f in run("-c", code, cwd=tree, plain=installed).splitlines()]
    assert files == [tree / "plait/__init__.py", tree / "ops/op.py", tree / "planner/__init__.py", tree / "engine/__init__.py"]
    assert "Usage" in run("-m", "plait", "--help", cwd=tree, plain=installed)
