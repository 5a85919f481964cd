"""Functions of the C library that compiled kernels call, by their addresses."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from types import BuiltinFunctionType
from typing import Any

from plait.engine.reader import read_some

_PREAD = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)


def c_addresses(*, patient: bool = False) -> tuple[int, int]:
    """Of `pread` and of `clock_gettime`.

    Where somebody has put another function in the place of `os.preadv`, to see or to spoil what is read, kernels read through that one too.

    Args:
        patient: of a `pread` that tries again what fails, as the reader does.
    """
    read, clock = _of_libc()
    if patient or not isinstance(os.preadv, BuiltinFunctionType):
        return _address(_in_python(patient)), clock
    return read, clock


@cache
def _of_libc() -> tuple[int, int]:
    libc: Any = ctypes.CDLL(None)
    read = libc.pread64 if hasattr(libc, "pread64") else libc.pread  # offsets of 64 bits
    return _address(read), _address(libc.clock_gettime)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


@cache
def _in_python(patient: bool) -> Callable[..., int]:
    def pread(fd: int, place: int, nbytes: int, offset: int) -> int:
        view = memoryview((ctypes.c_char * nbytes).from_address(place)).cast("B")
        try:
            return read_some(fd, view, offset) if patient else os.preadv(fd, [view], offset)
        except Exception:  # the block's reader asks again, and tells what is wrong
            return -1

    return _PREAD(pread)
