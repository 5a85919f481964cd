"""Blocks on a device: stored bits go over as they are, are computed there op by op, rounded there, and come back.

A block is read straight into the worker's own pinned memory, so the workers' buffers are the staging ring and
lie in the memory budget already: while one worker's block is read from disk, another's is copied and a third's
computed, each on its worker's stream. Copies are in the stored type; the device turns them into float32.
"""

from __future__ import annotations

from typing import Any

from plait.engine.blockrun import Array, BlockData, BlockResult
from plait.engine.device import DeviceOutOfMemory
from plait.engine.interpreter import Interpreter
from plait.engine.kernel import Kernel
from plait.engine.pool import Seat
from plait.ops.errors import KernelError
from plait.planner.device_cost import device_block_bytes
from plait.planner.program import Program, Stage
from plait.planner.sizes import size


class DeviceRunner(Interpreter):
    """Runs blocks of one stage on a worker's device, to the bits of the CPU.

    Args:
        program, stage, kernel: what to run.
        seat: the worker's place.
    """

    def __init__(self, program: Program, stage: Stage, kernel: Kernel, seat: Seat) -> None:
        super().__init__(program, stage, kernel, seat.device.torch_device)
        self.seat = seat

    def fetch(self, array: Array) -> Any:
        """Send an array over."""
        return self.seat.device.to_device(array)

    def give(self, tensor: Any, out: Array) -> None:
        """Send a tensor back; it has arrived when the block is done."""
        self.seat.device.to_host(tensor, out)

    def run(self, data: BlockData) -> BlockResult:
        """Compute one block; after running out of memory once more, with what the device's allocator had cached given back.

        Raises:
            KernelError: the device ran out of memory twice.
        """
        try:
            return self._run(data)
        except DeviceOutOfMemory:
            self.seat.pool.note_retry()
        self.seat.device.trim()
        try:
            return self._run(data)
        except DeviceOutOfMemory as error:
            needed = device_block_bytes(self.program, self.stage)
            raise KernelError(
                f"{error.message}; a block of {list(self.program.shape)} needs {size(needed)} there: give fewer --workers, or --maps cpu",
                needed=needed,
                device=self.seat.device.name,
            ) from error

    def _run(self, data: BlockData) -> BlockResult:
        with self.seat.stream as stream:
            result = super().run(data)
            stream.wait()
        return result


def device_runner(program: Program, stage: Stage, kernel: Kernel, seat: Seat) -> DeviceRunner:
    """The runner of a stage on a worker's device: its maps as one Triton kernel where that can be, else op by op."""
    from plait.engine.fused import FusedRunner, fusible, triton_usable

    fused = triton_usable(seat.device.torch_device) and fusible(program, stage)
    return (FusedRunner if fused else DeviceRunner)(program, stage, kernel, seat)
