"""Several devices as one pool of bytes: a task leases what it will need before it takes any of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from plait.engine.device import Device, Stream, discover_devices
from plait.ops.errors import KernelError
from plait.planner.plan import Plan
from plait.planner.sizes import size


class DevicePool:
    """Devices as one pool of bytes.

    A task leases what it will need before it takes any of it, on the device with most room. Tasks that must
    wait are served in the order in which they came, so that small ones do not keep a large one waiting for ever.
    Nobody asks for a second lease while holding one that others wait for: workers' leases for blocks last
    as long as the run and are taken first; those of whole ops last for one op.

    Attributes:
        devices: the members.
        retries: tasks that ran out of a device's memory and were done again, on it or on the CPU.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self.devices = tuple(devices)
        self.retries = 0
        self._leased = [0] * len(self.devices)
        self._queue: list[object] = []
        self._changed = threading.Condition()

    def room(self) -> list[int]:
        """Bytes of each device that are not leased."""
        with self._changed:
            return self._room()

    def leased(self) -> tuple[int, ...]:
        """Bytes of each device that are leased."""
        return tuple(self._leased)

    def _room(self) -> list[int]:
        return [device.budget_bytes - leased for device, leased in zip(self.devices, self._leased, strict=True)]

    @contextmanager
    def place(self, nbytes: int) -> Iterator[Device]:
        """Lease bytes on one device; waits until some device has room.

        Raises:
            KernelError: no device of the pool is that large.
        """
        most = max((device.budget_bytes for device in self.devices), default=0)
        if nbytes > most:
            words = f"{size(nbytes)} fit on no GPU of the run: the largest budget is {size(most)}; give --gpu-memory, or --device cpu --maps cpu"
            raise KernelError(words, needed=nbytes, budget=most)
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._queue[0] is ticket and max(self._room()) >= nbytes)
                room = self._room()
                index = room.index(max(room))
                self._leased[index] += nbytes
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield self.devices[index]
        finally:
            with self._changed:
                self._leased[index] -= nbytes
                self._changed.notify_all()

    def note_retry(self) -> None:
        """Count a task that is done again."""
        with self._changed:
            self.retries += 1


class Seat:
    """A worker's place on a device, leased for as long as the run lasts.

    Args:
        pool: where it leases.
        nbytes: what its blocks need at most.

    Attributes:
        device: where it is.
        stream: the worker's own.
    """

    def __init__(self, pool: DevicePool, nbytes: int) -> None:
        self.pool = pool
        self._lease = pool.place(nbytes)
        self.device: Device = self._lease.__enter__()
        self.stream: Stream = self.device.stream()


def take_seat(pool: DevicePool, plan: Plan) -> Seat | None:
    """A worker's place on a GPU, where a plan's maps run there."""
    return Seat(pool, plan.gpu_worker_bytes) if plan.maps == "cuda" else None


@contextmanager
def open_pool(budgets: Sequence[int]) -> Iterator[DevicePool]:
    """A pool of this machine's devices for one run, each held to its budget.

    Args:
        budgets: bytes that may be used of each device, as the plan was made for; none for a run without devices.

    Raises:
        KernelError: the plan was made for other devices.
    """
    devices = discover_devices() if budgets else []
    if len(devices) != len(budgets):
        raise KernelError(f"the plan was made for {len(budgets)} GPUs and {len(devices)} are here now; give the same command again")
    try:
        for device, budget in zip(devices, budgets, strict=True):
            device.limit(budget)
        yield DevicePool(devices)
    finally:
        for device in devices:
            device.close()
