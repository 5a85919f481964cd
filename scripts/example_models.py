"""Makes the small models of `docs/guide.md`: a base of 16 layers and two changes of it, drawn at random from a fixed seed.

python scripts/example_models.py models    # models/base, models/math, models/code: 13 MB each
"""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import numpy as np  # noqa: E402

from support import tiny  # noqa: E402

LAYERS = 16


def write_models(folder: Path) -> None:
    """Write base, math and code: `math` grows towards the end, `code` is strongest in the middle, and they share a direction."""
    random = np.random.default_rng(1)
    base = {name: (random.standard_normal(shape) / 20).astype(np.float32) for name, shape in _shapes().items()}
    experts: dict[str, dict[str, np.ndarray]] = {"math": {}, "code": {}}
    for name, values in base.items():
        layer = int(name.split(".")[2]) if ".layers." in name else LAYERS // 2
        shared, of_kind = random.standard_normal(values.shape), 2.0 if "mlp" in name else 0.3 if "norm" in name else 1.0
        for expert, strength in (("math", 0.3 + layer / 8), ("code", 2.2 - abs(layer - 7) / 4)):
            own = random.standard_normal(values.shape) * (random.random(values.shape) < 0.4)
            experts[expert][name] = (values + 0.001 * of_kind * strength * (own + (0.35 if "attn" in name else 0.1) * shared)).astype(np.float32)
    for model, tensors in {"base": base, **experts}.items():
        tiny.write_model(folder / model, tensors, config={"num_hidden_layers": LAYERS})


def _shapes() -> dict[str, tuple[int, ...]]:
    kinds: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (192, 192),
        "self_attn.k_proj": (64, 192),
        "self_attn.v_proj": (64, 192),
        "self_attn.o_proj": (192, 192),
        "mlp.gate_proj": (512, 192),
        "mlp.up_proj": (512, 192),
        "mlp.down_proj": (192, 512),
        "input_layernorm": (192,),
        "post_attention_layernorm": (192,),
    }
    inside = {f"model.layers.{layer}.{kind}.weight": shape for layer in range(LAYERS) for kind, shape in kinds.items()}
    return {"model.embed_tokens.weight": (1000, 192), **inside, "model.norm.weight": (192,), "lm_head.weight": (1000, 192)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder that shall hold the models: python scripts/example_models.py models")
    write_models(Path(sys.argv[1]))
