#!/usr/bin/env python
"""Writes docs/benchmarks.md, and the figures of README.md between its markers, from the results under benchmarks/results.

    python scripts/benchmark_pages.py            write what changed
    python scripts/benchmark_pages.py --check    write nothing; exit status 1 where a page is not up to date

No figure on these pages is typed in: every one is read from a result that a benchmark has written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks" / "results"
PAGE = REPO / "docs" / "benchmarks.md"
NOTE = "<!-- Written by scripts/benchmark_pages.py from benchmarks/results; run the benchmarks, then that. -->"
MIB, GIB = 1 << 20, 1 << 30
TITLES = {
    "1.1b": "base and experts of 1.1 billion parameters",
    "1.1b-width-1layer": "one layer of 1.1B width, with its embedding and head",
    "70b-width-1layer": "one layer of 70B width, with its embedding and head",
    "moe-1layer": "one layer of 40 experts of 2048 x 512, with a vocabulary of 512",
    "70b-width-layer-alone": "one layer of 70B width alone, with a vocabulary of 256",
}
OWN = """## Your machine, your shapes

```
plait bench machine --whole --plot machine.svg     # disk, memory, kernels, products of matrices; plans use the figures from then on
plait bench methods --on models/base               # every method on your shapes, with experts of yours or made-up ones
plait bench methods --shapes 1.1b --limit 60 --plot methods.png
plait bench memory recipe.yml --plot memory.png    # one merge over a grid of budgets
plait bench peers recipe.yml --mergekit VENV --sd-mecha VENV --plot peers.png
```

Each has `--format json`, and a `--help` that says what it measures. They remove what they made, also when they are stopped. `plait bench
methods` and `plait bench memory` end with status 1 when a peak is above what its plan predicted. How the figures below are measured, and
how to take them again, is in [`benchmarks/README.md`](../benchmarks/README.md)."""


def pages() -> dict[Path, str]:
    """Text of each page that holds figures."""
    readme = REPO / "README.md"
    return {PAGE: page(), readme: filled(readme.read_text())}


def result(name: str) -> dict[str, Any] | None:
    """A benchmark's result, None where it was never run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def page() -> str:
    """docs/benchmarks.md."""
    parts = [NOTE, "# Benchmarks", "What merges take, measured beside what their plans predicted.", OWN]
    parts += [*_grid(result("grid")), *_catalogue(result("catalogue")), *_mergekit(result("speed_mergekit")), *_spectral(result("spectral"))]
    return "\n\n".join(parts) + "\n"


def _grid(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield "## Is the prediction right?"
    yield f"![Predicted against measured peak and time of {len(_ran(found))} merges](../benchmarks/results/grid.png)"
    yield f"{grid_words(found)} Peaks are private memory above that of the imports. `python benchmarks/grid.py`, {_machine(found['machine'])}."


def _ran(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in found["cells"] if not cell["refused"]]


def grid_words(found: dict[str, Any]) -> str:
    """What the grid says, in two sentences."""
    ran = _ran(found)
    over = [c for c in ran if c["used"] > c["predicted"]]
    twice = [c for c in ran if 0.5 <= c["predicted_s"] / c["wall_s"] <= 2.0]
    refused = len(found["cells"]) - len(ran)
    held = f"the measured peak of {'none' if not over else len(over)} was above the predicted one"
    return (
        f"Of {len(ran)} merges over {len({c['method'] for c in ran})} methods, {len({c['budget'] for c in ran})} budgets and "
        f"{len({c['shape'] for c in ran})} shapes, {held}"
        + (f" ({refused} were refused beforehand, as too small a budget)" if refused else "")
        + f". {len(twice)} of the predicted times are within a factor of two of the measured ones."
    )


def _catalogue(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield "## Every method"
    yield (
        "The recipe of each is the one on its page. Streamed methods ran in `--memory 128MiB`, those that decompose matrices in half of the free "
        "memory. `peak` is above the imports, `private` the whole process with them. Kernels were compiled, and "
        f"inputs read once, before. `python benchmarks/catalogue.py`, {_machine(found['machine'])}."
    )
    for name, entry in found["sets"].items():
        rows = list(entry["rows"].values())
        streamed = [r["private_bytes"] for r in rows if r["state"] == "ran" and r["streams"]]
        yield f"### {TITLES.get(name, name)}: {entry['experts']} experts, {entry['model_bytes'] / 1e9:.2g} GB each"
        if streamed:
            yield f"{len(streamed)} methods were streamed, none in more than {max(streamed) / MIB:.0f} MiB of private memory."
        yield _table(["method", "time", "predicted", "peak", "predicted", "private", "passes", "read", "written"], [_method(r) for r in rows])
        notes = [f"- `{r['method']}`: {r['why']}" for r in rows if r["why"]]
        if notes:
            yield "\n".join(notes)

    if found["broken_promises"]:
        yield "What is over a promise:\n\n" + "\n".join(f"- {line}" for line in found["broken_promises"])


def _method(r: dict[str, Any]) -> list[str]:
    known = bool(r["predicted_peak_bytes"])
    measured = r["state"] == "ran"
    return [
        f"[`{r['method']}`](methods/{r['method']}.md)",
        f"{r['seconds']:.1f} s" if measured else r["state"],
        f"{r['predicted_seconds']:.1f} s" if known else "",
        _size(r["peak_bytes"]) if measured else "",
        _size(r["predicted_peak_bytes"]) if known else "",
        _size(r["private_bytes"]) if measured else "",
        str(r["passes"]) if known else "",
        f"{(r['read_bytes'] if measured else r['predicted_read_bytes']) / 1e9:.1f} GB" if known else "",
        f"{r['written_bytes'] / 1e9:.1f} GB" if known else "",
    ]


def _mergekit(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    rows = {m: r for m, r in found["rows"].items() if "failed" not in r}
    yield "## Beside mergekit"
    yield (
        f"{', '.join(found['peers'])} and plait in turns on base and {found['set']['experts']} experts of {found['set']['model_bytes'] / 1e9:.2g} GB, whole "
        f"processes with warm inputs and kernels; plait in `--memory {found['memory']}`, its output durable. "
        f"`python benchmarks/versus_mergekit.py`, {_machine(found['machine'])}."
    )
    ordered = sorted(rows.items(), key=lambda pair: -times(pair[1]))
    yield _table(["method", "plait", "mergekit", "times as fast", "plait's private memory", "mergekit's"], [_beside(m, r) for m, r in ordered])
    if found["missed"]:
        yield "Short of the target of 5 times, or 30 where mergekit sorts or iterates:\n\n" + "\n".join(f"- {line}" for line in found["missed"])


def _spectral(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield "## Spectral kernels beside torch.linalg.svd"
    yield (
        f"The same values from `torch.linalg.svd` in float32 on the whole matrix, in turns, {found['threads']} threads, each in a process of its own. The "
        "matrix is noise with 64 directions above it. `error` of a polar factor is how far its rows are from orthonormal or its product with the matrix "
        "from symmetric, whichever is more; of the others, how much more they leave than torch's triplets do (a negative figure: less). "
        f"`python benchmarks/spectral.py`, {_machine(found['machine'])}."
    )
    headings = ["kernel", "shape", "plait", "torch", "times as fast", "plait's memory", "torch's", "error", "torch's"]
    yield _table(headings, [_kernel(r, found["by"]) for r in found["results"]])
    if found["broken"]:
        yield "Short of what was promised:\n\n" + "\n".join(f"- {line}" for line in found["broken"])


def _kernel(row: dict[str, Any], by: str) -> list[str]:
    ours, torch = ({key: median(run[key] for run in row[side]) for key in row[side][0]} for side in ("ours", "torch"))
    seconds, memory = [side[f"{by}_s"] for side in (ours, torch)], [_size(side["peak_bytes"]) for side in (ours, torch)]
    polar = row["case"] == "polar"
    errors = [f"{ours['error']:.1e}", f"{torch['error']:.1e}"] if polar else [f"{ours['error'] / torch['error'] - 1:.1e}", ""]
    shape = " x ".join(map(str, row["shape"]))
    return [row["case"], shape, *(f"{s:.2f} s" for s in seconds), f"{seconds[1] / seconds[0]:.1f}", *memory, *errors]


def times(row: dict[str, Any]) -> float:
    """How many times as fast as mergekit."""
    return float(median(row["mergekit"]["wall_s"]) / median(row["plait"]["wall_s"]))


def _beside(method: str, r: dict[str, Any]) -> list[str]:
    pair = (r["plait"], r["mergekit"])
    seconds = [f"{median(p['wall_s']):.1f} s" for p in pair]
    return [f"[`{method}`](methods/{method}.md)", *seconds, f"{times(r):.1f}", *(_size(max(p["peak_bytes"])) for p in pair)]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.1f} GiB" if nbytes >= GIB else f"{nbytes / MIB:.0f} MiB" if nbytes >= 10 * MIB else f"{nbytes / MIB:.1f} MiB"


def _machine(facts: dict[str, Any]) -> str:
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / GIB:.0f} GiB"


def filled(text: str) -> str:
    """README's text with its figures between `<!-- figures: NAME -->` and `<!-- end -->`."""
    return re.sub(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", lambda m: m[1] + _snippet(m[2]) + m[3], text, flags=re.DOTALL)


def _snippet(name: str) -> str:
    found = result(name)
    if found is None:
        return ""
    if name == "grid":
        return f"{grid_words(found)}\n"
    ran = {m: times(r) for m, r in found["rows"].items() if "failed" not in r}
    least, most = min(ran, key=ran.__getitem__), max(ran, key=ran.__getitem__)
    private = max(max(r["plait"]["peak_bytes"]) for r in found["rows"].values() if "failed" not in r)
    return (
        f"All {len(ran)} methods that {found['peers'][0]} has, on the same models in alternating runs: {ran[least]:.1f} (`{least}`) to {ran[most]:.0f} "
        f"(`{most}`) times as fast, a median of {median(ran.values()):.0f}, in {private / MIB:.0f} MiB of private memory at most.\n"
    )


def main(check: bool) -> int:
    """Write or compare; the exit status."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if check:
        print("\n".join([*(f"{path.relative_to(REPO)} is not up to date" for path in stale), *(["run python scripts/benchmark_pages.py"] if stale else [])]))
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    print(f"{len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
