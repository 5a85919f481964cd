"""Maps and whole ops on simulated GPUs: the bits of the CPU, within the predicted bytes, and no harm when memory runs out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensorMode

import plait
from plait.cli import main
from plait.engine import pool as pools
from plait.engine.blockrun import RAW, BlockData, Window
from plait.engine.codegen import generate
from plait.engine.device import SIMULATED
from plait.engine.devicerun import DeviceRunner
from plait.engine.interpreter import Interpreter
from plait.engine.pool import DevicePool, Seat
from plait.engine.simulated import SimulatedDevice
from plait.ops.errors import BudgetTooSmall, KernelError, PlanError
from plait.ops.inputs import MergeInputs
from plait.ops.kernels.philox import random_u32
from plait.ops.method import methods, steps
from plait.ops.tensor import LazyTensor, load
from plait.planner.cost import component_bytes
from plait.planner.device_cost import block_steps, device_block_bytes, device_whole_bytes, device_worker_bytes, spread
from plait.planner.explain import to_text
from plait.planner.plan import Plan
from plait.planner.program import Program, Stage, lower
from support import tiny

METHODS, STEPS = methods(), steps()
MIB = 1 << 20
DTYPES = ("BF16", "F16", "F32")


# -- the models and recipes -------------------------------------------------------------------------
SENSITIVITY = {"layers": {"model": 1.0, "lm_head": 0.5}, "transfer": 1.0}


def with_statistics(method: str, base: Path, experts: list[Path]) -> str:
    """A recipe whose importance statistics are models themselves, and whose layers weigh differently."""
    given: dict[str, Any] = {"importance": str(base), "base_importance": str(base), "sensitivity": str(base / "sensitivity.json")}
    wanted = {"fisher": ("importance",), "led": ("importance", "base_importance"), "sens": ("sensitivity",)}[method]
    if base.is_dir():
        (base / "sensitivity.json").write_text(json.dumps(SENSITIVITY))
    entries = [{"model": str(e), **{key: given[key] for key in wanted}} for e in experts]
    head = {} if method == "fisher" else {"base_model": str(base)}
    return json.dumps({"merge_method": method, **head, "models": entries})


def texts(models: list[Path]) -> dict[str, str]:
    """A recipe for every method and step, and for the branches that differ in kind."""
    base, *experts = models
    half = {"weight": 1.0, "density": 0.5}
    made = {
        "linear": tiny.recipe("linear", models, each={"weight": 1.0}),
        "task_arithmetic": tiny.recipe("task_arithmetic", experts, base=base, each={"weight": 0.6}),
        "slerp": tiny.recipe("slerp", [base, experts[0]], base=base, parameters={"t": 0.4}),
        "ties": tiny.recipe("ties", experts, base=base, each=half),
        "dare_linear": tiny.recipe("dare_linear", experts, base=base, each=half),
        "dare_ties": tiny.recipe("dare_ties", experts, base=base, each=half),
        "della": tiny.recipe("della", experts, base=base, each={**half, "epsilon": 0.1}),
        "della_linear": tiny.recipe("della_linear", experts, base=base, each={**half, "epsilon": 0.1}),
        "model_stock": tiny.recipe("model_stock", experts, base=base),
        "model_stock_rows": tiny.recipe("model_stock", experts, base=base, parameters={"filter_wise": True}),
        "iso_c": tiny.recipe("iso_c", experts, base=base),
        "passthrough": tiny.recipe("passthrough", [base], each={"scale": 1.5}),
        "breadcrumbs": tiny.recipe("breadcrumbs", experts, base=base, each={**half, "gamma": 0.05}),
        "breadcrumbs_rows": tiny.recipe("breadcrumbs", experts, base=base, each={**half, "gamma": 0.05}, parameters={"scope": "row"}),
        "breadcrumbs_ties": tiny.recipe("breadcrumbs_ties", experts, base=base, each={**half, "gamma": 0.05}),
        "sce": tiny.recipe("sce", experts, base=base, parameters={"select_topk": 0.4}),
        "varm": tiny.recipe("varm", experts, base=base),
        "arcee_fusion": tiny.recipe("arcee_fusion", experts[:1], base=base),
        "pcb": tiny.recipe("pcb", experts, base=base, parameters={"ratio": 0.3}),
        "localize_stitch": tiny.recipe("localize_stitch", experts, base=base),
        "widen": tiny.recipe("widen", experts, base=base),
        "uniform_soup": tiny.recipe("uniform_soup", models),
        "nuslerp": tiny.recipe("nuslerp", experts, base=base, each={"weight": 1.0}, parameters={"axis": "out"}),
        "multislerp": tiny.recipe("multislerp", experts, base=base, each={"weight": 1.0}),
        "karcher": tiny.recipe("karcher", models),
        "nearswap": tiny.recipe("nearswap", experts[:1], base=base, parameters={"t": 0.01}),
        "expo": tiny.recipe("expo", experts[:1], base=base),
        "magmax": tiny.recipe("magmax", experts, base=base),
        "ram": tiny.recipe("ram", experts, base=base),
        "ramplus_tl": tiny.recipe("ramplus_tl", experts, base=base),
        "emr": tiny.recipe("emr", experts, base=base),
        "consensus": tiny.recipe("consensus", experts, base=base),
        "fisher": with_statistics("fisher", base, experts),
        "led": with_statistics("led", base, experts),
        "sens": with_statistics("sens", base, experts),
        "iso_cts": tiny.recipe("iso_cts", experts, base=base),
        "tsv_m": tiny.recipe("tsv_m", experts, base=base, each={"weight": 1.0}),
        "star": tiny.recipe("star", experts, base=base),
        "knots": tiny.recipe("knots", experts, base=base, parameters={"topk": 40.0, "scope": "global"}),
        "drm": tiny.recipe("drm", experts, base=base),
        "opcm": tiny.recipe("opcm", experts, base=base),
        "doge_ta": tiny.recipe("doge_ta", experts, base=base, parameters={"steps": 3}),
        "svc": tiny.recipe("linear", experts, each={"weight": 1.0}, steps=[{"method": "svc", "base_model": str(base)}]),
    }
    for norm in ("L1", "L2", "Linf"):
        step = {"method": "magic_wsc", "base_model": str(base), "parameters": {"norm": norm}}
        made[f"wsc_{norm}"] = tiny.recipe("linear", experts, each={"weight": 1.0}, steps=[step])
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes over a base and two experts, for each storage dtype."""
    root = tmp_path_factory.mktemp("set")
    for dtype in DTYPES:
        for name, text in texts(tiny.write_set(root / dtype, dtype=dtype)).items():
            (root / dtype / f"{name}.yml").write_text(text)
    return root


NAMES = list(texts([Path("b"), Path("x"), Path("y")]))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[SimulatedDevice]]:
    """Makes this machine one with GPUs of the given sizes, and gives the devices that the next run finds."""

    def make(*sizes: int) -> list[SimulatedDevice]:
        made = [SimulatedDevice(f"simulated GPU {i}", n) for i, n in enumerate(sizes)]
        monkeypatch.setenv(SIMULATED, ",".join(map(str, sizes)))
        monkeypatch.setattr(pools, "discover_devices", lambda: made)
        return made

    return make


def bits(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def on_gpu(recipe: Path, out: Path, **options: Any) -> Any:
    """A merge with maps on the GPU that ends in time."""
    return tiny.bounded(lambda: plait.merge(recipe, out, plait.Options(**{"memory": "1GiB", "workers": 2, "maps": "cuda", **options})), 60)


# -- the same bits ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties", "della", "slerp", "model_stock", "iso_c"])
def test_the_bytes_of_compiled_kernels(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With two GPUs in the environment a merge whose maps run there gives the file that compiled kernels give on the CPU."""
    recipe = folder / "BF16" / f"{name}.yml"
    plait.merge(recipe, tmp_path / "cpu", plait.Options(memory="1GiB", workers=2, device="cpu", backend="numba"))
    monkeypatch.setenv(SIMULATED, "8GiB,8GiB")
    assert on_gpu(recipe, tmp_path / "gpu").gpu_retries == 0
    assert bits(tmp_path / "gpu") == bits(tmp_path / "cpu")


#: Each recipe in one storage type, in turn; the others are slow.
IN_TURN = [
    pytest.param(name, dtype, id=f"{name}-{dtype}", marks=[] if DTYPES[i % 3] == dtype else [pytest.mark.slow])
    for i, name in enumerate(NAMES)
    for dtype in DTYPES
]


@pytest.mark.parametrize(("name", "dtype"), IN_TURN)
def test_the_bytes_of_the_reference(name: str, dtype: str, folder: Path, tmp_path: Path, gpus: Any):
    """Every method and storage type, against the interpreter on the CPU; inputs go over as stored, each as often as it is read."""
    devices = gpus(1 << 33)
    recipe = folder / dtype / f"{name}.yml"
    plait.merge(recipe, tmp_path / "cpu", plait.Options(memory="1GiB", workers=1, device="cpu", backend="torch"))
    report = on_gpu(recipe, tmp_path / "gpu", workers=1, device="cpu")
    assert bits(tmp_path / "gpu") == bits(tmp_path / "cpu")
    if name in ("linear", "task_arithmetic", "dare_linear"):  # one pass
        assert devices[0].uploaded_bytes == report.bytes_read
        assert devices[0].downloaded_bytes == report.bytes_written
    assert devices[0].used_bytes == 0
    assert devices[0].downloaded_bytes


def test_there_is_a_recipe_for_every_method_and_step(folder: Path):
    """A method that is added must be compared too."""
    found = {json.loads((folder / "BF16" / f"{name}.yml").read_text())["merge_method"] for name in NAMES}
    assert found == METHODS.keys()
    used = {step["method"] for name in NAMES for step in json.loads((folder / "BF16" / f"{name}.yml").read_text()).get("steps", [])}
    assert used == STEPS.keys()


@pytest.mark.parametrize("name", ["ties", "slerp", "model_stock_rows"])
def test_several_blocks_and_workers(name: str, tmp_path: Path, gpus: Any):
    """A tensor of more than one block, four workers on two devices, inputs kept in memory or not: the same bytes."""
    gpus(1 << 30, 1 << 30)
    models = tiny.write_set(tmp_path / "models", shapes={"w.weight": (1100, 1000), "v.weight": (70,)}, dtype="F16")
    (tmp_path / "r.yml").write_text(texts(models)[name])
    plait.merge(tmp_path / "r.yml", tmp_path / "cpu", plait.Options(memory="1GiB", workers=2, device="cpu"))
    for residency in ("keep", "reread"):
        on_gpu(tmp_path / "r.yml", tmp_path / residency, workers=4, residency=residency)
        assert bits(tmp_path / residency) == bits(tmp_path / "cpu")


@pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 9), (4, 4), (2**33 + 1, 1000), (0, 0)])
def test_random_words_on_a_device(start: int, count: int):
    """Philox in signed 64-bit arithmetic gives the words of the reference, far out in a tensor too."""
    from plait.engine.torchmath import random_words

    for key in ((1, 2, 3, 4), (0xFFFFFFFF, 0x80000000, 0xDEADBEEF, 0x7FFFFFFF)):
        assert np.array_equal(random_words(key, start, count, "cpu").numpy(), random_u32(key, start, count))


# -- blocks by themselves ---------------------------------------------------------------------------
W, D = (1.0, 0.5, 0.75), (0.5, 0.25, 0.75)
SHAPE = (60, 1301)


def program(name: str, dtype: str = "BF16", shape: tuple[int, ...] = SHAPE, **params: Any) -> Program:
    leaves = [load((n, "w.weight", 0, 0), shape, dtype) for n in "bxyz"]
    t = MergeInputs(leaves[0], tuple(leaves[1:]), ("x", "y", "z"), shape, "layers.0.w.weight", "mlp")
    if name in STEPS:
        return lower(STEPS[name].build(t, METHODS["linear"].build(t, weight=W), **params), dtype, leaves)
    if name in ("slerp", "passthrough", "arcee_fusion"):
        t = t.only([0])
    result: LazyTensor = METHODS[name].build(t, **params)
    return lower(result, dtype, leaves)


PROGRAMS: dict[str, dict[str, Any]] = {
    "linear": {"weight": W},
    "ties": {"weight": W, "density": D, "zero_sign": "majority", "elect": "normfrac"},
    "dare_ties": {"weight": W, "density": D, "rescale_by": "l1"},
    "della": {"weight": W, "density": D, "epsilon": (0.1, 0.1, 0.1)},
    "slerp": {"t": 0.3},
    "model_stock": {"filter_wise": True},
    "iso_c": {},
    "magic_wsc": {"rule": "ellipsoid"},
    "breadcrumbs": {"weight": W, "density": D, "gamma": D, "scope": "row"},
    "sce": {"select_topk": 0.3},
    "arcee_fusion": {},
    "pcb": {"weight": W},
    "widen": {},
}


def block(p: Program, stage: Stage, n: int, seed: int = 0) -> BlockData:
    """A block of plausible weights with everything that its stage asks for."""
    rng = np.random.default_rng(seed)
    kernel = generate(p, stage)
    smalls: dict[int, Any] = {}
    for i, node in enumerate(p.nodes):
        if node.space == "small":
            whole = kernel.tables.get(i) == "uint32"
            numbers = np.linspace(0.3, 0.8, node.shape[0]) if len(node.shape) == 1 else np.float64(node.param("value") or 0.7)
            smalls[i] = np.floor(numbers * 2**32) if whole else numbers
    inputs = [tiny.encode((rng.standard_normal(n) * 0.1).astype(np.float32), str(p.nodes[i].param("storage"))) for i in stage.loads]
    return BlockData(
        n,
        0,
        inputs,
        [rng.standard_normal(n).astype(np.float32) for _ in stage.residents],
        np.zeros(n, RAW[p.dtype]) if stage.store else None,
        [np.zeros(n, np.float32) for _ in stage.keeps],
        smalls,
        [(1, 2, 3, i) for i in range(len(kernel.streams))],
        ([Window(), Window(0x3D800000), Window(0x3D000000)] * 3)[: len(kernel.selects)],
    )


def given_out(data: BlockData, result: Any) -> list[bytes]:
    """The bits of everything that a block gave."""
    counts = [x for c in result.counts for x in (c.above, c.places, c.fine, c.dense, c.coarse)]
    arrays: Iterable[Any] = [data.out, *data.keeps, np.array(result.sums), *counts]
    return [np.asarray(a).tobytes() for a in arrays if a is not None]


def device_block(p: Program, stage: Stage, n: int, device: SimulatedDevice) -> tuple[list[bytes], DevicePool]:
    pool = DevicePool([device])
    runner = DeviceRunner(p, stage, generate(p, stage), Seat(pool, 1))
    data = block(p, stage, n)
    return given_out(data, runner.run(data)), pool


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_block_takes_no_more_than_predicted(name: str, dtype: str):
    """The ledger's peak for a block of each stage lies within the planner's figure, which is at most 2.8 times too large; then all is free."""
    p = program(name, dtype, **PROGRAMS[name])
    for stage in p.stages:
        device = SimulatedDevice("d", 1 << 32)
        device_block(p, stage, p.numel, device)
        predicted = device_block_bytes(p, stage)
        assert device.peak_bytes <= predicted <= 2.8 * device.peak_bytes + 3 * MIB
        assert device.used_bytes == 0


def test_a_device_of_exactly_the_predicted_size_is_enough():
    """The figure is one that a run can live with: on a device of that size the block runs, on one of half of it it does not."""
    p = program("ties", **PROGRAMS["ties"])
    stage = p.stages[-1]
    needed = device_block_bytes(p, stage)
    assert device_block(p, stage, p.numel, SimulatedDevice("d", needed))[1].retries == 0
    with pytest.raises(KernelError, match=r"d ran out of memory.*needs .*--workers, or --maps cpu"):
        device_block(p, stage, p.numel, SimulatedDevice("d", needed // 2))


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_live_from_first_to_last_use(name: str):
    """Every value that a step uses is there, none is let go of twice, and what the results are made of stays."""
    p = program(name, **PROGRAMS[name])
    for stage in p.stages:
        here: set[int] = set()
        for step in block_steps(p, stage):
            assert not here & set(step.fetch)
            here |= set(step.fetch)
            if step.node >= 0:
                used = {j for j in p.nodes[step.node].inputs if p.nodes[j].space != "small"} if p.nodes[step.node].op != "random_bits" else set()
                assert used <= here
                here.add(step.node)
            assert set(step.drop) <= here
            here -= set(step.drop)
        ending = {*stage.keeps, *(j for i in stage.folds for j in p.nodes[i].inputs if p.nodes[j].space != "small")} | ({p.root} if stage.store else set())
        assert here == ending


class OnPaper(Interpreter):
    """Runs on fake CUDA tensors, which torch checks for operands on different devices as a real one would."""

    def fetch(self, array: np.ndarray) -> Any:
        kinds = {np.dtype(np.uint16): torch.int16, np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
        return torch.empty(array.size, dtype=kinds[array.dtype], device="cuda")


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_op_mixes_devices(name: str):
    """Every value of every stage is made on the GPU, and nothing that lies on the host is mixed in, but single numbers."""
    p = program(name, **PROGRAMS[name])
    for stage in p.stages:
        data = block(p, stage, p.numel)
        with FakeTensorMode(allow_non_fake_inputs=True):
            values = OnPaper(p, stage, generate(p, stage), "cuda").evaluate(data)
        assert values
        assert {str(v.device) for v in values.values()} == {"cuda:0"}


# -- memory that runs out ---------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "step"), [("ties", 1), ("della", 9), ("slerp", 1)])
def test_running_out_at_any_allocation_of_a_block(name: str, step: int):
    """Wherever memory runs out once, the block is done again and gives the same; where it does so again, one sentence; nothing stays behind."""
    p = program(name, shape=(2, 65), **PROGRAMS[name])
    for stage in p.stages:
        clean = SimulatedDevice("d", 1 << 30)
        expected, _ = device_block(p, stage, p.numel, clean)
        for k in range(1, clean.allocations + 1, step):
            once = SimulatedDevice("d", 1 << 30)
            once.fail_at = frozenset({k})
            found, pool = device_block(p, stage, p.numel, once)
            assert found == expected
            assert pool.retries == 1
            assert once.used_bytes == 0
        twice = SimulatedDevice("d", 1 << 30)
        twice.fail_at = frozenset(range(clean.allocations // 2, 10 * clean.allocations))
        with pytest.raises(KernelError, match="give fewer --workers, or --maps cpu"):
            device_block(p, stage, p.numel, twice)
        for k in range(1, clean.uploads + clean.downloads + 1):
            once = SimulatedDevice("d", 1 << 30)
            once.fail_transfer_at = frozenset({k})
            assert device_block(p, stage, p.numel, once)[0] == expected


@pytest.mark.parametrize("name", ["ties", "iso_c"])
def test_running_out_in_a_merge(name: str, folder: Path, tmp_path: Path, gpus: Any):
    """At allocations all over a merge: once is survived, counted, and changes no byte; for good it ends in one sentence, and nothing is published."""
    recipe = folder / "BF16" / f"{name}.yml"
    clean = gpus(1 << 33)[0]
    on_gpu(recipe, tmp_path / "clean", workers=1)
    for k in range(1, clean.allocations, clean.allocations // 4):
        gpus(1 << 33)[0].fail_at = frozenset({k})
        report = on_gpu(recipe, tmp_path / f"once{k}", workers=2)
        assert report.gpu_retries == 1
        assert bits(tmp_path / f"once{k}") == bits(tmp_path / "clean")
        gpus(1 << 33)[0].fail_at = frozenset(range(k, 10 * clean.allocations))
        out = tmp_path / f"out{k}"
        with pytest.raises(KernelError, match="ran out of memory"):
            on_gpu(recipe, out, workers=2)
        assert set(tiny.leftovers(out)) <= {f".{out.name}.plait-partial"}  # what is finished is kept


# -- whole ops --------------------------------------------------------------------------------------
def iso_c(folder: Path, out: Path, **options: Any) -> Any:
    """`iso_c` with maps on the CPU and whole ops on the GPU."""
    return on_gpu(folder / "F32" / "iso_c.yml", out, **{"maps": "cpu", "device": "cuda", **options})


def test_whole_ops_on_the_pool(folder: Path, tmp_path: Path, gpus: Any):
    """Each matrix goes over once in float32 and comes back once, both devices take part, and the result is the CPU's."""
    devices = gpus(1 << 30, 1 << 30)
    iso_c(folder, tmp_path / "gpu", workers=2)
    iso_c(folder, tmp_path / "cpu", device="cpu")
    assert bits(tmp_path / "gpu") == bits(tmp_path / "cpu")
    matrices = [shape for shape in tiny.SHAPES.values() if len(shape) == 2]
    moved = 4 * sum(a * b for a, b in matrices)
    assert sum(d.uploaded_bytes for d in devices) == sum(d.downloaded_bytes for d in devices) == moved
    assert all(0 < d.peak_bytes < d.total_bytes for d in devices if d.uploads)


def test_a_whole_op_that_runs_out_is_done_on_the_cpu(folder: Path, tmp_path: Path, gpus: Any):
    """Its every allocation may fail: the CPU does it, the run ends well, and says how many there were."""
    iso_c(folder, tmp_path / "cpu", device="cpu")
    clean = gpus(1 << 30)[0]
    iso_c(folder, tmp_path / "clean", workers=1)
    for k in range(1, clean.allocations + 1, 5):
        gpus(1 << 30)[0].fail_at = frozenset({k})
        assert iso_c(folder, tmp_path / f"{k}", workers=1).gpu_retries == 1
        assert bits(tmp_path / f"{k}") == bits(tmp_path / "cpu")
    gpus(1 << 30)[0].fail_at = frozenset(range(10_000))
    assert iso_c(folder, tmp_path / "never").gpu_retries == sum(len(shape) == 2 for shape in tiny.SHAPES.values())
    assert bits(tmp_path / "never") == bits(tmp_path / "cpu")


def test_a_budget_without_room_for_the_cpu_s_workspace(tmp_path: Path, gpus: Any):
    """A GPU lets a merge run in less memory than the CPU needs; when it then runs out, the sentence names a budget that works."""
    models = tiny.write_set(tmp_path / "models", shapes={"w.weight": (800, 800)}, dtype="F32")
    (tmp_path / "iso_c.yml").write_text(texts(models)["iso_c"])
    options = plait.Options(memory="1GiB", workers=1, device="cuda")
    gpus(1 << 30)
    roomy = plait.plan(tmp_path / "iso_c.yml", options)
    least = roomy.prediction.minimum_bytes
    assert roomy.lean == ()
    lean = plait.plan(tmp_path / "iso_c.yml", replace(options, memory=least))
    assert lean.lean == lean.on_gpu != ()
    assert component_bytes(lean.programs[0], workspace=False) < component_bytes(lean.programs[0])
    with pytest.raises(BudgetTooSmall):
        plait.plan(tmp_path / "iso_c.yml", replace(options, memory=least, device="cpu"))
    on_gpu(tmp_path / "iso_c.yml", tmp_path / "good", memory=least, device="cuda", maps="cpu")
    gpus(1 << 30)[0].fail_at = frozenset({3})
    with pytest.raises(KernelError, match=r"cannot be done on the CPU instead within a memory budget.*give --memory \d+MiB or more") as caught:
        on_gpu(tmp_path / "iso_c.yml", tmp_path / "out", memory=least, device="cuda", maps="cpu")
    assert "\n" not in str(caught.value)
    assert tiny.leftovers(tmp_path / "out") == []
    gpus(1 << 30)[0].fail_at = frozenset({3})
    report = on_gpu(tmp_path / "iso_c.yml", tmp_path / "again", memory=caught.value.facts["needed"], device="cuda", maps="cpu")
    assert report.gpu_retries == 1
    assert bits(tmp_path / "again") == bits(tmp_path / "good")


# -- the plan ---------------------------------------------------------------------------------------
def planned(folder: Path, **options: Any) -> Plan:
    return plait.plan(folder / "BF16" / "ties.yml", plait.Options(**{"memory": "1GiB", "workers": 8, "maps": "cuda", **options}))


def test_workers_are_as_many_as_have_a_place_on_a_gpu(folder: Path, gpus: Any):
    """Two devices with room for one and a half workers each take two; with less than one worker's room the plan is refused, saying what works."""
    gpus(1 << 30, 1 << 30)
    each = planned(folder).gpu_worker_bytes
    assert planned(folder).workers == 8
    assert planned(folder, gpu_memory=each * 3 // 2).workers == 2
    assert planned(folder, gpu_memory=each).workers == 2
    with pytest.raises(BudgetTooSmall) as caught:
        planned(folder, gpu_memory=each - 1)
    assert caught.value.facts["needed"] == each
    assert caught.value.facts["task"] in tiny.SHAPES
    assert "--gpu-memory" in caught.value.message
    assert planned(folder, gpu_memory=caught.value.message.split("give --gpu-memory ")[1].split()[0]).workers == 2


def test_devices_stay_within_a_tight_budget(folder: Path, tmp_path: Path, gpus: Any):
    """Many workers on small budgets: no device has held more than was allowed, and nothing had to be done again."""
    each = (gpus(1 << 30), planned(folder).gpu_worker_bytes)[1]
    devices = gpus(2 * each, each)
    report = on_gpu(folder / "BF16" / "ties.yml", tmp_path / "out", workers=6, gpu_memory=2 * each)
    assert report.gpu_retries == 0
    assert all(0 < d.peak_bytes <= d.total_bytes for d in devices)


def test_whole_ops_take_what_maps_leave(folder: Path, gpus: Any):
    """With maps on the GPU as well, whole ops run there only where they fit beside the workers' blocks."""
    gpus(1 << 30)
    options = plait.Options(memory="1GiB", workers=1, maps="cuda", device="cuda")
    both = plait.plan(folder / "F32" / "iso_c.yml", options)
    assert both.on_gpu
    assert both.device == both.maps == "cuda"
    need = max(device_whole_bytes(q.nodes[w]) for n in both.on_gpu for q in [both.programs[n]] for s in q.stages for w in s.wholes)
    tight = plait.plan(folder / "F32" / "iso_c.yml", replace(options, gpu_memory=need + both.gpu_worker_bytes - 1))
    assert set(tight.on_gpu) < set(both.on_gpu)
    assert any("beside the blocks of the workers" in note for note in tight.notes)
    assert (tight.maps, tight.gpu_budget_bytes) == ("cuda", (need + both.gpu_worker_bytes - 1,))


def test_a_plan_says_where_maps_run_and_why(folder: Path, gpus: Any):
    """The tree and the JSON name the place; the default is the CPU even where there are GPUs."""
    gpus(1 << 33, 1 << 33)
    on, off = planned(folder), planned(folder, maps="cpu")
    assert (off.maps, on.maps) == ("cpu", "cuda")
    assert "maps on      the CPU: streamed work waits for disk and bus" in to_text(off, 200)
    assert f"maps on      CUDA, as asked (--maps cuda): {on.workers} x" in to_text(on, 200)
    assert any(SIMULATED in note for note in on.notes)
    data = json.loads(on.to_json())
    assert data["maps"] == "cuda"
    assert data["gpu_budget_bytes"] == [(1 << 33) * 9 // 10] * 2
    assert data["gpu_worker_bytes"] == on.gpu_worker_bytes == device_worker_bytes(on.programs)
    assert on.fingerprint == off.fingerprint
    assert json.loads(off.to_json())["gpu_budget_bytes"] == []


def test_maps_on_cuda_without_a_gpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """So are a backend that cannot run there, and a place that does not exist."""
    monkeypatch.setattr("plait.api.gpu_memory", lambda: ())
    with pytest.raises(PlanError, match="--maps cuda was asked for"):
        planned(folder)
    with pytest.raises(PlanError, match="--backend numba"):
        planned(folder, backend="numba")
    with pytest.raises(PlanError, match="not one of cpu, cuda"):
        planned(folder, maps="moon")


def test_the_command_line(folder: Path, tmp_path: Path, gpus: Any):
    """`--maps cuda` merges there; memory that ran out is told of, and only then."""
    arguments = ["merge", str(folder / "BF16" / "ties.yml"), "--maps", "cuda", "--memory", "1GiB", "-j", "1"]
    gpus(1 << 33)
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    assert "done again" not in result.stderr
    gpus(1 << 33)[0].fail_at = frozenset({5})
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "two")])
    assert result.exit_code == 0, result.output
    assert "1 task" in result.stderr
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


@pytest.mark.parametrize(("budgets", "each", "asked"), [((10, 16), 8, 5), ((10, 16), 3, 8), ((7,), 8, 2), ((), 1, 1)])
def test_the_planner_places_as_the_pool_does(budgets: tuple[int, ...], each: int, asked: int):
    """As many leases as the planner counts are had without waiting, and the same room is left on each device."""
    room, placed = spread(budgets, each, asked)
    pool = DevicePool([SimulatedDevice(str(i), n) for i, n in enumerate(budgets)])
    seats = [Seat(pool, each) for _ in range(placed)]
    assert len(seats) == placed
    assert pool.room() == room
    assert placed == asked or max(room, default=0) < each
