"""How much work a function is, in a measure that no other load on the machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(function: Callable[[], Any]) -> int:
    """The number of Python instructions that a call of `function` runs, in this thread.

    A time grows with whatever else the machine does; this does not, so a test can compare two sizes of the same work
    and see whether the cost is proportional to it. What a function written in C does within one instruction, such as a search through a list,
    is not seen.
    """
    count = 0

    def local(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return local

    def entered(frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def assert_proportional(work: Callable[[int], Callable[[], Any]], size: int, most_each: int) -> None:
    """The work of three times the size is at most 3.2 times the work, and no unit of it takes over `most_each` instructions.

    Args:
        work: makes the function to be measured, for a size; what it does itself is not counted.
        size: the smaller size.
        most_each: instructions for each unit of size.

    Raises:
        AssertionError: the work grows faster, or costs more.
    """
    work(8)()  # what is imported or made once is no unit's
    small, large = steps(work(size)), steps(work(3 * size))
    assert large < 3.2 * small, f"{small:,} instructions for {size:,}, {large:,} for {3 * size:,}"
    assert large < most_each * 3 * size, f"{large / (3 * size):,.0f} instructions for each"
