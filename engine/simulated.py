"""A simulated GPU: torch on the CPU with an honest ledger, so that what runs on devices is tested without one."""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Any

from plait.engine.device import Array, Stream, aligned_memory, bits, translate


class SimulatedDevice:
    """Torch on the CPU, with a ledger of every tensor on the device.

    What a library takes inside one call (LAPACK's workspaces) is not seen.

    Args:
        name: for messages.
        total_bytes: its size.

    Attributes:
        used_bytes, peak_bytes: of living tensors, now and at most.
        allocations, uploads, downloads: how many there were.
        uploaded_bytes, downloaded_bytes: how much.
        fail_at: numbers (from 1) of allocations that fail, counted like `allocations`.
        fail_transfer_at: numbers of transfers (uploads and downloads together) that fail for want of memory.
        streams: how many were asked for.
    """

    def __init__(self, name: str, total_bytes: int) -> None:
        self.name, self.torch_device = name, "cpu"
        self.total_bytes = self.free_bytes = self.budget_bytes = total_bytes
        self.used_bytes = self.peak_bytes = 0
        self.allocations = self.uploads = self.downloads = self.streams = 0
        self.uploaded_bytes = self.downloaded_bytes = 0
        self.fail_at: frozenset[int] = frozenset()
        self.fail_transfer_at: frozenset[int] = frozenset()
        self._lock = threading.RLock()  # a finalizer may run while this thread holds it
        self._known: dict[int, int] = {}

    def limit(self, budget_bytes: int) -> None:
        """Fail beyond this."""
        self.budget_bytes = min(budget_bytes, self.total_bytes)

    def close(self) -> None:
        """The whole device is free to use again."""
        self.budget_bytes = self.total_bytes

    def trim(self) -> None:
        """Nothing is cached."""

    def pinned(self, nbytes: int) -> Array:
        """Page-aligned memory."""
        return aligned_memory(nbytes)[:nbytes]

    def stream(self) -> Stream:
        """A stream that does everything at once."""
        with self._lock:
            self.streams += 1
        return _SimulatedStream(self)

    def to_device(self, array: Array) -> Any:
        """A copy that counts as the device's."""
        import torch

        host = bits(array)
        with self._lock:
            self.uploads += 1
            self.uploaded_bytes += array.nbytes
        self._transfer()
        return torch.empty(host.shape, dtype=host.dtype).copy_(host)

    def to_host(self, tensor: Any, out: Array) -> None:
        """A copy that does not."""
        with self._lock:
            self.downloads += 1
            self.downloaded_bytes += out.nbytes
        self._transfer()
        bits(out).copy_(tensor.reshape(-1))

    def _transfer(self) -> None:
        import torch

        if self.uploads + self.downloads in self.fail_transfer_at:
            raise torch.cuda.OutOfMemoryError(f"transfer {self.uploads + self.downloads} was told to fail")

    def count(self, given: Any, result: Any) -> None:
        """Take note of tensors that an operation made; what it was given and gives back is of the host, or known already."""
        before = {storage._cdata for storage in _storages(given)}
        for storage in _storages(result):
            if storage._cdata not in before:
                self._count(storage)

    def _count(self, storage: Any) -> None:
        import torch

        key, nbytes = storage._cdata, storage.nbytes()
        with self._lock:
            if key in self._known:
                return
            self.allocations += 1
            if self.allocations in self.fail_at:
                raise torch.cuda.OutOfMemoryError(f"allocation {self.allocations} was told to fail")
            if self.used_bytes + nbytes > self.budget_bytes:
                raise torch.cuda.OutOfMemoryError(f"tried to allocate {nbytes} bytes with {self.used_bytes} of {self.budget_bytes} in use")
            self._known[key] = nbytes
            self.used_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        with self._lock:
            self.used_bytes -= self._known.pop(key)


def _storages(tree: Any) -> list[Any]:
    import torch

    return [leaf.untyped_storage() for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _SimulatedStream:
    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self._entered: list[Any] = []

    def __enter__(self) -> Stream:
        mode = _counting(self.device)
        mode.__enter__()
        self._entered.append(mode)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._entered.pop().__exit__(kind, error, trace)
        translate(error, self.device)

    def wait(self) -> None:
        pass


def _counting(device: SimulatedDevice) -> Any:
    """A torch mode in which every operation's results are counted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            device.count((args, kwargs), result)
            return result

    return Counting()  # type: ignore[no-untyped-call]
