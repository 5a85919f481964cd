"""Where the reference outputs lie, and one case of mergekit's."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from support.stored import Stored, read_file, read_folder

COMPACT = Path(__file__).parents[1] / "golden"


def root() -> Path:
    """The whole set where there is one (`PLAIT_GOLDEN`, or `shared/golden` beside the repository), else the committed part."""
    named = os.environ.get("PLAIT_GOLDEN")
    whole = Path(named) if named else COMPACT.parents[2] / "shared" / "golden"
    if named and not whole.is_dir():
        raise FileNotFoundError(f"PLAIT_GOLDEN names no folder: {whole}")
    return whole if whole.is_dir() else COMPACT


@dataclass(frozen=True)
class Case:
    """A recipe of mergekit's with what mergekit made of it."""

    name: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}"

    @property
    def home(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return root() / "mergekit"

    @property
    def folder(self) -> Path:
        return self.home / self.name / self.dtype

    @property
    def recipe(self) -> str:
        return f"{self.name}/{self.dtype}/config.yml"

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((self.home / self.recipe).read_text())
        return config

    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        return meta

    def output(self) -> dict[str, Stored]:
        return read_file(self.folder / "out.safetensors")

    def models(self, path: str) -> dict[str, Stored]:
        return _model(self.home / path)


@cache
def _model(folder: Path) -> dict[str, Stored]:
    return read_folder(folder)


def case_names() -> list[str]:
    """Every case folder that is there."""
    return sorted(p.name for p in (root() / "mergekit").iterdir() if p.is_dir() and p.name != "models")


def cases(names: set[str] | list[str]) -> list[Case]:
    """The named cases in both dtypes, as far as their recipes are there."""
    both = [Case(name, dtype) for name in sorted(names) for dtype in ("fp32", "bf16")]
    return [c for c in both if (c.folder / "config.yml").exists()]
