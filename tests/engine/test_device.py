"""Devices: bits go there and come back, memory is counted and never exceeded, and a pool of several serves everybody within its bytes."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.engine import device as devices
from plait.engine.device import SIMULATED, CudaDevice, DeviceOutOfMemory, discover_devices
from plait.engine.machine import gpu_memory
from plait.engine.pool import DevicePool, open_pool
from plait.engine.simulated import SimulatedDevice
from plait.ops.errors import KernelError, PlanError
from support.tiny import bounded

MIB = 1 << 20


@pytest.fixture
def gpu() -> SimulatedDevice:
    return SimulatedDevice("small", MIB)


# -- the simulated device ---------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=4096).filter(lambda b: len(b) % 4 == 0), st.sampled_from([np.uint16, np.float32]))
def test_bits_come_back_as_they_were(data: bytes, dtype: Any):
    """Whatever the bits mean, NaNs among them, they are the same after a round trip, and count once each way in the stored type."""
    gpu = SimulatedDevice("small", MIB)
    array = np.frombuffer(bytearray(data), dtype)
    out = np.full_like(array, 7)
    with gpu.stream() as stream:
        tensor = gpu.to_device(array)
        gpu.to_host(tensor, out)
        stream.wait()
    assert out.tobytes() == array.tobytes()
    assert (gpu.uploads, gpu.downloads, gpu.uploaded_bytes, gpu.downloaded_bytes) == (1, 1, array.nbytes, array.nbytes)
    if array.size:
        array.view(np.uint8)[:] ^= 255
        assert tensor.numpy().tobytes() == out.tobytes()  # a copy of its own, not the host's memory


def test_every_living_tensor_counts_once(gpu: SimulatedDevice):
    """Views and in-place work cost nothing, results cost their bytes, and what is let go of is free again; host tensors do not count."""
    elsewhere = torch.zeros(1 << 20)
    with gpu.stream():
        a = torch.zeros(1000, dtype=torch.float64)
        b = a[10:].view(-1, 10)
        b += 1
        assert gpu.used_bytes == 8000
        c = a * 2
        assert gpu.used_bytes == 16000
        del a
        assert gpu.used_bytes == 16000  # b still holds it
        del b
        assert gpu.used_bytes == 8000
        elsewhere += 1
    del c
    assert (gpu.used_bytes, gpu.peak_bytes) == (0, 16000)
    torch.zeros(10)
    assert gpu.peak_bytes == 16000


def test_beyond_its_size_one_error_comes_and_nothing_stays(gpu: SimulatedDevice):
    """The error names the device and its budget, and all that the failed work held is free."""

    def work() -> None:
        with gpu.stream():
            held = [torch.zeros(MIB // 8) for _ in range(2)]
            held.append(held[0] + 1)

    with pytest.raises(DeviceOutOfMemory, match="small ran out of memory within its budget of 1 MiB") as caught:
        work()
    assert isinstance(caught.value, KernelError)
    assert caught.value.facts["budget"] == MIB
    del caught
    gc.collect()
    assert gpu.used_bytes == 0
    assert gpu.peak_bytes == MIB


def test_a_budget_below_its_size_holds_too(gpu: SimulatedDevice):
    """Half of the device was allowed: more than that fails; afterwards the whole is there again."""
    gpu.limit(MIB // 2)
    with pytest.raises(DeviceOutOfMemory), gpu.stream():
        torch.zeros(MIB // 2 + 1, dtype=torch.uint8)
    gpu.close()
    with gpu.stream():
        torch.zeros(MIB, dtype=torch.uint8)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_fails_where_it_is_told_to(k: int, gpu: SimulatedDevice):
    """The k-th allocation, or the k-th transfer, and no other."""
    gpu.fail_at = frozenset({k})
    with gpu.stream():
        for _ in range(k - 1):
            torch.zeros(1)
    with pytest.raises(DeviceOutOfMemory, match=f"allocation {k} was told to fail"), gpu.stream():
        torch.zeros(1)
    with gpu.stream():
        torch.zeros(1)
    other = SimulatedDevice("other", MIB)
    other.fail_transfer_at = frozenset({k})
    array = np.zeros(4, np.float32)
    with other.stream():
        for _ in range(k - 1):
            other.to_device(array)
    with pytest.raises(DeviceOutOfMemory, match=f"transfer {k} was told to fail"), other.stream():
        other.to_device(array)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
        (KernelError("a matrix holds NaN"), False),
    ],
)
def test_every_way_of_running_out_is_one_class(error: Exception, memory: bool, gpu: SimulatedDevice):
    """Torch's own error and those of the libraries below it are translated; others are left alone."""
    with pytest.raises(type(error) if not memory else DeviceOutOfMemory) as caught, gpu.stream():
        raise error
    if memory:
        assert caught.value.__cause__ is error
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 100_001])
def test_pinned_memory_is_whole_pages_of_its_own(nbytes: int, gpu: SimulatedDevice):
    """As many bytes as asked, from the start of a page on, writable."""
    memory = gpu.pinned(nbytes)
    assert memory.size == nbytes
    memory[:] = 3
    assert not nbytes or memory.ctypes.data % 4096 == 0


class FakeCuda:
    """Stands in for torch.cuda: one device of 10 GiB, 8 of them free, 1 in use by this process; notes what is asked of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.registered: dict[int, int] = {}
        self.fraction = 0.75
        self.status = 0
        for name in ("cudart", "get_device_name", "mem_get_info", "memory_reserved", "set_per_process_memory_fraction", "empty_cache", "device"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: self.fraction, raising=False)

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert flags == 0
        if not self.status:
            self.registered[address] = nbytes
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0

    def get_device_name(self, index: int) -> str:
        return f"fake {index}"

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 8 << 30, 10 << 30

    def memory_reserved(self, index: int) -> int:
        return 1 << 30

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self.fraction = fraction

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def device(self, index: int) -> FakeCuda:
        return self

    def __enter__(self) -> None:
        """The device is current."""

    def __exit__(self, *args: object) -> None:
        """The device is current no more."""


def test_cuda_memory_is_pinned_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch):
    """Whole pages are registered; they are given back when the last view goes; a refusal is one sentence."""
    fake = FakeCuda(monkeypatch)
    gpu = CudaDevice(0)
    memory = gpu.pinned(10_000)
    assert fake.registered == {memory.ctypes.data: 12_288}
    view = memory[100:200].view(np.uint16)
    del memory
    assert fake.registered
    del view
    assert not fake.registered
    fake.status = 2
    with pytest.raises(KernelError, match="12 KiB of host memory could not be pinned for fake 0"):
        gpu.pinned(10_000)


def test_a_cuda_budget_comes_on_top_of_what_the_process_had(monkeypatch: pytest.MonkeyPatch):
    """A library must not take from its host program, nor leave its limit behind."""
    fake = FakeCuda(monkeypatch)
    gpu = CudaDevice(0)
    assert (gpu.free_bytes, gpu.total_bytes, gpu.name) == (8 << 30, 10 << 30, "fake 0")
    gpu.limit(2 << 30)
    assert fake.fraction == pytest.approx(0.3)
    gpu.close()
    assert fake.fraction == 0.75
    gpu.close()
    assert fake.fraction == 0.75


# -- which there are --------------------------------------------------------------------------------
def test_simulated_devices_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    """Sizes in the environment variable are the devices of this machine."""
    monkeypatch.setenv(SIMULATED, "8GiB, 512MiB")
    found = discover_devices()
    assert [d.total_bytes for d in found] == [8 << 30, 512 << 20]
    assert len({d.name for d in found}) == 2
    assert gpu_memory() == (8 << 30, 512 << 20)


@pytest.mark.parametrize("text", ["lots", "8GiB,", "8GiB;8GiB"])
def test_bad_sizes_in_the_environment_are_named(text: str, monkeypatch: pytest.MonkeyPatch):
    """The sentence names the variable and shows how to write it."""
    monkeypatch.setenv(SIMULATED, text)
    with pytest.raises(PlanError, match=f"{SIMULATED}.*8GiB,8GiB"):
        discover_devices()


def test_no_driver_no_devices(monkeypatch: pytest.MonkeyPatch):
    """Without simulated ones and without the driver's device file there are none."""
    monkeypatch.delenv(SIMULATED, raising=False)
    monkeypatch.setattr(devices.Path, "exists", lambda self: False)
    assert discover_devices() == []


# -- several as one pool ----------------------------------------------------------------------------
def test_a_lease_goes_where_most_room_is():
    """Two devices of unequal size fill up evenly by what is left, and are empty again in the end."""
    small, large = SimulatedDevice("small", 10), SimulatedDevice("large", 16)
    pool = DevicePool([small, large])
    with pool.place(8) as a, pool.place(8) as b, pool.place(8) as c:
        assert [a, b, c] == [large, small, large]
        assert pool.room() == [2, 0]
    assert pool.room() == [10, 16]


def test_what_can_never_fit_is_refused_at_once():
    """Even while everything is leased: it would wait for ever."""
    pool = DevicePool([SimulatedDevice("a", 10), SimulatedDevice("b", 20)])
    with pool.place(20), pytest.raises(KernelError, match="give --gpu-memory") as caught, pool.place(21):
        pass
    assert caught.value.facts == {"needed": 21, "budget": 20}
    with pytest.raises(KernelError), DevicePool([]).place(1):
        pass


def test_a_lease_ends_with_an_error_too():
    """A task that fails gives its bytes back."""
    pool = DevicePool([SimulatedDevice("a", 10)])
    with pytest.raises(ZeroDivisionError), pool.place(7):
        raise ZeroDivisionError
    assert pool.room() == [10]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(10, 40), min_size=1, max_size=3), st.integers(2, 8), st.integers(0, 1 << 30))
def test_the_pool_never_exceeds_its_bytes(sizes: list[int], threads: int, seed: int):
    """Many threads with requests of every size: each is served, and at no moment is a device leased beyond its budget."""
    pool = DevicePool([SimulatedDevice(str(i), n) for i, n in enumerate(sizes)])
    held = dict.fromkeys(pool.devices, 0)
    lock, wrong, served = threading.Lock(), [], []

    def work(number: int) -> None:
        chance = random.Random(seed + number)
        for _ in range(20):
            nbytes = chance.randint(1, max(sizes))
            with pool.place(nbytes) as device:
                with lock:
                    held[device] += nbytes
                    wrong.extend([device.name] * (held[device] > device.budget_bytes))
                if chance.random() < 0.2:
                    time.sleep(0.0005)
                with lock:
                    held[device] -= nbytes
                    served.append(nbytes)

    def all_work() -> None:
        workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    bounded(all_work, 30)
    assert not wrong
    assert len(served) == 20 * threads
    assert pool.room() == sizes


def test_small_tasks_do_not_keep_a_large_one_waiting():
    """Small leases that come after a large request wait behind it, so that it is served as soon as the earlier ones end."""
    pool = DevicePool([SimulatedDevice("a", 10)])
    order: list[str] = []

    def take(name: str, nbytes: int) -> None:
        with pool.place(nbytes):
            order.append(name)

    with pool.place(4):
        large = threading.Thread(target=take, args=("large", 10), daemon=True)
        large.start()
        while len(pool._queue) < 1:
            time.sleep(0.001)
        small = threading.Thread(target=take, args=("small", 1), daemon=True)
        small.start()
        while len(pool._queue) < 2:
            time.sleep(0.001)
        assert order == []
    bounded(lambda: (large.join(), small.join()), 10)
    assert order == ["large", "small"]


def test_a_run_s_pool_holds_devices_to_the_plan_s_budgets(monkeypatch: pytest.MonkeyPatch):
    """Budgets are set while the pool is open; another number of devices than planned is refused; none are looked for where none are needed."""
    monkeypatch.setenv(SIMULATED, "1MiB,1MiB")
    with open_pool((1000, 2000)) as pool:
        assert [d.budget_bytes for d in pool.devices] == [1000, 2000]
    with pytest.raises(KernelError, match="made for 1 GPUs and 2 are here"), open_pool((1000,)):
        pass
    monkeypatch.setenv(SIMULATED, "nonsense")
    with open_pool(()) as pool:
        assert pool.devices == ()


def test_looking_for_simulated_devices_imports_no_torch():
    """Planning for devices stays light."""
    code = "import sys; from plait.engine.machine import gpu_memory; assert gpu_memory() == (8 << 30,); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, SIMULATED: "8GiB"}, check=True, timeout=60)
