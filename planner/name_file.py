"""A file of tensor names that a parameter points to, read when the recipe is: a name a line, a JSON list, or a JSON object of scores."""

from __future__ import annotations

import json
import os
from pathlib import Path

from plait.ops.errors import CheckpointError
from plait.planner.safetensors_header import open_regular

_MAX_BYTES = 4 << 20

Names = tuple[tuple[str, float | None], ...]


def read_names(path: str, near: str = "") -> Names:
    """The names in a file, each with its score where the file has scores.

    Args:
        path: as given; a relative one is looked for in the working directory, then in `near`.
        near: folder of the recipe.

    Raises:
        ValueError: the file cannot be read or holds no names; the sentence says what to do.
    """
    found = next((p for p in (path, os.path.join(near, path)) if os.path.exists(p)), path)
    try:
        fd, _ = open_regular(found, "a file of names")
        with open(fd, "rb") as handle:
            raw = handle.read(_MAX_BYTES + 1)
    except (OSError, CheckpointError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message.removeprefix(found).lstrip(": ")
        raise ValueError(f"the file of names {path} cannot be read: {reason}; check the path") from None
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"the file of names {path} is larger than {_MAX_BYTES >> 20} MiB; is this a list of tensor names?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the file of names {path} is not text in UTF-8; write a name a line, or JSON") from None
    names = _from_json(path, text) if text.lstrip()[:1] in ("[", "{") else tuple((line.strip(), None) for line in text.splitlines() if line.strip())
    if not names:
        raise ValueError(f"the file of names {path} holds none; write a name a line, or JSON")
    return names


def _from_json(path: str, text: str) -> Names:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file of names {Path(path).name} begins like JSON but is none: {error}") from None
    if isinstance(value, list) and all(isinstance(name, str) and name for name in value):
        return tuple((name, None) for name in value)
    if isinstance(value, dict) and all(isinstance(x, (int, float)) and not isinstance(x, bool) and x == x for x in value.values()):
        return tuple((name, float(score)) for name, score in value.items() if name)
    raise ValueError(f"the file of names {path} must be a JSON list of names, or an object of names and scores")
