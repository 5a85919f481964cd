"""What a plan may use of a machine. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from plait.planner.rates import DEFAULT_RATES, Rates


@dataclass(frozen=True, slots=True)
class Resources:
    """What a plan may use.

    Attributes:
        memory_bytes: the budget for private memory.
        workers: most worker threads.
        backend: `numba` or `torch`.
        device: where whole-tensor ops run, `cpu` or `cuda`.
        gpu_memory_bytes: the budget on each GPU, where there are any and they are to be used.
        rates: how fast the machine is.
        free_memory_bytes: memory that is free, for the page cache beside what the plan needs; None where that is not known.
        residency: whether inputs stay in memory between passes: `auto`, `keep` or `reread`.
        maps: where streamed work runs, `cpu` or `cuda`.
        cache_bytes: size of the result cache; 0 where there is none.
        without: optimisations that are switched off, by the names of `planner/optimisations.py`.
        device_why: why whole-tensor ops run on the CPU where `device` says so: what was asked for, or what is missing.
    """

    memory_bytes: int
    workers: int
    backend: str = "numba"
    device: str = "cpu"
    gpu_memory_bytes: tuple[int, ...] = ()
    rates: Rates = DEFAULT_RATES
    free_memory_bytes: int | None = None
    residency: str = "auto"
    maps: str = "cpu"
    cache_bytes: int = 0
    without: tuple[str, ...] = ()
    device_why: str = ""
