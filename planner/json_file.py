"""Read small JSON files of a model folder: bounded in size, in values and in depth, and strict about names that come twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plait.ops.errors import CheckpointError
from plait.planner.header_text import unique_pairs
from plait.planner.safetensors_header import open_regular

MAX_DEPTH = 64


def read_json(path: Path, limit: int, what: str, most_marks: int) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        limit: most bytes.
        what: the file's role, for messages, such as `the index`.
        most_marks: most commas, colons and brackets together, which bound the objects it becomes.

    Raises:
        CheckpointError: it is no JSON object, is larger than that, is nested deeply, or names something twice.
    """
    fd, status = open_regular(str(path), f"{what} as a file")
    with open(fd, "rb") as stream:
        try:
            raw = stream.read(limit + 1) if status.st_size <= limit else b""
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the disk", path=str(path)) from error
    size = max(status.st_size, len(raw))
    if size > limit:
        raise CheckpointError(f"{path} takes {size} bytes, too many for {what} (the limit is {limit}); check the file", path=str(path))
    if sum(map(raw.count, (b",", b":", b"[", b"{"))) > most_marks:
        raise CheckpointError(f"{path} holds too many values for {what}; check the file", path=str(path))
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique_pairs)
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # an escape can make half a character, which nothing can write again
    except UnicodeError:
        raise CheckpointError(f"{path} is not valid UTF-8; mend {what} or download it again", path=str(path)) from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{path} is not valid JSON ({why}); mend {what} or download it again", path=str(path)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; mend {what} or download it again", path=str(path))
    if _deeper(value, MAX_DEPTH):
        raise CheckpointError(f"{path} is not valid JSON for {what} (nested too deeply); mend it or download it again", path=str(path))
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` deep."""
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True
