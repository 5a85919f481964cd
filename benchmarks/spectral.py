"""Times our spectral kernels against the same by `torch.linalg.svd` in float32: seconds, private memory and error of each.

    python benchmarks/spectral.py --shape 2048x2048 --shape 2048x5632 --shape 4096x4096

Each run is a process of its own; in each repetition of a shape ours and torch's follow one another. The matrix is noise with 64
directions above it, as a fine-tuned model's change is; torch's time does not depend on that. Errors are relative: of a polar factor P of X,
the larger of |P P' P - P| / |P| and the asymmetric part of P X'; of a truncated SVD, how much more it leaves than torch's does; of a joint basis the
same, over all matrices. Where other work runs beside, one thread and `--by cpu` compare processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe, line
from report import save, table_of

MIB = 1 << 20
#: Times as fast as torch: on square matrices, and on those at least twice as wide as high.
PROMISES = {
    "polar": (1.0, 3.5),
    "tsv (exact)": (1.0, 3.5),
    "tsv (fast)": (1.0, 3.5),
    "joint basis": (4.0, 4.0),
    "lora 64 (exact)": (1.0, 3.5),
    "lora 64 (fast)": (20.0, 20.0),
}
#: Matrices of a joint basis, and elements of them together from which torch's side takes too long to wait for.
EXPERTS, MOST_JOINT = 4, 1 << 26

_CHILD = """
import json, resource, sys, threading, time
import torch
from plait.ops.kernels.polar import polar
from plait.ops.kernels.thin_svd import joint_basis, svd
m, n, threads, rank, experts = map(int, sys.argv[1:6])
torch.set_num_threads(threads)
def anonymous():
    with open("/proc/self/status") as f:
        return next(int(l.split()[1]) * 1024 for l in f if l.startswith("RssAnon"))
def matrix(seed):
    g = torch.Generator().manual_seed(seed)
    left, right = torch.randn(m, 64, generator=g), torch.randn(64, n, generator=g)
    return torch.randn(m, n, generator=g).addmm_(left, right * torch.linspace(1, 0.1, 64)[:, None])
kind = sys.argv[6]
small = torch.randn(40, 600)
polar(small), svd(small, 4), svd(small, 4, "fast"), torch.linalg.svd(small)
x = [matrix(seed) for seed in range(experts if "joint" in kind else 1)]
base = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
def processor():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime
begun, spent = time.perf_counter(), processor()
{work}
wall, cpu = time.perf_counter() - begun, processor() - spent
done.set()
watcher.join()
def rest(u, s, vh):
    return float(torch.linalg.vector_norm(x[0] - (u * s) @ vh, dtype=torch.float64))
def beside(q):
    return sum(float(torch.linalg.vector_norm(d - q @ (q.T @ d), dtype=torch.float64)) ** 2 for d in x) ** 0.5
def polar_error(p):
    p, d = (p, x[0]) if m <= n else (p.T, x[0].T)
    p, d = p.double(), d.double()
    h = p @ d.T
    return max(float((p @ (p.T @ p) - p).norm() / p.norm()), float((h - h.T).norm() / h.norm()))
error = {error}
print(json.dumps({{"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak - base, "error": error}}))
"""
#: What runs and what is wrong with it, by side.
_WORK: dict[str, tuple[str, str]] = {
    "torch polar": ("u, s, vh = torch.linalg.svd(x[0], full_matrices=False); p = u @ vh", "polar_error(p)"),
    "polar": ("p, kept = polar(x[0])", "polar_error(p)"),
    "torch svd": ("u, s, vh = torch.linalg.svd(x[0], full_matrices=False)", "rest(u[:, :rank], s[:rank], vh[:rank])"),
    "svd exact": ("u, s, vh = svd(x[0], rank)", "rest(u, s, vh)"),
    "svd fast": ("u, s, vh = svd(x[0], rank, 'fast')", "rest(u, s, vh)"),
    "torch joint": ("u, s, vh = torch.linalg.svd(torch.cat(x, dim=1), full_matrices=False)", "beside(u[:, :rank])"),
    "joint": ("b = joint_basis(x, rank=rank)", "beside(b.vectors)"),
}


@dataclass(frozen=True)
class Case:
    """A kernel and what it is compared with: keys of `_WORK`, and how many triplets."""

    name: str
    ours: str
    torch: str
    rank: int


def cases(rows: int, columns: int) -> list[Case]:
    """What is compared on a shape; the rank of TSV is that of eight tasks."""
    eighth = min(rows, columns) // 8
    return [
        Case("polar", "polar", "torch polar", 0),
        Case("tsv (exact)", "svd exact", "torch svd", eighth),
        Case("tsv (fast)", "svd fast", "torch svd", eighth),
        Case("lora 64 (exact)", "svd exact", "torch svd", 64),
        Case("lora 64 (fast)", "svd fast", "torch svd", 64),
        Case("joint basis", "joint", "torch joint", eighth),
    ]


def run(kind: str, shape: tuple[int, int], rank: int, threads: int) -> dict[str, float]:
    """One kernel in a process of its own."""
    work, error = _WORK[kind]
    arguments = [*map(str, (*shape, threads, max(rank, 1), EXPERTS)), kind]
    done = subprocess.run([sys.executable, "-c", _CHILD.format(work=work, error=error), *arguments], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(shape: tuple[int, int], names: Sequence[str], repeat: int, threads: int) -> list[dict[str, Any]]:
    """All cases of a shape, ours and torch's in turn; equal work is done once a repetition."""
    chosen = [c for c in cases(*shape) if c.name in names and (c.ours != "joint" or EXPERTS * shape[0] * shape[1] < MOST_JOINT)]
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(repeat):
        for kind, rank in dict.fromkeys(key for c in chosen for key in ((c.torch, c.rank), (c.ours, c.rank))):
            runs.setdefault((kind, rank), []).append(run(kind, shape, rank, threads))
            print(f"{shape[0]}x{shape[1]} {kind} {rank}: {runs[kind, rank][-1]}", file=sys.stderr, flush=True)
    return [{"case": c.name, "shape": list(shape), "rank": c.rank, "ours": runs[c.ours, c.rank], "torch": runs[c.torch, c.rank]} for c in chosen]


def row(found: dict[str, Any], by: str) -> tuple[list[str], float]:
    """A table row, and how many times as fast as torch."""
    ours, torch = ({key: statistics.median(r[key] for r in found[side]) for key in found[side][0]} for side in ("ours", "torch"))
    times = torch[f"{by}_s"] / ours[f"{by}_s"]
    errors = (ours["error"], torch["error"]) if found["case"] == "polar" else (ours["error"] / torch["error"] - 1, 0.0)
    shape = "x".join(map(str, found["shape"]))
    seconds = [f"{side[key]:.3f}" for key in ("wall_s", "cpu_s") for side in (ours, torch)]
    memory = [f"{side['peak_bytes'] / MIB:.0f}" for side in (ours, torch)]
    return [shape, found["case"], *seconds, f"{times:.1f}", *memory, *(f"{e:.1e}" for e in errors)], times


def main() -> None:
    """Measure the shapes and cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="ROWSxCOLUMNS; default 2048x2048, 2048x5632, 4096x4096")
    parser.add_argument("--case", action="append", choices=list(PROMISES), help="default all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; default all cores")
    parser.add_argument("--by", choices=["wall", "cpu"], default="wall", help="which seconds are compared")
    parser.add_argument("--note", default="", help="what to know about the machine while it ran")
    parser.add_argument("--name", default="spectral")
    options = parser.parse_args()
    facts = describe(Path("."))
    threads = options.threads or facts["cores"]
    begun, results = time.time(), []
    for text in options.shape or ["2048x2048", "2048x5632", "4096x4096"]:
        rows, _, columns = text.partition("x")
        results += measure((int(rows), int(columns)), options.case or list(PROMISES), options.repeat, threads)
    rows_, broken = [], []
    for found in results:
        cells, times = row(found, options.by)
        rows_.append(cells)
        wanted = PROMISES[found["case"]][max(found["shape"]) >= 2 * min(found["shape"])]
        if times < wanted:
            broken.append(f"{cells[0]} {found['case']}: {times:.1f} times as fast as torch, {wanted} promised")
    headings = ["shape", "kernel", "wall s", "torch", "cpu s", "torch", f"times ({options.by})", "MiB", "torch", "error", "torch"]
    notes = [line(facts), f"{threads} threads, median of {options.repeat}", *([options.note] if options.note else []), *(f"BROKEN: {b}" for b in broken)]
    data = {"machine": facts, "threads": threads, "by": options.by, "note": options.note, "seconds": time.time() - begun, "results": results, "broken": broken}
    save(options.name, data, table_of("Spectral kernels against torch.linalg.svd in float32", headings, rows_, notes))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
