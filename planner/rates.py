"""How fast a machine is: the figures that predicted times are made of. Plain data; `plait bench machine` measures them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of a machine; the defaults are those of a modest one with two cores, and stand in until it is measured.

    Bytes are per second and for all cores together, unless a name says otherwise; nanoseconds are for one element on one core while all
    others work too.

    Attributes:
        cores: cores that work at once.
        start_s: from the command to the first header read: interpreter and imports.
        component_s: planning and keeping book of one output tensor.
        unit_s: handing one block to a worker.
        read_bytes_s: reading what the page cache holds into recycled buffers.
        read_thread_bytes_s: the same by one thread alone.
        fill_bytes_s: the same into memory larger than the processor's cache.
        cold_read_bytes_s: reading what only the disk holds.
        memory_bytes_s: reading memory that the processor's cache does not hold.
        fault_bytes_s: touching fresh memory for the first time, one thread.
        write_bytes_s: writing output blocks until they are on disk, past the page cache where the filesystem can.
        copy_bytes_s: copying within the page cache, by the kernel.
        sync_bytes_s: flushing copied bytes to disk.
        sync_s: flushing a file that holds nothing new.
        compiler_start_s: until the compiler is ready.
        compile_s: compiling a simple kernel.
        kernel_load_s: loading one compiled kernel.
        load_ns: reading a stored element of one input in a kernel.
        store_ns: rounding and storing an element.
        map_ns: one arithmetic operation (`Op.flops`) of a fused map.
        fold_ns: half of what adding an element to one of several inner products takes; other sums take `Op.flops` of it.
        random_ns: drawing random bits for an element.
        count_ns: counting an element for an order statistic.
        rank_ns: ranking an element within its row, of changes of 16-bit weights.
        interpreter_factor: how many times slower the torch interpreter computes than compiled kernels.
        whole_flops_s: float64 operations per second in products of large matrices.
        gpu_flops_s: the same on a GPU, where one is used.
        gpu_copy_bytes_s: moving bytes to and from a GPU.
        measured: whether these were measured, or are the defaults.
    """

    cores: int = 2
    start_s: float = 0.35
    component_s: float = 5e-4
    unit_s: float = 2e-4
    read_bytes_s: float = 8e9
    read_thread_bytes_s: float = 5e9
    fill_bytes_s: float = 7e9
    cold_read_bytes_s: float = 1e9
    memory_bytes_s: float = 2e10
    fault_bytes_s: float = 1.5e9
    write_bytes_s: float = 1e9
    copy_bytes_s: float = 2.5e9
    sync_bytes_s: float = 1e9
    sync_s: float = 0.01
    compiler_start_s: float = 1.0
    compile_s: float = 1.0
    kernel_load_s: float = 0.01
    load_ns: float = 0.04
    store_ns: float = 0.1
    map_ns: float = 0.03
    fold_ns: float = 0.05
    random_ns: float = 1.2
    count_ns: float = 1.5
    rank_ns: float = 4.0
    interpreter_factor: float = 15.0
    whole_flops_s: float = 3e10
    gpu_flops_s: float = 5e12
    gpu_copy_bytes_s: float = 1e10
    measured: bool = False


DEFAULT_RATES = Rates()
