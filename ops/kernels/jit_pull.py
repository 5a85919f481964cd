"""Kernels that read their inputs themselves: a piece of each at a time, into buffers that the innermost large cache holds.

Read by their caller, inputs of a whole block go through memory twice: the system copies them into buffers that are larger than the cache,
and the kernel fetches them from there. A piece is still in the cache when it is used, and the buffers are small. What reads is a function
with the arguments of C's `pread`, given by its address.

A kernel takes an int64 vector `pull`:

    0 address of `pread`    1 elements of a piece    2 nanoseconds spent in reading    3 set to 1 when a read failed
    4 address of `clock_gettime`    5 number of the clock    6, 7 room for a time
    8 + 3k file descriptor of input k, or -1 where the array holds all of it    9 + 3k byte offset in the file    10 + 3k bytes of an element
"""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,no-untyped-call,var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

_WORD = ir.IntType(64)


@intrinsic
def _address(typingctx: Any, array: Any) -> Any:
    """Where an array's data are. Taken from the array itself, so that LLVM knows the call that gets it to change what is there."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        raise TypingError(f"files are read into contiguous vectors, not into {array}")

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.ptrtoint(context.make_array(signature.args[0])(context, b, args[0]).data, _WORD)

    return types.int64(array), codegen


@intrinsic
def _read(typingctx: Any, function: Any, fd: Any, address: Any, nbytes: Any, offset: Any) -> Any:
    """`pread` at an address: bytes read, 0 at the end of the file, -1 for an error."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        function, fd, address, nbytes, offset = args
        kind = ir.FunctionType(_WORD, [ir.IntType(32), ir.IntType(8).as_pointer(), _WORD, _WORD])
        place = b.inttoptr(address, ir.IntType(8).as_pointer())
        return b.call(b.inttoptr(function, kind.as_pointer()), [b.trunc(fd, ir.IntType(32)), place, nbytes, offset])

    return types.int64(*[types.int64] * 5), codegen


@intrinsic
def _tell_time(typingctx: Any, function: Any, clock: Any, address: Any) -> Any:
    """`clock_gettime` at an address: seconds and nanoseconds go to a vector."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        function, clock, address = args
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), ir.IntType(8).as_pointer()])
        b.call(b.inttoptr(function, kind.as_pointer()), [b.trunc(clock, ir.IntType(32)), b.inttoptr(address, ir.IntType(8).as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@njit(nogil=True, boundscheck=False)
def clock(pull: Any) -> Any:
    """Nanoseconds of the clock."""
    _tell_time(pull[4], pull[5], _address(pull) + int64(48))
    return pull[6] * int64(1_000_000_000) + pull[7]


@njit(nogil=True, boundscheck=False)
def pull_piece(pull: Any, k: Any, array: Any, first: Any, count: Any) -> Any:
    """Read elements `first` to `first + count` of input k of a block to the beginning of an array; False when that fails.

    Args:
        pull: int64, as above.
        k, first, count: int64.
        array: contiguous, of at least `count` elements.
    """
    fd, size = pull[8 + 3 * k], pull[10 + 3 * k]
    if fd < 0:
        return True
    place, offset, left = _address(array), pull[9 + 3 * k] + first * size, count * size
    while left > 0:
        done = _read(pull[0], fd, place, left, offset)
        if done <= 0:
            return False
        place, offset, left = place + done, offset + done, left - done
    return True
