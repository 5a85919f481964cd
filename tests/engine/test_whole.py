"""Ops on whole matrices in the engine: declared memory against measured, whole merges within their prediction, and simulated GPUs."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait.engine import pool as pools
from plait.engine.device import SIMULATED
from plait.engine.simulated import SimulatedDevice
from plait.planner.device_cost import device_whole_bytes
from support import tiny
from support.evaluate import write_model
from support.workspace import needs_rss_anon

MIB = 1 << 20

# -- memory of single ops -----------------------------------------------------------------------------------

#: Each op on matrices of 1024 x 1280, alone in its turn in one process with one thread.
_OPS = r"""
import ctypes, gc, json, threading, time
import numpy as np
import torch
import plait.ops.kernels.doge
from plait.engine.whole import _numerics
from plait.ops import matrix as mx
from plait.ops.algebra import const
from plait.ops.kernels.results import Results
from plait.ops.tensor import load
from plait.ops.wholes import WHOLES

torch.set_num_threads(1)
M, N = 1024, 1280
generator = torch.Generator().manual_seed(0)
mat = lambda *shape: torch.randn(shape, generator=generator)
lazy = lambda name, m=M, n=N: mx.matrix(load((name,), (m, n), "F32"))
a, b, one, threshold = lazy("a"), lazy("b"), const(0.01), mx.prune_threshold([lazy("a")], const(1.0), 0.2)
A, B = mat(M, N), mat(M, N)
cases = {
    "matmul": (mx.matmul(a, b, transpose_b=True), [A, B]),
    "concat": (mx.concat([a, b]), [A, B]),
    "scale": (mx.scale_columns(a, one), [A, np.ones(N)]),
    "cut": (mx.rows(a, 3, 900), [A]),
    "combine": (a - b, [A, B]),
    "stream": (mx.stream(a, (1200, N)), [A]),
    "svd": (mx.svd(a).u.inputs[0], [A]),
    "svd of few": (mx.svd(a, 100).u.inputs[0], [A]),
    "joint_svd": (mx.joint_svd([a, b])[0].inputs[0], [A, B]),
    "joint_svd, right": (mx.joint_svd([a, b], side="right")[0].inputs[0], [A, B]),
    "joint_svd, tall": (mx.joint_svd([lazy("t", 4096, 512), lazy("s", 4096, 512)])[0].inputs[0], [mat(4096, 512), mat(4096, 512)]),
    "row_dots": (mx.row_dots(a, b).inputs[0], [A, B]),
    "prune_threshold": (mx.prune_threshold([a, b], one, 0.2).inputs[0], [A, B, np.float64(2 * M * N)]),
    "prune": (mx.prune(a, threshold), [A, np.float64(0.02)]),
    "opcm_block": (mx.opcm_block(lazy("q", M, M), one), [mat(M, M), np.float64(40)]),
    "doge_correction": (mx.doge_correction([a, b], lazy("u", M, 64), one, steps=3, rate=1e-4), [A, B, mat(M, 64), np.ones(2)]),
}


def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def grown(work):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    base = peak = anonymous()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak - base


def run(node, inputs):
    out = Results(WHOLES[node.op.name].results(node))
    _numerics(node.op.name)(node, inputs, out)
    return out.all()


torch.linalg.eigh(torch.eye(600, dtype=torch.float64))
torch.mm(mat(600, 600), mat(600, 600))
found = {}
for name, (node, inputs) in cases.items():
    op = WHOLES[node.op.name]
    declared = op.workspace(node) + sum(4 * int(np.prod(shape)) for shape in op.results(node))
    found[name] = (grown(lambda: run(node, inputs)), declared)
print(json.dumps(found))
"""


@needs_rss_anon
def test_declared_memory_is_what_is_measured():
    """For each op results and workspace are no less than what the process grows by, and no more than a quarter above it and 16 MiB of
    buffers of the matrix library, which are declared for every thread and measured with one."""
    done = subprocess.run([sys.executable, "-c", _OPS], capture_output=True, text=True, check=True)
    for name, (measured, declared) in json.loads(done.stdout).items():
        assert measured <= declared, f"{name}: {measured / MIB:.1f} MiB measured, {declared / MIB:.1f} declared"
        assert declared <= 1.25 * measured + 16 * MIB, f"{name}: {measured / MIB:.1f} MiB measured, {declared / MIB:.1f} declared"


# -- memory of merges -----------------------------------------------------------------------------------------

_MERGE = r"""
import json, sys, threading, time
import plait, torch
import plait.engine.executor, plait.engine.interpreter, plait.engine.whole, plait.ops.kernels.matrices

torch.set_num_threads(1)
folder, method, params = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


models = [plait.open(f"{folder}/m{k}") for k in range(4)]
model = getattr(plait.methods, method)(base=models[0], experts=models[1:], **params)
options = plait.Options(memory="2GiB", workers=2, backend="torch")
planned = plait.plan_model(model, options)
base = peak = anonymous()
done = threading.Event()


def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)


watcher = threading.Thread(target=watch)
watcher.start()
plait.write(model, f"{folder}/{method}", options)
done.set()
watcher.join()
print(json.dumps([peak - base, planned.prediction.peak_bytes]))
"""


@needs_rss_anon
@pytest.mark.parametrize(("method", "params"), [("opcm", {}), ("knots", {"topk": 30.0, "scope": "global"})])
def test_a_merge_takes_no_more_than_predicted(method: str, params: dict[str, Any], tmp_path: Path):
    """A matrix of 1024 x 1024, three experts, two workers, in a process of its own."""
    rng = np.random.default_rng(0)
    for k in range(4):
        write_model(tmp_path / f"m{k}", {"model.layers.0.mlp.up_proj.weight": rng.standard_normal((1024, 1024)).astype(np.float32)})
    done = subprocess.run([sys.executable, "-c", _MERGE, str(tmp_path), method, json.dumps(params)], capture_output=True, text=True, check=True)
    measured, predicted = json.loads(done.stdout.splitlines()[-1])
    assert measured <= predicted, f"{measured / MIB:.0f} MiB measured, {predicted / MIB:.0f} predicted"


# -- simulated GPUs ----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], SimulatedDevice]:
    """Makes this machine one with a GPU of the given size."""

    def make(size: int) -> SimulatedDevice:
        device = SimulatedDevice("simulated GPU", size)
        monkeypatch.setenv(SIMULATED, str(size))
        monkeypatch.setattr(pools, "discover_devices", lambda: [device])
        return device

    return make


CHAINS = {
    "tsv_m": {},
    "iso_cts": {},
    "star": {},
    "drm": {},
    "opcm": {},
    "doge_ta": {"steps": 2},
    "knots": {"topk": 40.0, "scope": "global"},
}


def merge(folder: Path, method: str, out: Path, device: str) -> Any:
    models = [plait.open(folder / name) for name in ("base", "expert1", "expert2")]
    model = getattr(plait.methods, method)(base=models[0], experts=models[1:], **CHAINS[method])
    options = plait.Options(memory="1GiB", workers=1, device=device, backend="torch")
    report = tiny.bounded(lambda: plait.write(model, out, options), 120)
    return report, plait.plan_model(model, options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts."""
    home = tmp_path_factory.mktemp("models")
    tiny.write_set(home, dtype="F32", shapes={"model.layers.0.mlp.up_proj.weight": (24, 16), "model.norm.weight": (16,)})
    return home


@pytest.mark.parametrize("whole", [True, False])
def test_merges_with_whole_matrices_keep_large_arrays_apart(*, whole: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Merges that stream leave the C library as it is."""
    asked: list[bool] = []
    monkeypatch.setattr("plait.engine.executor.keep_large_apart", lambda: asked.append(True))
    base, *experts = (plait.open(folder / name) for name in ("base", "expert1", "expert2"))
    model = plait.methods.tsv_m(base=base, experts=experts) if whole else base + 0.5 * (experts[0] - base)
    plait.write(model, tmp_path / "out", plait.Options(memory="1GiB", workers=1, backend="torch"))
    assert asked == [True] * whole


@pytest.mark.parametrize("method", CHAINS)
def test_chains_of_whole_ops_on_a_gpu(method: str, folder: Path, tmp_path: Path, gpu: Any):
    """The CPU's bits, since the numerics are one function; no op takes more of the device than was predicted for it, the allocator's slack left out."""
    merge(folder, method, tmp_path / "cpu", "cpu")
    device = gpu(1 << 30)
    report, plan = merge(folder, method, tmp_path / "gpu", "cuda")
    assert device.uploads > 0
    assert report.gpu_retries == 0
    assert (tmp_path / "gpu" / "model.safetensors").read_bytes() == (tmp_path / "cpu" / "model.safetensors").read_bytes()
    assert plan.on_gpu
    most = max(device_whole_bytes(p.nodes[w]) for p in plan.programs for s in p.stages for w in s.wholes)
    assert device.peak_bytes <= most
    gc.collect()  # a cycle in an op's own temporaries is freed when the collector comes by
    assert device.used_bytes == 0


@pytest.mark.parametrize("method", ["opcm", "knots"])
def test_running_out_anywhere_in_a_chain(method: str, folder: Path, tmp_path: Path, gpu: Any):
    """Every seventh allocation fails in its turn: that op alone is done on the CPU, and the file is the same."""
    clean = gpu(1 << 30)
    merge(folder, method, tmp_path / "clean", "cuda")
    wanted = (tmp_path / "clean" / "model.safetensors").read_bytes()
    for k in range(1, clean.allocations + 1, max(7, clean.allocations // 12)):
        gpu(1 << 30).fail_at = frozenset({k})
        report, _ = merge(folder, method, tmp_path / f"{k}", "cuda")
        assert report.gpu_retries == 1
        assert (tmp_path / f"{k}" / "model.safetensors").read_bytes() == wanted
    gpu(1 << 30).fail_at = frozenset(range(100_000))
    report, _ = merge(folder, method, tmp_path / "never", "cuda")
    assert report.gpu_retries > 1
    assert (tmp_path / "never" / "model.safetensors").read_bytes() == wanted
