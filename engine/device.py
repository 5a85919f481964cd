"""Graphics processors: what the engine asks of one.

A `Device` moves raw stored bits between host and device, gives streams to work on, pins host memory
so that copies overlap with work, and turns every way of running out of memory into one error class.
`CudaDevice` is a real one, `plait.engine.simulated.SimulatedDevice` torch on the CPU with a ledger.

Tests (and people who want to see what a plan would do with GPUs) set PLAIT_SIMULATED_GPUS to sizes,
such as `8GiB,8GiB`; `discover_devices` then gives simulated devices instead of looking for real ones.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plait.ops.errors import KernelError, PlanError
from plait.planner.sizes import parse_size, size

Array = npt.NDArray[Any]
#: Sizes of simulated GPUs, separated by commas; for tests.
SIMULATED = "PLAIT_SIMULATED_GPUS"
_PAGE = 4096


class DeviceOutOfMemory(KernelError):
    """A device could not give the memory that a task asked of it."""


class Stream(Protocol):
    """Work in order on one device: a context manager for the thread that enters it. Leaving it by an error of memory gives `DeviceOutOfMemory`."""

    def __enter__(self) -> Stream:
        """Work of this thread goes to the stream from now on."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Work of this thread goes where it went before."""

    def wait(self) -> None:
        """Return when all work so far is done and every copy to the host has arrived."""


class Device(Protocol):
    """One accelerator.

    Attributes:
        name: as its maker calls it, for messages.
        torch_device: what torch calls it.
        total_bytes: its memory.
        free_bytes: what of it was free when it was found.
        budget_bytes: what plait may use of it; set by `limit`.
    """

    name: str
    torch_device: str
    total_bytes: int
    free_bytes: int
    budget_bytes: int

    def limit(self, budget_bytes: int) -> None:
        """Never use more than this from now on."""

    def close(self) -> None:
        """Lift the limit and give cached memory back."""

    def trim(self) -> None:
        """Give back memory that is cached and not in use."""

    def pinned(self, nbytes: int) -> Array:
        """Host memory, uint8 and page-aligned, that the device copies from and to without a detour; unpinned when the array goes."""

    def stream(self) -> Stream:
        """A new stream."""

    def to_device(self, array: Array) -> Any:
        """A flat tensor with the bits of a contiguous array, in its own dtype; call it on a stream, and keep the array until the stream is done."""

    def to_host(self, tensor: Any, out: Array) -> None:
        """Copy a tensor's bits into a contiguous array of as many elements; it holds them once the stream is done."""


def bits(array: Array) -> Any:
    """A flat host tensor over an array's memory; torch has no uint16 to compute with, so 16-bit patterns are int16."""
    import torch

    flat = array.reshape(-1)
    return torch.from_numpy(flat.view(np.int16) if flat.dtype == np.uint16 else flat)


def aligned_memory(nbytes: int) -> Array:
    """Whole pages of private memory of our own, so that pinning them touches nobody else's."""
    whole = -(-nbytes // _PAGE) * _PAGE
    memory = np.empty(whole + _PAGE, np.uint8)
    skip = -memory.ctypes.data % _PAGE
    return memory[skip : skip + whole]


# -- a real one ------------------------------------------------------------------------------------
class CudaDevice:
    """A CUDA device, by torch.

    Args:
        index: its number.
    """

    def __init__(self, index: int) -> None:
        import torch

        self.index, self.torch_device = index, f"cuda:{index}"
        self.name = torch.cuda.get_device_name(index)
        self.free_bytes, self.total_bytes = torch.cuda.mem_get_info(index)
        self.budget_bytes = self.free_bytes
        self._before: float | None = None

    def limit(self, budget_bytes: int) -> None:
        """Hold torch's allocator to the budget, beside what this process has already taken."""
        import torch

        self.budget_bytes = budget_bytes
        held = torch.cuda.memory_reserved(self.index)
        self._before = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(self.index)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (budget_bytes + held) / self.total_bytes), self.index)

    def close(self) -> None:
        """Lift the limit and give cached memory back."""
        import torch

        if self._before is not None:
            torch.cuda.set_per_process_memory_fraction(self._before, self.index)
            self._before = None
        self.trim()

    def trim(self) -> None:
        """Give torch's cached blocks back to the driver."""
        import torch

        with torch.cuda.device(self.index):
            torch.cuda.empty_cache()

    def pinned(self, nbytes: int) -> Array:
        """Private memory registered with the driver: exactly as many bytes as asked, where torch's own allocator rounds up to a power of two."""
        import torch

        memory = aligned_memory(nbytes)
        if memory.size:
            with torch.cuda.device(self.index):
                runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                status = int(runtime.cudaHostRegister(memory.ctypes.data, memory.size, 0))
            if status:
                raise KernelError(
                    f"{size(memory.size)} of host memory could not be pinned for {self.name} (CUDA error {status}); give fewer --workers or --maps cpu",
                    nbytes=memory.size,
                )
            weakref.finalize(_owner(memory), runtime.cudaHostUnregister, memory.ctypes.data).atexit = False
        return memory[:nbytes]

    def stream(self) -> Stream:
        """A CUDA stream of its own."""
        return _CudaStream(self)

    def to_device(self, array: Array) -> Any:
        """Copy to the device on the current stream, without waiting."""
        import torch

        host = bits(array)
        return torch.empty(host.shape, dtype=host.dtype, device=self.torch_device).copy_(host, non_blocking=True)

    def to_host(self, tensor: Any, out: Array) -> None:
        """Copy from the device on the current stream, without waiting."""
        bits(out).copy_(tensor.reshape(-1), non_blocking=True)


def _owner(array: Array) -> Array:
    """The array that holds the memory of a view: it lives as long as any view of it."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _CudaStream:
    def __init__(self, device: CudaDevice) -> None:
        import torch

        self.device = device
        self.stream: Any = torch.cuda.Stream(device.index)  # type: ignore[no-untyped-call]
        self._entered: list[Any] = []

    def __enter__(self) -> Stream:
        import torch

        context: Any = torch.cuda.stream(self.stream)  # makes the stream's device the current one too
        context.__enter__()
        self._entered.append(context)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            with suppress(RuntimeError):  # copies from and to the worker's memory are over before anybody uses it again
                self.stream.synchronize()
        self._entered.pop().__exit__(kind, error, trace)
        translate(error, self.device)

    def wait(self) -> None:
        self.stream.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or a library below it says that there is no memory."""
    import torch

    # linear algebra libraries report their own allocations as other errors
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    )


def translate(error: BaseException | None, device: Device) -> None:
    """Raise `DeviceOutOfMemory` in place of an error of memory; other errors stay as they are."""
    if error is None or isinstance(error, KernelError) or not is_out_of_memory(error):
        return
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    raise DeviceOutOfMemory(
        f"{device.name} ran out of memory within its budget of {size(device.budget_bytes)}: {reason}", device=device.name, budget=device.budget_bytes
    ) from error


# -- which there are -------------------------------------------------------------------------------
def simulated_sizes() -> tuple[int, ...] | None:
    """Sizes of simulated GPUs, or None where none are asked for.

    Raises:
        PlanError: the environment variable holds no sizes.
    """
    text = os.environ.get(SIMULATED)
    if not text:
        return None
    try:
        return tuple(parse_size(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(f"the environment variable {SIMULATED}: {error}; it takes sizes such as 8GiB,8GiB") from error


def discover_devices() -> list[Device]:
    """The devices of this machine; simulated ones where PLAIT_SIMULATED_GPUS says so."""
    sizes = simulated_sizes()
    if sizes is not None:
        from plait.engine.simulated import SimulatedDevice

        return [SimulatedDevice(f"simulated GPU {i}", nbytes) for i, nbytes in enumerate(sizes)]
    if not Path("/dev/nvidiactl").exists():
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [CudaDevice(index) for index in range(torch.cuda.device_count())]
