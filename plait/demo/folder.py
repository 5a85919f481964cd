"""The folder that the demo keeps: what lies where, and that nothing of the user's is ever overwritten.

plait-demo/
  plait-demo.json      marks the folder as the demo's own
  models/minilm        the base, and minilm-question, minilm-spam, minilm-sentiment: the experts
  recipes/NAME.yaml    what is merged and how
  merged/NAME          the result of each recipe
  results.json         the numbers of the table
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from plait.ops.errors import OutputError

BASE = "minilm"
_MARKER = "plait-demo.json"


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Paths inside the demo's folder."""

    root: Path

    @property
    def base(self) -> Path:
        """The base checkpoint."""
        return self.root / "models" / BASE

    def expert(self, task: str) -> Path:
        """The expert of a task."""
        return self.root / "models" / f"{BASE}-{task}"

    def recipe(self, name: str) -> Path:
        """The recipe of a merge."""
        return self.root / "recipes" / f"{name}.yaml"

    def merged(self, name: str) -> Path:
        """Where a merge is written."""
        return self.root / "merged" / name

    @property
    def results(self) -> Path:
        """The numbers of the last run."""
        return self.root / "results.json"

    def clear_merge(self, name: str) -> None:
        """Remove what an earlier run merged under this name, since `plait merge` overwrites nothing."""
        if self.merged(name).exists():
            shutil.rmtree(self.merged(name))


def open_folder(root: Path) -> DemoFolder:
    """Make the folder, or take one that an earlier run made.

    Raises:
        OutputError: it cannot be made, or holds something else; nothing in it is touched.
    """
    marker = root / _MARKER
    if not marker.is_file():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise OutputError(f"{root} exists and was not made by `plait demo`: name another folder, or an empty one", path=str(root))
        try:
            root.mkdir(parents=True, exist_ok=True)
            marker.write_text('{"made_by": "plait demo"}\n', encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write to {root} ({error.strerror}): name another folder", path=str(root)) from error
    for part in ("models", "recipes", "merged"):
        (root / part).mkdir(exist_ok=True)
    return DemoFolder(root)
