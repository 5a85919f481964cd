"""Whether models share one tokenizer, byte for byte."""

from __future__ import annotations

import hashlib
import os

from plait.ops.errors import CheckpointError, RecipeError
from plait.planner.donor import MAX_SIDE_FILE_BYTES
from plait.planner.safetensors_header import open_regular
from plait.planner.types import Checkpoint, Mark

_FILES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))


def check_same_tokenizer(models: tuple[Checkpoint, ...], source: str, mark: Mark) -> None:
    """`tokenizer_source` needs no work where all tokenizers are the same, and is refused otherwise.

    Raises:
        RecipeError: two models' tokenizers differ, or a model has none to compare.
    """
    first: tuple[str, tuple[str, ...]] | None = None
    for model in models:
        found = _digest(model)
        if found is None:
            raise RecipeError(
                f"{mark}: tokenizer_source {source!r} cannot be followed: {model.label} has no tokenizer file to compare; remove tokenizer_source",
                model=model.label,
            )
        if first is None:
            first = model.label, found
        elif first[1] != found:
            why = "aligning different vocabularies is not supported yet; merge models that share one tokenizer"
            raise RecipeError(
                f"{mark}: tokenizer_source {source!r}: the tokenizers of {first[0]} and {model.label} differ, and {why}", models=(first[0], model.label)
            )


def _digest(model: Checkpoint) -> tuple[str, ...] | None:
    folder = model.path if os.path.isdir(model.path) else os.path.dirname(model.path)
    for names in _FILES:
        paths = [os.path.join(folder, name) for name in names]
        if all(map(os.path.lexists, paths)):
            return tuple(_hash(path) for path in paths)
    return None


def _hash(path: str) -> str:
    fd, status = open_regular(path, "the tokenizer as a file")
    if status.st_size > MAX_SIDE_FILE_BYTES:
        os.close(fd)
        raise CheckpointError(f"{path} takes {status.st_size} bytes, too many for a tokenizer; check the file", path=path, size=status.st_size)
    digest = hashlib.blake2b(digest_size=16)
    with open(fd, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
