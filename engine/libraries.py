"""Versions of installed libraries, without loading them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def library_version(name: str) -> str:
    """Version of an installed library; "unknown" where it is not installed.

    `importlib.metadata` takes 30 ms to load, more than planning most merges does, so it is asked only where the name of the library's folder
    of metadata does not say it.
    """
    found = find_spec(name)
    if found is not None and found.origin is not None:
        folders = list(Path(found.origin).parents[1].glob(f"{name}-*.dist-info"))
        if len(folders) == 1:
            return folders[0].name.removeprefix(f"{name}-").removesuffix(".dist-info")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
