"""The `adapter_config.json` of an extracted adapter, in PEFT's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plait.planner.lora_targets import Targets

if TYPE_CHECKING:
    from plait.engine.extract import Extracted


def peft_config(found: Extracted, targets: Targets, base: str, architectures: Sequence[str], *, transposed: bool = False) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Args:
        found: what was extracted.
        targets: what was looked at.
        base: the base as the adapter's users will name it.
        architectures: of the base's config.
        transposed: matrices are stored `[in, out]`.
    """
    ranks = {f.module: f.rank for f in found.factored}
    most = max(ranks.values())
    fewer = {module: rank for module, rank in ranks.items() if rank != most}
    biases = {t.name for t in targets.wanted if t.kind == "bias"}
    saved = sorted({name.rpartition(".")[0] for name in found.whole if name not in biases})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if any(a.endswith("ForCausalLM") for a in architectures) else None,
        "base_model_name_or_path": base,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": fewer,
        "alpha_pattern": dict(fewer),
        "target_modules": _target_modules(ranks, targets),
        "modules_to_save": saved or None,
        "lora_bias": any(name in biases for name in found.whole),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _target_modules(ranks: dict[str, int], targets: Targets) -> list[str]:
    """Last parts of the modules' names where those mean exactly these modules, as loaders like it; else full names."""
    short = {module.rpartition(".")[2] for module in ranks}
    every = {name.rpartition(".")[0] for name in (*(t.name for t in targets.wanted), *targets.excluded)}
    return sorted(short) if {m for m in every if m.rpartition(".")[2] in short} == set(ranks) else sorted(ranks)
