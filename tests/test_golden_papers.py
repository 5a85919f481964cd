"""The papers' own released code gives the numbers that plait gives.

Whole merges go through the public interface: base and experts are written as checkpoints and merged with `plait.methods` or a recipe.
Random methods are compared through the masks that the reference recorded: the draw, and nothing else, is replaced by them.
Tolerances are those of each case's `meta.json`. What the reference code does differently from plait's defaults is asked for by
documented parameters (`keep: threshold`, `zero_sign: majority`), so a case also shows that those parameters mean what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

import plait
from plait.ops.algebra import row_rank, solve, take
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods
from plait.ops.methods import dropping
from plait.ops.methods.election import Ballot, add_delta, trim
from plait.ops.tensor import LazyTensor
from support.evaluate import evaluate, write_model, write_out
from support.golden import root
from support.stored import read_file

Array = npt.NDArray[Any]

#: Methods of later work, by the name of their folder.
LATER = {
    "bitdelta",
    "git_rebasin",
    "mats_cg",
    "regmean",
    "regmean_plusplus",
    "twin_svd",
}
#: Cases that are compared, by method. The README's table also names b cases of most of them; those are not in the folder.
HERE = {
    "dare": {"a", "c_ties", "d_no_rescale"},
    "della": {"a", "c_count_no_normalize"},
    "breadcrumbs": {"a"},
    "doge_ta": {"a"},
    "drm": {"a_horizontal", "a_vertical", "c_lora_horizontal"},
    "emr": {"a"},
    "fisher": {"a", "c_bloomberg_param"},
    "iso_c": {"a", "c_lora"},
    "iso_cts": {"a"},
    "knots": {"a", "c_not_concat_output", "d_dare_ties", "e_plain_ties_weight_space"},
    "led": {"a"},
    "magic_wsc": {"a", "a_list", "c_sphere_L1", "c_sphere_L2_list"},
    "opcm": {"a"},
    "pcb": {"a_A", "a_B", "a_C"},
    "sce_fuseai": {"a"},
    "star": {"a", "c_known_rank"},
    "svc": {"a", "c_row_space"},
    "tall_consensus": {"a", "c_ties"},
    "tsv_m": {"a", "c_eigen"},
    "widen": {"a"},
    "ties": {"a", "c_bf16_ties", "d_normmass_max", "e_normfrac", "f_per_tensor", "g_per_tensor"},
}
_ELECT = {"mass": "sum", "normmass": "normmass", "normfrac": "normfrac"}
_AGGREGATE = {"dis-mean": "mean", "dis-max": "max", "dis-sum": "sum"}


@dataclass(frozen=True)
class Paper:
    """One reference case."""

    method: str
    case: str

    def __str__(self) -> str:
        return f"{self.method}-{self.case}"

    @property
    def folder(self) -> Path:
        return root() / "papers" / self.method / self.case

    @property
    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        return meta

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.meta["hyperparameters"])

    def group(self, prefix: str) -> dict[str, Array]:
        """Input tensors whose name begins with `prefix` and a dot, without it."""
        return {name.removeprefix(f"{prefix}."): t for name, t in _inputs(self.folder).items() if name.startswith(f"{prefix}.")}

    @property
    def base(self) -> dict[str, Array]:
        return self.group("base")

    @property
    def experts(self) -> list[dict[str, Array]]:
        return [self.group(f"expert{k}") for k in range(self.meta["K"])]

    @property
    def output(self) -> dict[str, Array]:
        found = {name: t.value for name, t in read_file(self.folder / "out.safetensors").items() if name in self.base}
        assert set(found) == set(self.base)
        return found

    def made(self, prefix: str) -> dict[str, Array]:
        """Tensors of the output whose name begins with `prefix` and a dot, without it."""
        found = read_file(self.folder / "out.safetensors")
        return {name.removeprefix(f"{prefix}."): t.value for name, t in found.items() if name.startswith(f"{prefix}.")}

    def models(self, folder: Path) -> tuple[Path, list[Path]]:
        """Base and experts as checkpoints on disk."""
        base = write_model(folder / "base", self.base)
        return base, [write_model(folder / f"expert{k}", expert) for k, expert in enumerate(self.experts)]


@cache
def _inputs(folder: Path) -> dict[str, Array]:
    return {name: t.value.astype(np.float32) for name, t in read_file(folder / "inputs.safetensors").items()}


def papers(method: str) -> list[Paper]:
    """The cases of a method that are there."""
    return [Paper(method, case) for case in sorted(HERE[method]) if (root() / "papers" / method / case / "meta.json").exists()]


def furthest(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> tuple[float, str]:
    """The largest absolute difference, and the tensor it is in."""
    assert set(got) == set(wanted)
    return max((float(np.abs(got[name] - wanted[name]).max()), name) for name in wanted)


def furthest_delta(got: Mapping[str, Array], wanted: Mapping[str, Array], base: Mapping[str, Array]) -> tuple[float, str]:
    """The largest difference of a tensor relative to the norm of its merged delta."""
    return max((float(np.linalg.norm(got[n] - wanted[n]) / max(np.linalg.norm(wanted[n] - base[n]), 1e-12)), n) for n in wanted)


def test_every_folder_is_compared_or_listed_as_later_work():
    """No method folder is passed over in silence; in the whole set none that is named here is missing, and no case of ours either."""
    folders = {p.name for p in (root() / "papers").iterdir() if p.is_dir()}
    compact = not (root() / "papers" / "README.md").exists()
    assert folders == (set(HERE) if compact else set(HERE) | LATER)
    for method, cases in HERE.items():
        found = {p.name for p in (root() / "papers" / method).iterdir() if p.is_dir()}
        assert found <= cases if compact else found == cases, method


@pytest.mark.parametrize("method", sorted(HERE))
def test_each_method_has_a_case_that_a_clone_checks(method: str):
    """Even the committed part has at least one case of every method."""
    assert papers(method)


# -- spectra -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank_policy", ["numerical", "full"])
@pytest.mark.parametrize("paper", papers("iso_c"), ids=str)
def test_iso_c(paper: Paper, rank_policy: str, tmp_path: Path):
    """Within 1e-4 of the merged delta's norm, where the summed delta has full rank."""
    base, experts = paper.models(tmp_path)
    merged = plait.methods.iso_c(base=plait.open(base), experts=[plait.open(e) for e in experts], lam=paper.settings["alpha"], rank_policy=rank_policy)
    got = {n: t.value for n, t in write_out(merged, tmp_path / "out").items()}
    wanted = paper.output
    if paper.case == "c_lora":  # every delta has rank 4: a smaller sum leaves directions to the whim of LAPACK
        full = {n for n, t in wanted.items() if t.ndim != 2 or paper.meta["K"] * 4 >= min(t.shape)}
        assert full == set(wanted), "the README says that every saved case is of full rank"
    off, name = furthest_delta(got, wanted, paper.base)
    assert off <= 1e-4, f"{name}: {off:.1e}"


# -- calibration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", papers("magic_wsc"), ids=str)
def test_magic_wsc(paper: Paper, tmp_path: Path):
    """A recipe with the step gives the merged tensors within 1e-6, and within 2e-5 of the merged delta's norm."""
    base, experts = paper.models(tmp_path)
    settings = paper.settings
    step: dict[str, Any] = {"rule": "ellipsoid" if settings["rule"].startswith("mixed") else "sphere", "norm": settings["norm"]}
    if settings["sensitive_list"]:
        step |= {"sensitive": "list", "layers": settings["sensitive_list"]}
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(e), "parameters": {"weight": 1.0}} for e in experts],
        "parameters": {"normalize": True},  # the mean of the deltas
        "steps": [{"method": "magic_wsc", "parameters": step}],
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    plait.merge(tmp_path / "recipe.yml", tmp_path / "out", memory="1GiB")
    got = {n: t.value for n, t in read_file(tmp_path / "out" / "model.safetensors").items()}
    off, name = furthest(got, paper.output)
    assert off <= 1e-6, f"{name}: {off:.1e}"
    off, name = furthest_delta(got, paper.output, paper.base)
    # for tensors near 1 (norm weights) the float32 spacing of the tensor itself is up to 1e-5 of the delta
    assert off <= 2e-5, f"{name}: {off:.1e}"


# -- sign election --------------------------------------------------------------------------------------


def ties_parameters(paper: Paper) -> dict[str, Any]:
    """The reference's settings as plait's parameters."""
    settings = paper.settings
    return {
        "density": settings["reset_thresh_K"] / 100,
        "elect": _ELECT[settings.get("resolve_method", "mass")],
        "aggregate": _AGGREGATE[settings["merge_func"]],
        "lam": settings["lam"],
        "scope": "global" if settings["scope"].startswith("global") else "tensor",
        "keep": "threshold",
        "zero_sign": "majority",
    }


@pytest.mark.parametrize("paper", papers("ties"), ids=str)
def test_ties(paper: Paper, tmp_path: Path):
    """Every element within 1e-7 of the reference: one wrong mask bit or sign would be 1e-3."""
    base, experts = paper.models(tmp_path)
    merged = plait.methods.ties(base=plait.open(base), experts=[plait.open(e) for e in experts], **ties_parameters(paper))
    got = {n: t.value for n, t in write_out(merged, tmp_path / "out").items()}
    off, name = furthest(got, paper.output)
    assert off <= (2.0**-23 if np.abs(paper.output[name]).max() > 1 else 1e-7), f"{name}: {off:.1e}"


@pytest.mark.parametrize("paper", [p for p in papers("ties") if "facts" in p.meta], ids=str)
def test_ties_keeps_as_many_as_the_reference(paper: Paper, tmp_path: Path):
    """Each expert's kept count, ties included, is the recorded one: trimmed alone, so that every kept change shows."""
    zero = write_model(tmp_path / "zero", {n: np.zeros_like(t) for n, t in paper.base.items()})
    for k, wanted in enumerate(paper.meta["facts"]["kept_per_expert"]):
        delta = {n: expert - paper.base[n] for n, expert in paper.experts[k].items()}  # against a base of zeros nothing is rounded away
        expert = write_model(tmp_path / f"delta{k}", delta)
        merged = plait.methods.ties(base=plait.open(zero), experts=[plait.open(expert)], **{**ties_parameters(paper), "lam": 1.0})
        got = write_out(merged, tmp_path / f"out{k}")
        assert sum(int(np.count_nonzero(t.value)) for t in got.values()) == wanted
        smallest = min(float(np.abs(t.value[t.value != 0]).min()) for t in got.values() if t.value.any())
        assert smallest == paper.meta["facts"]["thresholds"][k]


# -- selection and importance ---------------------------------------------------------------------------


def selecting(paper: Paper) -> tuple[str, dict[str, Any]]:
    """plait's method and parameters for the reference's settings."""
    settings = paper.settings
    if paper.method == "breadcrumbs":
        assert settings["remove_first"]
        return "breadcrumbs", {"weight": 1.0, "density": settings["top_k_keep"], "gamma": settings["top_k_remove"], "lam": settings["alpha"], "scope": "row"}
    if paper.method == "sce_fuseai":
        return "sce", {"select_topk": settings["select_topk"], "select_applies_to": "weights_only"}
    if paper.method == "pcb":
        chosen = {"variant": settings["variant"], "ratio": settings["pcb_ratio"], "clip": settings["clamp_ratio"], "weight": settings["lambdas"]}
        return "pcb", {**chosen, "scope": "global"}
    return "widen", {name: settings[name] for name in ("above_average_value_ratio", "score_calibration_value")}


# kernels of these take long to compile, and give the interpreter's bits (tests/engine/test_codegen.py)
@pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=pytest.mark.slow)])
@pytest.mark.parametrize("paper", [p for name in ("breadcrumbs", "pcb", "sce_fuseai", "widen") for p in papers(name)], ids=str)
def test_selection(paper: Paper, backend: str, tmp_path: Path):
    """Within 1e-7 (one spacing of float32 near 1): masks, ranks and scores are all the reference's, which a single wrong one would show by 1e-4."""
    base, experts = paper.models(tmp_path)
    name, params = selecting(paper)
    merged = getattr(plait.methods, name)(base=plait.open(base), experts=[plait.open(e) for e in experts], **params)
    got = {n: t.value for n, t in write_out(merged, tmp_path / "out", backend=backend).items()}
    off, tensor = furthest(got, paper.output)
    assert off <= (2.0**-23 if np.abs(paper.output[tensor]).max() > 1 else 1e-7), f"{tensor}: {off:.1e}"


# -- random masks, as the reference drew them -------------------------------------------------------------


@dataclass(frozen=True)
class Recorded(MergeInputs):
    """A merge whose random masks are stored tensors: 1 where the element is kept."""

    masks: tuple[LazyTensor, ...] = ()

    def random_bits(self, expert: int, seed: int, purpose: str) -> LazyTensor:
        return self.masks[expert]


@pytest.fixture
def recorded_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """DARE and DELLA keep an element where its recorded mask says so, whatever its probability."""
    monkeypatch.setattr(dropping, "below", lambda mask, _probability: mask > 0.5)


def recorded_inputs(paper: Paper, *, dropped: bool) -> dict[str, dict[str, Array]]:
    """For each output its base, experts and masks by leaf name; `dropped` says that the recorded masks hold 1 for dropped elements."""
    outputs: dict[str, dict[str, Array]] = {}
    for name, base in paper.base.items():
        leaves = {"base": base}
        for k, expert in enumerate(paper.experts):
            mask = paper.group(f"stat.mask{k}")[name]
            assert set(np.unique(mask)) <= {0.0, 1.0}
            leaves |= {f"expert{k}": expert[name], f"mask{k}": 1 - mask if dropped else mask}
        outputs[name] = leaves
    return outputs


def inputs_of(leaves: Mapping[str, LazyTensor]) -> Recorded:
    count = sum(name.startswith("expert") for name in leaves)
    labels = tuple(f"expert{k}" for k in range(count))
    return Recorded(
        leaves["base"], tuple(leaves[label] for label in labels), labels, leaves["base"].shape, masks=tuple(leaves[f"mask{k}"] for k in range(count))
    )


@pytest.mark.usefixtures("recorded_masks")
@pytest.mark.parametrize("paper", [p for p in papers("dare") if p.settings["mask_apply_method"] == "task_arithmetic"], ids=str)
def test_dare_task_arithmetic(paper: Paper):
    """dare_linear with the recorded masks: within 2e-7 (the reference rounds once more, through a sparsified model)."""
    settings, count = paper.settings, paper.meta["K"]
    facts = {
        "density": (round(1 - settings["weight_mask_rate"], 6),) * count,
        "lam": settings["scaling_coefficient"],
        "rescale": settings["use_weight_rescale"],
    }
    got = evaluate(recorded_inputs(paper, dropped=True), lambda **leaves: methods()["dare_linear"].build(inputs_of(leaves), weight=(1.0,) * count, **facts))
    off, name = furthest(got, paper.output)
    assert off <= (2 * 2.0**-23 if np.abs(paper.output[name]).max() > 1 else 2e-7), f"{name}: {off:.1e}"


@pytest.mark.parametrize("paper", [p for p in papers("dare") if p.settings["mask_apply_method"] == "ties_merging"], ids=str)
@pytest.mark.usefixtures("recorded_masks")
def test_dare_then_ties(paper: Paper):
    """Dropped, rescaled, put back into a model, then trimmed over all tensors and elected: within 2e-7.

    The reference trims int(0.8 D) elements but keeps the last of them too: D - int(0.8 D) + 1 are kept. `keep: threshold` keeps
    floor(density D) + 1, so the density that means the same has floor(density D) = D - int(0.8 D).
    """
    settings, count = paper.settings, paper.meta["K"]
    density = round(1 - settings["weight_mask_rate"], 6)
    size = sum(t.size for t in paper.base.values())
    kept = size - int(size * settings["param_value_mask_rate"])

    def build(**leaves: LazyTensor) -> LazyTensor:
        t = inputs_of(leaves)
        dropped = [dropping.drop(t, k, density, 0, settings["use_weight_rescale"], "probability") for k in range(count)]
        again = [(t.origin + d) - t.origin for d in dropped]  # the reference saves the sparsified model and starts from it
        trimmed = [trim(d, (kept + 0.5) / size, f"expert{k}", "threshold") for k, d in enumerate(again)]
        ballot = Ballot([f"expert{k}" for k in range(count)], zero_sign="majority")
        return add_delta(t.origin, ballot.merge(trimmed, (1.0,) * count), settings["scaling_coefficient"])

    got = evaluate(recorded_inputs(paper, dropped=True), build, backend="torch")  # five experts: the kernel takes long to compile
    off, name = furthest(got, paper.output)
    assert off <= 2e-7, f"{name}: {off:.1e}"


def della_arguments(paper: Paper) -> dict[str, Any]:
    settings, count = paper.settings, paper.meta["K"]
    return {
        "weight": tuple(settings["weights"]),
        "density": tuple(settings["density"]),
        "epsilon": (settings["epsilon_half_width"],) * count,
        "lam": settings["lam"],
        "normalize": settings["normalize"],
        "elect": settings["consensus"],
    }


@pytest.mark.usefixtures("recorded_masks")
@pytest.mark.parametrize("paper", papers("della"), ids=str)
def test_della(paper: Paper):
    """della with the recorded masks: within 5e-7."""
    got = evaluate(recorded_inputs(paper, dropped=False), lambda **leaves: methods()["della"].build(inputs_of(leaves), **della_arguments(paper)))
    off, name = furthest(got, paper.output)
    assert off <= 5e-7, f"{name}: {off:.1e}"


@pytest.mark.parametrize("paper", papers("della"), ids=str)
def test_della_keep_probabilities(paper: Paper):
    """The probability of each element, by the rank of its change in its row, is the reference's within float32 rounding."""
    arguments = della_arguments(paper)
    for k in range(paper.meta["K"]):
        wanted = paper.group(f"stat.keep_prob{k}")
        assert wanted

        def build(base: LazyTensor, expert: LazyTensor, k: int = k) -> LazyTensor:
            length = base.shape[-1]
            table = solve("keep_thresholds", shape=(length,), density=arguments["density"][k], epsilon=arguments["epsilon"][k], length=length)
            return take(table / 2.0**32, row_rank(expert - base))

        got = evaluate({n: {"base": paper.base[n], "expert": paper.experts[k][n]} for n in wanted}, build)
        off, name = furthest(got, wanted)
        assert off <= 1e-6, f"{name}: {off:.1e}"
