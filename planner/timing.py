"""How long a plan takes, by arithmetic on what the planner knows and on rates that were measured once on the machine.

Work is counted in thread-seconds and divided by the threads that really run at once: a worker reads a block and computes it, one after
the other, while the others do the same with theirs. What is not divided: starting up, bookkeeping in Python (one thread at a time), ops
on whole tensors (large ones use every core by themselves), the final flush. The disk works behind all of it, on the output and on inputs that
the page cache does not hold; where it needs longer than the workers do, they wait for it.

Nothing here reads the system: rates, and how much memory is free for the page cache, are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from plait.ops.dtypes import BY_CODE
from plait.ops.wholes import VIEWS, WHOLES, is_view, on_one_core
from plait.planner.blocks import block_count, block_elements, copied_through, sample_pieces, sample_starts, search_elements, seen_whole
from plait.planner.cost import distinct_stages, input_bytes, kernel_count, output_bytes, recounts, selects, stage_read_bytes
from plait.planner.kernel_time import stage_ns
from plait.planner.program import Node, Program, Stage
from plait.planner.rates import DEFAULT_RATES, Rates

_NS = 1e-9
#: Bytes that one unit of work reads when inputs are read into memory to stay.
FILL_UNIT = 8 << 20
#: A tie search looks at the values of a piece or two in NumPy, which costs about this many countings.
_SEARCH_COUNTS = 2.0
_KEEP_MARGIN = 1.25  #: times the time of keeping that reading again must take: the two rates are known less well, and keeping takes memory
_TORCH_STARTS = 4.0  #: times as long as the interpreter and all other imports that importing torch takes
#: How much longer kernels with these ops compile than a simple map does, as multiples of that.
_COMPILE_EXTRA = {"exp": 1.0, "tanh": 2.0, "kth_magnitude": 1.5, "row_rank": 2.0, "random_bits": 1.0}


#: Work of an op on whole tensors, as float64 operations at the speed of a product of large matrices.
WHOLE_FLOPS: dict[str, Callable[[Node], float]] = {name: op.flops for name, op in WHOLES.items()}


@dataclass(frozen=True, slots=True)
class ProgramTime:
    """Seconds of all components of one program, as parts of the whole.

    Attributes:
        program: index into `Plan.programs`.
        count: its components.
        reading_s, computing_s, writing_s, bookkeeping_s: parts, without waiting for the disk.
    """

    program: int
    count: int
    reading_s: float
    computing_s: float
    writing_s: float
    bookkeeping_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.reading_s + self.computing_s + self.writing_s + self.bookkeeping_s


@dataclass(frozen=True, slots=True)
class Timing:
    """Predicted wall time of a merge; the parts add up to `seconds`.

    Attributes:
        starting_s: until the first block: interpreter, imports, loading kernels.
        bookkeeping_s: planning and handing out work.
        reading_s: inputs, all passes, and waiting for the disk to give them.
        computing_s: kernels and ops on whole tensors.
        writing_s: copying undecoded bytes, and waiting for the disk to take the output.
        publishing_s: flushing what is not on disk yet.
        first_run_s: more, where none of the kernels was compiled before.
        from_disk: the inputs are taken to come from the disk, not from the page cache.
        measured: the rates were measured on this machine.
        programs: share of each program.
    """

    starting_s: float = 0.0
    bookkeeping_s: float = 0.0
    reading_s: float = 0.0
    computing_s: float = 0.0
    writing_s: float = 0.0
    publishing_s: float = 0.0
    first_run_s: float = 0.0
    from_disk: bool = False
    measured: bool = False
    programs: tuple[ProgramTime, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Sum of the parts, with compiled kernels."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Seconds by what they are spent on."""
        return {
            "starting": self.starting_s,
            "bookkeeping": self.bookkeeping_s,
            "reading": self.reading_s,
            "computing": self.computing_s,
            "writing": self.writing_s,
            "publishing": self.publishing_s,
        }


@dataclass(frozen=True, slots=True)
class Setting:
    """What besides the programs decides the time.

    Attributes:
        workers: worker threads.
        rates: of the machine.
        backend: `numba` or `torch`.
        page_cache_bytes: memory that the page cache can have; None where that is not known, and then all inputs fit.
        files: of the output.
        slab_bytes: memory of each worker in which inputs stay.
        on_gpu: programs whose whole ops run on a GPU.
        sweeps: for each program the sweep of each stage; empty where there is but one.
        maps: where streamed work runs, `cpu` or `cuda`.
        foreseen: a sample foresees thresholds; else each takes a pass more.
    """

    workers: int
    rates: Rates = DEFAULT_RATES
    backend: str = "numba"
    page_cache_bytes: int | None = None
    files: int = 1
    slab_bytes: int = 0
    on_gpu: tuple[int, ...] = ()
    sweeps: tuple[tuple[int, ...], ...] = ()
    maps: str = "cpu"
    foreseen: bool = True

    @property
    def threads(self) -> int:
        """Threads that really work at once."""
        return max(1, min(self.workers, self.rates.cores))

    def from_disk(self, nbytes: float) -> bool:
        """Whether so many bytes do not stay in the page cache."""
        return self.page_cache_bytes is not None and nbytes > self.page_cache_bytes


@dataclass(slots=True)
class _Work:
    """Thread-seconds of one component, serial seconds, and bytes that the disk must give and take."""

    reading: float = 0.0
    computing: float = 0.0
    copying: float = 0.0
    units: int = 0
    whole: float = 0.0
    disk_bytes: float = 0.0
    out_bytes: int = 0


def predict_seconds(programs: Sequence[Program], counts: Mapping[int, int], keeps: Sequence[bool], setting: Setting) -> Timing:
    """Wall time of a merge.

    Args:
        programs: of the plan.
        counts: components of each program that is used.
        keeps: for each program, whether its inputs stay in memory between its passes.
        setting: workers, rates and the rest.
    """
    rates, threads = setting.rates, setting.threads
    cold = reads_from_disk(programs, counts, setting)
    works = {n: _component_work(n, programs[n], keeps[n], cold, setting) for n in counts}
    shares = [_share(n, counts[n], works[n], rates, threads) for n in sorted(counts)]
    reading = sum(s.reading_s for s in shares) + setting.slab_bytes * min(setting.workers, sum(counts.values())) / rates.fault_bytes_s
    computing, writing = sum(s.computing_s for s in shares), sum(s.writing_s for s in shares)
    disk_in = sum(works[n].disk_bytes * count for n, count in counts.items()) / rates.cold_read_bytes_s
    disk_out = sum(works[n].out_bytes * count for n, count in counts.items()) / rates.write_bytes_s
    waiting = max(0.0, disk_in + disk_out - reading - computing - writing) / max(disk_in + disk_out, 1e-9)
    used = [programs[n] for n in counts] if setting.backend == "numba" else []
    in_kernel = [n for n in counts if programs[n].copy is not None and not _past_cache(programs[n], rates)]
    copied = sum(output_bytes(programs[n]) * counts[n] for n in in_kernel)
    torch = setting.backend == "torch" or any(map(uses_torch, (programs[n] for n in counts)))
    return Timing(
        starting_s=rates.start_s * (1.0 + _TORCH_STARTS * torch) + kernel_count(used) * rates.kernel_load_s,
        bookkeeping_s=sum(s.bookkeeping_s for s in shares),
        reading_s=reading + waiting * disk_in,
        computing_s=computing,
        writing_s=writing + waiting * disk_out,
        publishing_s=copied / rates.sync_bytes_s + setting.files * rates.sync_s,
        first_run_s=_compile_s(used, rates, threads),
        from_disk=cold,
        measured=rates.measured,
        programs=tuple(shares),
    )


def _past_cache(program: Program, rates: Rates) -> bool:
    """Whether a tensor that is copied without decoding is read and written past the page cache, not copied in the kernel and flushed; the engine
    does so where the filesystem can, which shows in the rates."""
    return copied_through(program) and 1 / rates.read_bytes_s + 1 / rates.write_bytes_s < 1 / rates.copy_bytes_s + 1 / rates.sync_bytes_s


def uses_torch(program: Program) -> bool:
    """Whether anything of a program is computed by torch's linear algebra."""
    return any(program.nodes[i].op not in VIEWS for stage in program.stages for i in stage.wholes)


def _compile_s(programs: Sequence[Program], rates: Rates, processes: int) -> float:
    """Seconds until all kernels are compiled, several processes at once; the one that takes longest is a bound."""
    weights: list[float] = []
    for program, stage in distinct_stages(programs):
        found = {program.nodes[i].op for i in (*stage.compute, *stage.folds)}
        weights.append(1.0 + sum(extra for op, extra in _COMPILE_EXTRA.items() if op in found))
        weights += [1.0] * (2 * recounts(program, stage))
    return rates.compiler_start_s + max(max(weights), sum(weights) / processes) * rates.compile_s if weights else 0.0


def reads_from_disk(programs: Sequence[Program], counts: Mapping[int, int], setting: Setting) -> bool:
    """Whether the inputs are too large for the page cache, so that they come from the disk; the output takes nothing of it."""
    return setting.from_disk(sum(input_bytes(programs[n]) * count for n, count in counts.items()))


def _share(number: int, count: int, work: _Work, rates: Rates, threads: int) -> ProgramTime:
    computing = count * (work.computing / threads + work.whole)
    bookkeeping = count * (rates.component_s + work.units * rates.unit_s)
    return ProgramTime(number, count, count * work.reading / threads, computing, count * work.copying / threads, bookkeeping)


def _component_work(number: int, program: Program, keep: bool, cold: bool, setting: Setting) -> _Work:
    rates, threads = setting.rates, setting.threads
    written = output_bytes(program)
    if program.copy is not None and _past_cache(program, rates):
        reading = written * threads / min(threads * rates.read_thread_bytes_s, rates.read_bytes_s)
        return _Work(out_bytes=written, reading=reading, units=-(-written // (2 << 20)), disk_bytes=float(written) if cold else 0.0)
    if program.copy is not None:
        return _Work(copying=written * threads / rates.copy_bytes_s, units=-(-written // (64 << 20)), disk_bytes=float(written) if cold else 0.0)
    work = _Work(out_bytes=written)
    work.reading, work.disk_bytes, work.units = reading_work(program, keep, cold, setting, number)
    remade = _remade(program, setting)
    for place, stage in enumerate(program.stages):
        counted = 1 + _counted_again(program, stage, setting)
        work.computing += counted * _stage_seconds(program, stage, setting) * (rates.interpreter_factor if setting.backend == "torch" else 1.0)
        work.units += counted * block_count(stage, program.numel) + len(_sample(program, stage, setting)[0])
        for w in stage.wholes:
            seconds = whole_seconds(program.nodes[w], number, setting) * (1 + (place < remade))
            if number not in setting.on_gpu and on_one_core(program.nodes[w].op, program.nodes[w]):
                work.computing += seconds * rates.cores
            else:
                work.whole += seconds
    return work


def _counted_again(program: Program, stage: Stage, setting: Setting) -> bool:
    """Whether a stage's inputs are gone over once more, since no sample foresees its thresholds."""
    return not setting.foreseen and recounts(program, stage)


def _remade(program: Program, setting: Setting) -> int:
    """The stages whose whole results are made once more, to count again what a model-wide threshold is taken of."""
    over = [n for n, s in enumerate(program.stages) if s.scopes and s.residents and _counted_again(program, s, setting)]
    return max(over, default=0)


def _sample(program: Program, stage: Stage, setting: Setting) -> tuple[list[int], int]:
    """Where a stage's thresholds are foreseen from, and elements of each piece."""
    looked = selects(program, stage) and (setting.foreseen or seen_whole(program, stage))
    return sample_starts(stage, program.numel, sample_pieces(program, stage)) if looked else ([], 0)


def whole_seconds(node: Node, number: int, setting: Setting) -> float:
    """Seconds of an op on a whole tensor of program `number`, where it is planned to run."""
    if is_view(node.op, node):
        return 0.0
    return WHOLE_FLOPS[node.op](node) / (setting.rates.gpu_flops_s if number in setting.on_gpu else setting.rates.whole_flops_s)


def pass_seconds(program: Program, stage: Stage, setting: Setting, *, cold: bool) -> float:
    """Wall seconds of one pass that reads its inputs anew: read and computed by all workers, or as fast as a disk gives them."""
    nbytes = stage_read_bytes(program, stage)
    threads = setting.threads
    reading = nbytes / min(threads * setting.rates.read_thread_bytes_s, setting.rates.read_bytes_s)
    computing = _stage_seconds(program, stage, setting) * (setting.rates.interpreter_factor if setting.backend == "torch" else 1.0) / threads
    return max(reading + computing, nbytes / setting.rates.cold_read_bytes_s if cold else 0.0)


def _stage_seconds(program: Program, stage: Stage, setting: Setting) -> float:
    """Thread-seconds of one stage's kernel over a whole tensor, with the looks that order statistics take at values."""
    if setting.maps == "cuda":  # bound by the bus
        moved = stage_read_bytes(program, stage) + stage.store * output_bytes(program)
        return moved * setting.threads / setting.rates.gpu_copy_bytes_s
    found = len(selects(program, stage))
    starts, piece = _sample(program, stage, setting)
    looked = piece * len(starts) + found * min(block_elements(stage, program.numel), search_elements(stage))
    return (program.numel * stage_ns(program, stage, setting.rates) + looked * _SEARCH_COUNTS * setting.rates.count_ns) * _NS


# -- reading -----------------------------------------------------------------------------------------
def reading_work(program: Program, keep: bool, cold: bool, setting: Setting, number: int = 0) -> tuple[float, float, int]:
    """Thread-seconds in which one component's inputs are read, the bytes of them that come from disk, and units of work for that alone.

    Args:
        program: of the component.
        keep: the inputs are read once and stay in memory for all passes.
        cold: the page cache does not hold the whole model.
        setting: workers, rates and the rest.
        number: of the program.
    """
    rates, threads = setting.rates, setting.threads
    per_byte = threads / min(threads * rates.read_thread_bytes_s, rates.read_bytes_s)
    read = [stage_read_bytes(program, stage) * (1 + _counted_again(program, stage, setting)) for stage in program.stages]
    if keep:
        once = input_bytes(program)
        seconds = once * threads / rates.fill_bytes_s + sum(read) * threads / rates.memory_bytes_s
        return seconds, once if cold else 0, sum(-(-program.numel * 2 // FILL_UNIT) for s in program.slots if s >= 0)
    return sum(read) * per_byte, _disk_bytes(program, setting, number) if cold else 0, 0


def _disk_bytes(program: Program, setting: Setting, number: int) -> int:
    """Bytes that one component reads from the disk, where the page cache does not hold the whole model.

    A later pass of the same component comes soon: it finds the page cache filled, unless the components at work do not fit there at once.
    """
    again = setting.from_disk(2 * setting.workers * input_bytes(program))
    sweeps = setting.sweeps[number] if setting.sweeps else (0,) * len(program.stages)
    disk, seen = 0, set[tuple[int, int]]()
    for stage, sweep in zip(program.stages, sweeps, strict=True):
        if not stage_read_bytes(program, stage):
            continue
        counted_again = _counted_again(program, stage, setting)
        for load in stage.loads:
            nbytes = program.numel * BY_CODE[str(program.nodes[load].param("storage"))].itemsize
            times = 1 if again or (sweep, load) not in seen else 0
            if counted_again and (again or stage.scopes):  # for a model-wide threshold in a sweep of its own
                times += 1
            disk += times * nbytes
            seen.add((sweep, load))
    return disk


def keeping_saves(program: Program, setting: Setting, *, cold: bool) -> float:
    """Wall seconds that a component surely saves when its inputs stay in memory between its passes; negative when re-reading is cheaper or hardly dearer."""
    rates, costs = setting.rates, []
    for keep in (False, True):
        seconds, disk, units = reading_work(program, keep, cold, setting)
        costs.append(max(seconds / setting.threads, disk / rates.cold_read_bytes_s) + units * rates.unit_s)
    return costs[0] - _KEEP_MARGIN * costs[1]
