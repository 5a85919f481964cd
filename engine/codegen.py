"""From a stage of a program to the source of one fused loop.

The loop reads the stored bits of every input once, computes in float32 registers, and in the same
sweep rounds the output, fills histograms and adds up folds. It is written in the Python that Numba
compiles: no fast-math, no contraction, so that it gives the bits of the same operations done one by
one, which is what `plait.engine.interpreter` does and tests compare.

A block is a run of whole rows (a stage without row-wise ops has one row, the block itself). For each
row the generated code runs *phases*: a phase sweeps the row's columns in chunks, and ends with the
row's folds and ranks, which the next phase may use. Values are recomputed in each phase that needs them.

Every reduction follows the tree of `plait.ops.kernels.reduce`: eight lanes by index in the row.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from plait.engine.exprgen import LOADS, STORES, Expressions
from plait.engine.foldgen import fold_lines, only_folds
from plait.engine.kernel import PRELUDE, Kernel
from plait.engine.pulling import next_piece
from plait.ops.kernels.select import SCAN
from plait.ops.op import NUMBER_FOLDS
from plait.planner.blocks import CHECKED_COLUMNS, CHUNK, COARSE, RANK_SPARE, SEARCH_PIECE, SPAN, SPARSE_LIMIT, checked_loads, marked_pieces, pulls_inputs
from plait.planner.program import Program, Stage, data_inputs

_MUCH_ARITHMETIC = {"random_bits", "exp", "tanh"}  # for which LLVM's widest vectors pay
_PEAKS = {"BF16": "peak16", "F16": "peak16", "F32": "peak32"}
#: How the checksum adds up an output, the type of its sums, and how many there are: a row of 64-bit words, in elements.
_WORD_SUMS = {
    "BF16": ("add_words16", "uint32", 4 * CHECKED_COLUMNS),
    "F16": ("add_words16", "uint32", 4 * CHECKED_COLUMNS),
    "F32": ("add_words32", "uint64", 2 * CHECKED_COLUMNS),
}

_SUMS = ("dot", "row_dot", "sum", "row_sum")
#: Sums and operands of those that are added up in one sweep: vectors of eight float64, of which a processor with AVX-512 has 32.
SWEEP_REGISTERS = 30

#: Lengths are not checked in compiled code, and slices must not be cut short.
_UNBOUNDED = "int64(1 << 60)"


def generate(program: Program, stage: Stage) -> Kernel:
    """The kernel of one stage."""
    return _Generator(program, stage).run()


class _Generator:
    def __init__(self, program: Program, stage: Stage) -> None:
        self.nodes, self.stage, self.program = program.nodes, stage, program
        self.kernel = Kernel()
        self.active = set(stage.loads) | set(stage.residents) | set(stage.compute)
        self.kernel.streams = [i for i in stage.compute if self.nodes[i].op == "random_bits"]
        self.kernel.ranks = [i for i in stage.compute if self.nodes[i].op == "row_rank"]
        self.kernel.selects = [i for i in stage.folds if self.nodes[i].op == "kth_magnitude"]
        self.kernel.sums = [i for i in stage.folds if self.nodes[i].op in NUMBER_FOLDS]
        self.kernel.columns = [i for i in stage.folds if self.nodes[i].op == "column_dot"]
        self.kernel.gathered = [i for i in stage.folds if self.nodes[i].op == "row_values"]
        self.counts = [i for i in self.kernel.sums if self.nodes[i].op == "sum" and self.nodes[self.nodes[i].inputs[0]].dtype == "bool"]
        self.reductions = [i for i in stage.compute if self.nodes[i].op in ("row_sum", "row_dot", "row_max", "row_largest")]
        self.reductions += [i for i in self.kernel.sums if i not in self.counts]
        self.kernel.word_sums = _WORD_SUMS[program.dtype][1:] if stage.store else None
        self.kernel.checked = list(checked_loads(program, stage))
        self.unchecked = list(self.kernel.checked)
        self.kernel.pulls = pulls_inputs(stage)
        self.phase = self._phases()
        self.text = Expressions(self.nodes, self.kernel)
        self._id = self.text.id
        self.scratch_rows = 0
        self.sweeps: list[tuple[tuple[int, ...], ...]] = []

    # -- which phase a node belongs to -----------------------------------------------------------
    def _phases(self) -> dict[int, int]:
        phase: dict[int, int] = {}
        for i in sorted(self.active):
            node = self.nodes[i]
            latest = max((phase[j] for j in data_inputs(node) if j in phase), default=0)
            phase[i] = latest + 1 if node.kind == "rows" else latest
        return phase

    def _phase_of(self, i: int) -> int:
        """Phase in which fold or target `i` is swept."""
        return max((self.phase[j] for j in data_inputs(self.nodes[i]) if j in self.phase), default=0)

    # -- the text ---------------------------------------------------------------------------------
    def run(self) -> Kernel:
        body: list[str] = []
        folds = ""
        if only_folds(self.nodes, self.stage):
            k = self.kernel
            folds, begin, body = fold_lines(
                self.nodes, self.stage, k.sums, self.counts, self.reductions, k.checked, lambda i: f"in{self._id(i)}", self.text.slot
            )
            body = [*begin, "while filled < n:", *_indent([*next_piece(self._inputs(), "filled"), body[0]], 1), *body[1:]]
        else:
            for phase in range(max(self.phase.values(), default=0) + 1):
                body += self._phase(phase)
        arguments = self._arguments()
        k = self.kernel
        k.arrays = len(arguments)
        pointers = [f"types.CPointer({dtype})" for _, dtype, _ in arguments]
        lines = [PRELUDE, f"SIGNATURE = (int64, int64, int64, {', '.join(pointers)})", ""]
        lines += [folds] if folds else []
        lines += [f"sums{number} = sum_sweep({sums})" for number, sums in enumerate(self.sweeps)]
        lines += ["", f"def kernel(n, start, row, {', '.join(f'p_{name}' for name, _, _ in arguments)}):"]
        lines += [f"    {name} = carray(p_{name}, ({_UNBOUNDED}{f', {width}' if width else ''},))" for name, _, width in arguments]
        lines += ["    with_wide_vectors()"] if any(self.nodes[i].op in _MUCH_ARITHMETIC for i in self.stage.compute) else []
        lines += _indent(self.text.prologue, 1)
        lines += _indent([f"facc[{f}] = {self._identity(i)}" for f, i in enumerate(k.sums)], 1)
        lines += _indent([f"peak[{f}] = 0" for f in range(len(k.checked) + self.stage.store)], 1)
        if self.stage.store:
            width = _WORD_SUMS[self.program.dtype][2]
            lines += _indent([f"summed = n // {width} * {width}", f"words[:{width}] = 0"], 1)
        lines += _indent([f"cols[{f}, :row] = 0.0" for f in range(len(k.columns))], 1)
        lines += ["    at = filled = int64(0)"] if k.pulls else []
        lines += _indent(body, 1) if folds else ["    for r in range(n // row):", "        base = r * row", *_indent(body, 2)]
        for number in range(len(k.selects)):
            lines += [
                f"    if low[{number}] >= 0:",
                f"        found[{number}] = harvest(fine[{number}], used[{number}], places[{number}], times[{number}], int64({SPARSE_LIMIT}))",
            ]
        k.source = "\n".join(lines) + "\n"
        k.key = blake2b(k.source.encode(), digest_size=12).hexdigest()
        k.scratch = (max(1, self.scratch_rows), max(1, len(self.reductions)))
        return k

    def _arguments(self) -> list[tuple[str, str, object]]:
        """Name, element type and row length (None for vectors) of each array, in the order in which the function takes them."""
        arguments: list[tuple[str, str, object]] = [("s", "float64", None), ("streams", "uint32", 4)]
        arguments += [(f"t{self._id(i)}", dtype, None) for i, dtype in self.kernel.tables.items()]
        arguments += [(f"in{self._id(i)}", LOADS[self._storage(i)][0], None) for i in self.stage.loads]
        arguments += [(f"res{self._id(i)}", "float32", None) for i in self.stage.residents]
        if self.stage.store:
            arguments.append(("out", STORES[self.program.dtype][0], None))
        arguments += [(f"keep{self._id(i)}", "float32", None) for i in self.stage.keeps]
        arguments += [("facc", "float64", None), ("acc", "float64", 8), ("F", "float32", CHUNK), ("U", "uint32", CHUNK), ("peak", "uint32", None)]
        if self.stage.store:
            arguments.append(("words", _WORD_SUMS[self.program.dtype][1], None))
        if self.kernel.columns:
            arguments.append(("cols", "float64", "row"))
        if self.kernel.gathered:
            arguments.append(("rows", "float64", "(n // row)"))
        if self.kernel.selects:
            arguments += [
                ("coarse", "int64", COARSE),
                ("low", "int64", None),
                ("width", "int64", None),
                ("heavy", "int64", None),
                ("fine", "int32", SPAN),
                ("used", "uint8", SPAN // SCAN),
                ("above", "int64", None),
            ]
            arguments += [
                ("found", "int64", None),
                ("places", "uint32", SPARSE_LIMIT),
                ("times", "int64", SPARSE_LIMIT),
                ("marks", "int32", marked_pieces(self.stage)),
            ]
        if self.kernel.pulls:
            arguments.append(("pull", "int64", None))
        if self.kernel.ranks:
            arguments += [("X", "float32", "row"), ("ranks", "int32", "row"), ("pairs", "uint64", f"(row + {RANK_SPARE})"), ("counts", "uint32", None)]
        return arguments

    def _inputs(self) -> list[str]:
        """Names of the arrays of the loads."""
        return [f"in{self._id(i)}" for i in self.stage.loads]

    def _storage(self, i: int) -> str:
        return str(self.nodes[i].param("storage"))

    def _phase(self, phase: int) -> list[str]:
        here = [i for i in self.reductions if self._phase_of(i) == phase]
        columns = [i for i in self.kernel.columns if self._phase_of(i) == phase]
        counted = [i for i in self.counts if self._phase_of(i) == phase]
        ranked = [i for i in self.kernel.ranks if self._phase_of(i) == phase]
        selected = [i for i in self.kernel.selects if self._phase_of(i) == phase]
        kept = [i for i in self.stage.keeps if self.phase[i] == phase]
        root = self.program.root
        stores = self.stage.store and self.phase[root] == phase
        targets = {j for i in (*here, *columns, *counted, *ranked, *selected) for j in self._swept(i)} | set(kept) | ({root} if stores else set())
        sweep = self._closure(targets)
        if not targets:
            return self._row_values(phase)
        scratch: dict[int, int] = {}
        for i in (*here, *columns, *selected):
            for j in self._swept(i):
                scratch.setdefault(j, len(scratch))
        self.scratch_rows = max(self.scratch_rows, len(scratch))
        lines = [f"acc[{self.reductions.index(i)}, :] = {self._identity(i)}" for i in here]
        lines += [f"for c in range(0, row, {CHUNK}):", f"    m = min({CHUNK}, row - c)", "    p = base + c"]
        if self.kernel.pulls:
            lines += _indent(["if p >= filled:", *_indent(next_piece(self._inputs(), "p"), 1)], 1)
        lines += _indent(self._chunk(sweep, scratch, counted, ranked, kept, stores), 1)
        if scratch:
            pads = [f"        F[{k}, j] = float32(0.0)" for k in scratch.values()]
            lines += ["    m8 = (m + 7) & ~7", "    for j in range(m, m8):", *pads]
        lines += _indent([self._reduce(i, scratch) for i in here if self.nodes[i].op not in _SUMS] + self._sums(here, scratch), 1)
        for i in columns:
            x, y = (f"F[{scratch[j]}]" for j in self._swept(i))
            lines.append(f"    accumulate_columns(cols[{self.kernel.columns.index(i)}], {x}, {y}, c, m)")
        for i in selected:
            k = self.kernel.selects.index(i)
            what = f"low[{k}], width[{k}], heavy[{k}], coarse[{k}], fine[{k}], used[{k}]"
            lines.append(f"    above[{k}] += count_keys(F[{scratch[self.nodes[i].inputs[0]]}], m, {what})")
            if not self.stage.row_length:  # pieces of a block are counted apart, to find the last tie that is kept sooner
                lines.append(f"    marks[{k}, p >> {SEARCH_PIECE.bit_length() - 1}] = fine[{k}, max(heavy[{k}], int64(0))]")
        for i in ranked:
            k = self.kernel.ranks.index(i)
            lines.append(f"row_ranks(X[{k}], row, ranks[{k}], pairs[0], pairs[1], counts)")
        for i in here:
            if i in self.kernel.sums:
                f, a = f"facc[{self.kernel.sums.index(i)}]", f"acc[{self.reductions.index(i)}"
                lines.append(f"{f} = larger({f}, {a}, 0])" if self.nodes[i].op == "largest" else f"{f} += combine({a}])")
        return lines + self._row_values(phase)

    def _swept(self, i: int) -> list[int]:
        """Inputs of a fold that the loop computes; a small one is for the host."""
        return [j for j in self.nodes[i].inputs if self.nodes[j].space != "small"]

    def _identity(self, i: int) -> str:
        return "-math.inf" if self.nodes[i].op in ("largest", "row_largest") else "0.0"

    def _closure(self, targets: Iterable[int]) -> list[int]:
        found: set[int] = set()
        stack = [i for i in targets if self.nodes[i].space == "tensor"]
        while stack:
            i = stack.pop()
            if i in found:
                continue
            found.add(i)
            if self.nodes[i].kind == "map":
                stack.extend(j for j in data_inputs(self.nodes[i]) if self.nodes[j].space == "tensor")
        return sorted(found)

    def _chunk(self, sweep: list[int], scratch: dict[int, int], counted: list[int], ranked: list[int], kept: list[int], stores: bool) -> list[str]:
        lines = []
        for i in sweep:
            if self.nodes[i].op == "random_bits":
                u = self.kernel.streams.index(i)
                lines.append(f"philox_fill(U[{u}], start + p, m, streams[{u}, 0], streams[{u}, 1], streams[{u}, 2], streams[{u}, 3])")
                lines.append(f"u{self._id(i)} = U[{u}]")
            elif self.nodes[i].kind == "load":
                lines.append(f"a{self._id(i)} = in{self._id(i)}[{'p - at:p - at + m' if self.kernel.pulls else 'p:p + m'}]")
            elif self.nodes[i].kind == "whole":
                lines.append(f"a{self._id(i)} = res{self._id(i)}[p:p + m]")
            elif self.nodes[i].op == "row_rank":
                lines.append(f"a{self._id(i)} = ranks[{self.kernel.ranks.index(i)}, c:c + m]")
        lines += [f"f{k} = F[{k}]" for k in scratch.values()]
        lines += [f"n{self.counts.index(i)} = uint32(0)" for i in counted]
        lines += [f"x{self._id(i)} = X[{self.kernel.ranks.index(i)}, c:c + m]" for i in ranked]
        lines += [f"k{self._id(i)} = keep{self._id(i)}[p:p + m]" for i in kept]
        if stores:
            lines.append("o = out[p:p + m]")
        cuts = [i for i in sweep if self.nodes[i].op == "keep_top"]
        loop = [f"v{self._id(i)} = {self.text.value(i)}" for i in sweep]
        loop += [f"f{k}[j] = {self.text.operand(i, 'f')}" for i, k in scratch.items()]
        loop += [f"n{k} = uint32(n{k} + uint32(v{v}))" for k, v in ((self.counts.index(i), self._id(self.nodes[i].inputs[0])) for i in counted)]
        loop += [f"x{self._id(i)}[j] = {self.text.operand(self.nodes[i].inputs[0], 'f')}" for i in ranked]
        loop += [f"k{self._id(i)}[j] = v{self._id(i)}" for i in kept]
        if stores:
            loop.append("o[j] = " + STORES[self.program.dtype][1].format(self.text.operand(self.program.root, "f")))
        looks = self._looks(sweep, stores)
        ends = [f"facc[{self.kernel.sums.index(i)}] += float64(n{self.counts.index(i)})" for i in counted]  # whole numbers, exact in any order
        swept = self._segments(cuts, loop) if cuts else ["for j in range(m):", *_indent(loop or ["pass"], 1)]
        return [*lines, *swept, *ends, *looks]

    def _looks(self, sweep: list[int], stores: bool) -> list[str]:
        """The largest magnitude of a chunk of each input that is read for the first time, and of the output: infinity and NaN show there."""
        checked, lines = self.kernel.checked, []
        for i in sweep:
            if i in self.unchecked:
                self.unchecked.remove(i)
                k = checked.index(i)
                lines.append(f"peak[{k}] = {_PEAKS[self._storage(i)]}(a{self._id(i)}, m, peak[{k}])")
        if stores:
            lines.append(f"peak[{len(checked)}] = {_PEAKS[self.program.dtype]}(o, m, peak[{len(checked)}])")
            add, _, width = _WORD_SUMS[self.program.dtype]
            lines.append(f"{add}(words, o, p, min(m, summed - p), {width})")
        return lines

    def _segments(self, cuts: list[int], loop: list[str]) -> list[str]:
        """The loop over a chunk, cut where an order statistic stops to keep ties: within a segment one comparison decides."""
        lines = ["first = 0", "while first < m:", "    end = m"]
        for i in cuts:
            _, cut, limit = self.nodes[i].inputs
            key, last = self.text.scalar(cut, "u"), self.text.limit(limit)
            lines += [
                f"    cut{self._id(i)} = {key}",
                f"    if p + first < {last}:",
                f"        end = min(end, {last} - p)",
                "    else:",
                f"        cut{self._id(i)} = uint32({key} + uint32(1))",
            ]
        return [*lines, "    for j in range(uint64(first), uint64(end)):", *_indent(loop, 2), "    first = end"]

    def _reduce(self, i: int, scratch: dict[int, int]) -> str:
        node, a = self.nodes[i], self.reductions.index(i)
        x = f"F[{scratch[node.inputs[0]]}]"
        return f"acc[{a}, 0] = larger(acc[{a}, 0], {'row_max' if node.op == 'row_max' else 'row_largest'}({x}, m))"

    def _sums(self, here: list[int], scratch: dict[int, int]) -> list[str]:
        """Sums and inner products, as many in one sweep as the processor has registers for them and their operands."""
        sweeps: list[list[tuple[int, ...]]] = [[]]
        for i in here:
            if self.nodes[i].op in _SUMS:
                rows = [scratch[j] for j in self.nodes[i].inputs]
                operands = {*rows, *(row for _, *others in sweeps[-1] for row in others)}
                if len(sweeps[-1]) + 1 + len(operands) > SWEEP_REGISTERS:
                    sweeps.append([])
                sweeps[-1].append((self.reductions.index(i), *rows))
        return [f"{self._sweep_name(tuple(sums))}(acc, F, m8)" for sums in sweeps if sums]

    def _sweep_name(self, sums: tuple[tuple[int, ...], ...]) -> str:
        if sums not in self.sweeps:
            self.sweeps.append(sums)
        return f"sums{self.sweeps.index(sums)}"

    def _row_values(self, phase: int) -> list[str]:
        """Row folds that ended in `phase`, and the arithmetic on them, in float64."""
        lines = []
        for i in sorted(self.active):
            node = self.nodes[i]
            if node.space != "row" or self.phase[i] != phase + 1:
                continue
            if node.kind == "rows":
                a = self.reductions.index(i)
                lines.append(f"r{self._id(i)} = acc[{a}, 0]" if node.op in ("row_max", "row_largest") else f"r{self._id(i)} = combine(acc[{a}])")
            else:
                lines.append(f"r{self._id(i)} = {self.text.row_map(node)}")
        for place, i in enumerate(self.kernel.gathered):
            j = self.nodes[i].inputs[0]
            if self.phase[j] == phase + 1:
                lines.append(f"rows[{place}, r] = r{self._id(j)}")
        return lines


def _indent(lines: Iterable[str], depth: int) -> list[str]:
    return ["    " * depth + line for line in lines]
