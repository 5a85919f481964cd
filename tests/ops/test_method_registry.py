"""The registry: typed parameters, the nearest name, and methods that installed packages add."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.ops.method import Param, method, methods, nearest, steps

NAMES = {"linear", "passthrough", "slerp", "model_stock", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "iso_c"}
NAMES |= {"uniform_soup", "nuslerp", "multislerp", "karcher", "nearswap", "expo", "magmax", "ram", "ramplus_tl", "emr", "consensus", "fisher", "led", "sens"}


def test_the_catalogue():
    """The methods and steps of this version, each documented, with a source and known kinds of op."""
    assert set(methods()) >= NAMES
    assert set(steps()) >= {"magic_wsc"}
    for name, entry in {**methods(), **steps()}.items():
        assert entry.name == name
        assert entry.doc
        assert entry.summary.endswith(".")
        assert entry.source
        assert set(entry.kinds) <= {"map", "fold", "rows", "whole"}
        assert entry.is_step == (name in steps())


def test_every_parameter_is_documented_and_accepts_its_default():
    """A sentence on each, no name twice, and the default passes the parameter's own check."""
    for entry in [*methods().values(), *steps().values()]:
        assert len({p.name for p in entry.params}) == len({p.keyword for p in entry.params}) == len(entry.params)
        for p in entry.params:
            assert p.doc.endswith("."), (entry.name, p.name)
            assert p.keyword.isidentifier()
            assert p.check(p.default) == (tuple(p.default) if p.type is list else p.default)


@pytest.mark.parametrize(
    ("param", "value", "result"),
    [
        (Param("x", float, "."), 1, 1.0),
        (Param("x", float, "."), "1e-5", 1e-5),
        (Param("x", float, ".", default=None), None, None),
        (Param("x", int, ".", default=0), 3.0, 3),
        (Param("x", int, ".", default=0), "7", 7),
        (Param("x", bool, ".", default=True), False, False),
        (Param("x", str, ".", default="a", choices=("a", "b")), "b", "b"),
        (Param("x", str, ".", default="a"), "anything", "anything"),
        (Param("x", list, ".", default=()), "one", ("one",)),
        (Param("x", list, ".", default=()), ["one", "two"], ("one", "two")),
        (Param("x", float, ".", default=0.0, low=0.0, high=1.0), 0, 0.0),
        (Param("x", float, ".", default=0.0, low=0.0, high=1.0), 1, 1.0),
    ],
)
def test_values_become_the_parameters_type(param: Param, value: Any, result: Any):
    """Numbers written as text, whole floats and single names are taken as they are meant."""
    checked = param.check(value)
    assert checked == result
    assert type(checked) is type(result)


@pytest.mark.parametrize(
    ("param", "value", "words"),
    [
        (Param("density", float, ".", default=1.0, low=0.0, high=1.0), 1.5, "density must be between 0 and 1, not 1.5"),
        (Param("density", float, ".", default=1.0, low=0.0, high=1.0), -0.1, "between 0 and 1"),
        (Param("seed", int, ".", default=0, low=0), -1, "seed must be at least 0, not -1"),
        (Param("x", float, ".", default=0.0, high=2.0), 3, "at most 2"),
        (Param("x", float, ".", default=0.0), "many", "x must be a number, not 'many'"),
        (Param("x", float, ".", default=0.0), True, "x must be a number, not True"),
        (Param("x", float, ".", default=0.0), None, "x must be a number, not None"),
        (Param("x", float, ".", default=None, required=True), None, "x must be a number, not None"),
        (Param("x", float, ".", default=0.0), [1.0], "must be a number"),
        (Param("x", float, ".", default=0.0), float("nan"), "must be finite"),
        (Param("x", float, ".", default=0.0), ".inf", "must be a number"),
        (Param("x", float, ".", default=0.0), "inf", "must be finite"),
        (Param("x", int, ".", default=0), 1.5, "x must be a whole number, not 1.5"),
        (Param("x", bool, ".", default=True), 1, "x must be true or false, not 1"),
        (Param("x", bool, ".", default=True), "yes", "true or false"),
        (Param("x", str, ".", default="a"), 3, "x must be a word, not 3"),
        (Param("rule", str, ".", default="sphere", choices=("sphere", "ellipsoid")), "elipsoid", r"not 'elipsoid' \(did you mean 'ellipsoid'\?\)"),
        (Param("x", list, ".", default=()), 3, "x must be a list of names, not 3"),
        (Param("x", list, ".", default=()), ["a", 3], "list of names"),
    ],
)
def test_bad_values_are_refused(param: Param, value: Any, words: str):
    """Type, bounds, choices and finiteness; the sentence names parameter and value."""
    with pytest.raises(ValueError, match=words):
        param.check(value)


def test_the_nearest_name_is_offered():
    """Only a close one: a typo has a hint, another word has none."""
    assert nearest("densty", ["density", "weight"]) == " (did you mean 'density'?)"
    assert nearest("zzz", ["density", "weight"]) == ""
    with pytest.raises(AttributeError, match=r"no merge method called 'tise' \(did you mean 'ties'\?\)"):
        _ = plait.methods.tise
    assert set(dir(plait.methods)) >= NAMES | {"magic_wsc"}


def test_the_methods_of_a_table_cannot_be_added_to_from_outside():
    """The returned tables are read only."""
    for table in (methods(), steps()):
        with pytest.raises(TypeError, match="does not support item assignment"):
            table["new"] = next(iter(table.values()))  # type: ignore[index]
        with pytest.raises(AttributeError, match="clear"):
            table.clear()  # type: ignore[attr-defined]


def test_a_name_is_given_once():
    """Another module's method cannot take the place of one that is there."""
    with pytest.raises(ValueError, match="a method called 'ties' is there already, from plait"):

        @method("ties", family="tests", base="required", experts=(1, 1), source="nobody", kinds=("map",))
        def ties(t, **_):
            """Nothing."""


# -- packages that add methods ------------------------------------------------------------------------

PACKAGE = """
from plait.ops.method import method
from plait.ops.methods.parameters import WEIGHT

@method("half_way", family="tests", base="required", experts=(1, 1), source="nobody", kinds=("map",), params=(WEIGHT,))
def half_way(t, *, weight):
    '''The middle of base and expert.

    theta = (theta_0 + w theta_1) / 2.
    '''
    return (t.origin + weight[0] * t.experts[0]) / 2.0
"""


def install(folder: Path, source: str) -> dict[str, str]:
    """A package with the entry point, as pip would leave it; returns the environment that sees it."""
    (folder / "half_way_package.py").write_text(source)
    info = folder / "half_way_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-way-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[plait.methods]\nhalf_way = half_way_package\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def python(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=60)


def test_an_installed_package_adds_a_method(tmp_path: Path):
    """Its method is in the catalogue, in Python and on the command line."""
    env = install(tmp_path, PACKAGE)
    done = python(env, "-c", "import plait; print(plait.methods.half_way.__doc__); print('half_way' in dir(plait.methods))")
    assert done.returncode == 0, done.stderr
    assert "The middle of base and expert." in done.stdout
    assert done.stdout.rstrip().endswith("True")
    shown = python(env, "-m", "plait", "methods", "half_way")
    assert shown.returncode == 0, shown.stderr
    assert "The middle of base and expert." in shown.stdout


def test_a_package_that_fails_to_import_is_named(tmp_path: Path):
    """One sentence with the entry point and the reason, and exit status 2."""
    env = install(tmp_path, "import a_module_that_nobody_has\n")
    done = python(env, "-m", "plait", "methods")
    assert done.returncode == 2
    assert "half_way_package" in done.stderr
    assert "a_module_that_nobody_has" in done.stderr
    assert "Traceback" not in done.stderr
