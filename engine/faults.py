"""Errors of other kinds become one of plait's that names the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plait.ops.errors import KernelError, PlaitError


@contextmanager
def named(tensor: str) -> Iterator[None]:
    """Turn whatever goes wrong while a tensor is merged into a `KernelError`; plait's own errors say enough already."""
    try:
        yield
    except (PlaitError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise KernelError(f"merging tensor {tensor} failed: {type(error).__name__}: {error}; nothing was published", tensor=tensor) from error
