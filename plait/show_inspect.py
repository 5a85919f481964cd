"""A checkpoint for the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plait.planner.header_text import printable
from plait.planner.sizes import size

if TYPE_CHECKING:
    from plait.inspection import Inspection, Scan

_TIED = {True: "the configuration ties input and output embeddings", False: "input and output embeddings are not tied"}
#: Kinds of oddities, in words.
ODD = {
    "integer": "integer tensors",
    "quantised": "quantised tensors",
    "empty": "tensors without elements",
    "unlike": "unlike their siblings",
    "missing": "missing",
    "partial": "only in some layers",
    "unknown": "names that tell no role",
    "configuration": "configuration",
}
_WORDS = {
    "hidden_size": "hidden",
    "intermediate_size": "MLP",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv heads",
    "num_local_experts": "experts",
    "vocab_size": "vocabulary",
}
#: Names of one kind of oddity that are listed.
_MOST = 5


def show_inspection(found: Inspection, *, tensors: bool) -> None:
    """What a checkpoint holds; every tensor where that is asked for."""
    console = Console(highlight=False)
    summary = found.summary
    console.print(f"[bold]{escape(printable(summary['label']))}[/]", soft_wrap=True)
    for line in _head(summary):
        console.print(f"  {printable(line)}", markup=False, soft_wrap=True)
    console.print(_kinds(summary))
    _odd(console, summary["odd"])
    if found.scan is not None:
        _scan(console, found.scan)
    if tensors:
        console.print(_every(found))


def count(number: int) -> str:
    """A number of elements: `70.6 B`, `124 M`, `4,096`."""
    for letter, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if number >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number:,}"


def _head(summary: dict[str, Any]) -> list[str]:
    names = summary["architectures"]
    listed = ", ".join(map(str, names)) if isinstance(names, list) else ""
    kind = f"{listed or 'no architecture named'}" + (f" ({summary['model_type']})" if summary["model_type"] is not None else "")
    facts = [f"{word} {summary['architecture'][key]:,}" for key, word in _WORDS.items() if key in summary["architecture"]]
    lines = [kind]
    if facts:
        lines.append(", ".join(facts))
    if summary["about"]:
        lines.append(summary["about"])
    stacks = ", ".join(f"{layers} in {stack}" for stack, layers in summary["stacks"].items()) if len(summary["stacks"]) > 1 else ""
    lines.append(f"parameters: {summary['parameters']:,} ({count(summary['parameters'])}); layers: {summary['layers']}" + (f" ({stacks})" if stacks else ""))
    files = [shard["bytes"] for shard in summary["shards"]]
    where = f"1 file, {size(files[0])}" if len(files) == 1 else f"{len(files)} files of {size(min(files))} to {size(max(files))}"
    dtypes = ", ".join(
        f"{name} {100 * row['bytes'] / max(1, summary['bytes']):.3g} %" if len(summary["dtypes"]) > 1 else name for name, row in summary["dtypes"].items()
    )
    lines.append(f"{summary['tensors']:,} tensors, {size(summary['bytes'])} in {where}; {dtypes}")
    if summary["tied"] is not None:
        lines.append(_TIED[summary["tied"]])
    return lines


def _kinds(summary: dict[str, Any]) -> Table:
    """Tensors by group, those of all layers in one line."""
    several, mixed = len(summary["stacks"]) > 1, len(summary["dtypes"]) > 1
    table = Table(box=None, pad_edge=False)
    table.add_column("tensors", overflow="fold")
    for heading in ("shape", *(["dtype"] if mixed else []), "parameters", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    role = ""
    for row in summary["kinds"]:
        if row["role"] != role:
            role = row["role"]
            total = summary["roles"][role]
            table.add_row(role, "", *([""] if mixed else []), count(total["elements"]), size(total["bytes"]), style="bold")
        times = f"{row['tensors']} x " if row["tensors"] > 1 else ""
        name = row["name"].removesuffix(".weight")
        name = name if several else name.partition(".*.")[2] or name
        shape = "x".join(map(str, row["shape"])) or "scalar"
        dtype = [row["dtype"]] if mixed else []
        table.add_row(f"  {times}{escape(printable(name))}", shape, *dtype, count(row["elements"]), size(row["bytes"]))
    return table


def _odd(console: Console, odd: dict[str, list[str]]) -> None:
    for kind, names in odd.items():
        console.print(f"odd: {ODD[kind]}: {_some(names)}", markup=False, soft_wrap=True)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST:,} more" if len(listed) > _MOST else ""
    return "; ".join(map(printable, listed[:_MOST])) + more


def _scan(console: Console, scan: Scan) -> None:
    """What a look at all values found."""
    console.print(f"scan: {size(scan.bytes_read)} read in {scan.seconds:.1f} s", markup=False)
    if not scan.nonfinite:
        console.print("  no NaN, no infinity", markup=False)
    for tensor in scan.nonfinite:
        console.print(f"  {printable(tensor.name)} holds {tensor.nan:,} NaN and {tensor.infinite:,} infinite values", markup=False, soft_wrap=True)
    zeros = [t.name for t in scan.tensors if not t.largest]
    if zeros:
        console.print(f"  zero everywhere: {_some(zeros)}", markup=False, soft_wrap=True)
    for names in scan.equal:
        console.print(f"  the same bytes: {_some(names)}", markup=False, soft_wrap=True)
    if scan.not_scanned:
        console.print(f"  not looked at (integers, float64, quantised or empty): {_some(scan.not_scanned)}", markup=False, soft_wrap=True)
    if scan.tensors:
        top = max(scan.tensors, key=lambda t: t.largest)
        console.print(f"  largest magnitude {top.largest:.4g}, in {printable(top.name)}", markup=False, soft_wrap=True)


def _every(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("tensor", "dtype", "shape", "bytes"):
        table.add_column(heading, overflow="fold")
    for name, ref in found.checkpoint.tensors.items():
        table.add_row(escape(printable(name)), ref.dtype, escape(str(list(ref.shape))), size(ref.nbytes))
    return table
