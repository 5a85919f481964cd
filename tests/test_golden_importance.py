"""The papers' own released code for masks and importance: EMR, TALL masks, Fisher averaging and LED, through the public interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_golden_papers import Array, Paper, furthest, furthest_delta, papers

import plait
from support.evaluate import write_model, write_out
from support.stored import read_file


def merged(paper: Paper, method: str, tmp_path: Path, **params: Any) -> dict[str, Array]:
    """The method over the case's base and experts."""
    base, experts = paper.models(tmp_path)
    model = getattr(plait.methods, method)(base=plait.open(base), experts=[plait.open(e) for e in experts], **params)
    return {n: t.value for n, t in write_out(model, tmp_path / "out", backend="torch").items()}


@pytest.mark.parametrize("paper", papers("emr"), ids=str)
def test_emr(paper: Paper, tmp_path: Path):
    """The base with the unified task vector added, to the bit."""
    got, unified = merged(paper, "emr", tmp_path), paper.made("unified")
    assert set(got) == set(unified)
    for name, tau in unified.items():
        wanted = paper.base[name].astype(np.float32) + tau.astype(np.float32)
        assert np.array_equal(got[name], wanted), name


@pytest.mark.parametrize("paper", papers("tall_consensus"), ids=str)
def test_consensus(paper: Paper, tmp_path: Path):
    """Every mask bit is the reference's: within 1e-7 (one rounding where a tensor is near 1); the TIES vector is trimmed over the model."""
    settings = paper.settings
    ties = {"vector": "ties", "density": 0.2, "scope": "global", "keep": "threshold"} if settings["multi_task_vector"] == "ties" else {}
    got = merged(paper, "consensus", tmp_path, lam=settings["alpha"], k=settings["consensus_threshold_k"], tall_lambda=settings["tall_mask_lambda"], **ties)
    off, name = furthest(got, paper.output)
    assert off <= (2.0**-23 if np.abs(paper.output[name]).max() > 1 else 1e-7), f"{name}: {off:.1e}"


@pytest.mark.parametrize("paper", papers("fisher"), ids=str)
def test_fisher(paper: Paper, tmp_path: Path):
    """A recipe that names the Fisher information beside each model: within 2e-5 of the merged delta's norm."""
    settings = paper.settings
    _, experts = paper.models(tmp_path)
    statistics = [write_model(tmp_path / f"fisher{k}", paper.group(f"stat.fisher{k}")) for k in range(paper.meta["K"])]
    recipe = {
        "merge_method": "fisher",
        "models": [
            {"model": str(e), "importance": str(f), "parameters": {"weight": w}} for e, f, w in zip(experts, statistics, settings["coefficients"], strict=True)
        ],
        "parameters": {"normalize": {"model": "model", "param": "tensor"}[settings["normalize"]], "floor": settings["smooth"]},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    plait.merge(tmp_path / "recipe.yml", tmp_path / "out", memory="1GiB")
    got = {n: t.value for n, t in read_file(tmp_path / "out" / "model.safetensors").items()}
    off, name = furthest_delta(got, paper.output, paper.base)
    assert off <= 2e-5, f"{name}: {off:.1e}"


@pytest.mark.parametrize("paper", papers("led"), ids=str)
def test_led(paper: Paper, tmp_path: Path):
    """Every mask bit is the reference's: within 1e-7, or one rounding where a tensor is near 1."""
    settings = paper.settings
    scores = {
        kind: [write_model(tmp_path / f"{kind}_{task}", paper.group(f"stat.score_{kind}_{task}")) for task in settings["order"]] for kind in ("base", "expert")
    }
    got = merged(
        paper,
        "led",
        tmp_path,
        importance=[plait.open(s) for s in scores["expert"]],
        base_importance=[str(s) for s in scores["base"]],
        density=[settings["rates"][task] for task in settings["order"]],
        weight=settings["lambdas"],
        keep="threshold",
    )
    off, name = furthest(got, paper.output)
    assert off <= (2.0**-23 if np.abs(paper.output[name]).max() > 1 else 1e-7), f"{name}: {off:.1e}"
