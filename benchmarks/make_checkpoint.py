"""Makes checkpoints of real models' shapes for benchmarks: a base and experts that differ from it by small noise.

    python benchmarks/make_checkpoint.py 70b-width-1layer /data/wide --experts 2
    python benchmarks/make_checkpoint.py 70b /data/huge --experts 2 --sparse      # headers only, no data: for `plait plan`
    python benchmarks/make_checkpoint.py moe-100k /data/moe --sparse              # 100,298 tensors: planning at scale

Values come from one pool of seeded normal numbers, read at a different place for every block: writing is as fast as the disk, and memory
stays at the size of the pool however large the tensors are. The folders are `base`, `expert1`, `expert2`, …
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

POOL = 1 << 22
BLOCK = 1 << 20
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
TORCH_NAME = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Preset:
    """The shape of a Llama-style model, and how large its shards are (None: one file).

    With `experts`, each layer has that many unfused feed-forward experts of `inter` columns and a router, as Qwen's mixtures have.
    """

    hidden: int
    inter: int
    heads: int
    kv_heads: int
    vocab: int
    layers: int
    shard_bytes: int | None = None
    experts: int = 0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, in model order."""
        h, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        block = {
            "input_layernorm": (h,),
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "post_attention_layernorm": (h,),
            **({"mlp.gate": (self.experts, h)} if self.experts else {}),
        }
        matrices = {"gate_proj": (self.inter, h), "up_proj": (self.inter, h), "down_proj": (h, self.inter)}
        for place in [f"mlp.experts.{e}" for e in range(self.experts)] or ["mlp"]:
            block.update({f"{place}.{name}": shape for name, shape in matrices.items()})
        out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, h)}
        out.update({f"model.layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in block.items()})
        return {**out, "model.norm.weight": (h,), "lm_head.weight": (self.vocab, h)}

    def config(self, dtype: str) -> dict[str, Any]:
        """A `config.json` to go with the weights."""
        mixture = {"num_experts": self.experts, "moe_intermediate_size": self.inter} if self.experts else {}
        return {
            "architectures": ["Qwen3MoeForCausalLM" if self.experts else "LlamaForCausalLM"],
            "model_type": "qwen3_moe" if self.experts else "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
            "torch_dtype": TORCH_NAME[dtype],
            **mixture,
        }


PRESETS = {
    "tiny": Preset(64, 160, 4, 2, 512, 2),
    "1.1b": Preset(2048, 5632, 32, 4, 32000, 22),
    "70b-width-1layer": Preset(8192, 28672, 64, 8, 128256, 1),
    "70b": Preset(8192, 28672, 64, 8, 128256, 80, 5_000_000_000),
    "moe-100k": Preset(2048, 512, 16, 2, 151936, 65, 5_000_000_000, experts=512),
}


class Values:
    """The numbers of one model: `expert` 0 is the base, another adds noise of its own."""

    def __init__(self, dtype: str, seed: int, expert: int = 0, noise: float = 0.002) -> None:
        pool = np.random.default_rng(seed).standard_normal(POOL, dtype=np.float32) * np.float32(0.02)
        if expert:
            pool += np.random.default_rng([seed, expert]).standard_normal(POOL, dtype=np.float32) * np.float32(noise)
        self._seed = seed
        self._weights = encode(pool, dtype)
        self._norms = encode(pool + np.float32(1), dtype)

    def blocks(self, name: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
        """The bytes of a tensor, in order; the same place of the pool for the same block of every expert."""
        pool = self._norms if len(shape) == 1 else self._weights
        for number, start in enumerate(range(0, prod(shape), BLOCK)):
            place = zlib.crc32(f"{self._seed}/{name}/{number}".encode()) % (POOL - BLOCK)
            yield pool[place : place + min(BLOCK, prod(shape) - start)].data.cast("B")


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Rounded to nearest even, as the bits to store."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def shards(tensors: dict[str, tuple[int, ...]], item_bytes: int, limit: int | None) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut where the next would take a file over `limit` bytes."""
    out: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in tensors.items():
        size = prod(shape) * item_bytes
        if limit is not None and out[-1] and held + size > limit:
            out.append({})
            held = 0
        out[-1][name] = shape
        held += size
    return out


def header(tensors: dict[str, tuple[int, ...]], dtype: str) -> tuple[bytes, int]:
    """A safetensors header with its length prefix, and the size of the data after it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at


def write_checkpoint(folder: Path, preset: Preset, values: Values | None, dtype: str = "BF16", shard_bytes: int | None = None) -> None:
    """One checkpoint folder.

    Args:
        folder: made where missing; files of the same names are replaced.
        preset: the model's shape.
        values: what to fill it with, or None for files of the right size without data (sparse).
        dtype: safetensors code.
        shard_bytes: largest file; None takes the preset's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = shards(preset.tensors(), ITEM_BYTES[dtype], shard_bytes or preset.shard_bytes)
    where: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        head, size = header(part, dtype)
        where.update(dict.fromkeys(part, file))
        total += size
        with open(folder / file, "wb") as out:
            out.write(head)
            if values is None:
                out.truncate(len(head) + size)
                continue
            for name, shape in part.items():
                out.writelines(values.blocks(name, shape))
    if len(parts) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))
    (folder / "config.json").write_text(json.dumps(preset.config(dtype), indent=1))


def make_set(
    folder: Path, preset: Preset, experts: int, dtype: str = "BF16", seed: int = 0, shard_bytes: int | None = None, *, sparse: bool = False
) -> list[Path]:
    """A base and its experts under `folder`; returns their folders, base first."""
    out = [folder / "base", *(folder / f"expert{k}" for k in range(1, experts + 1))]
    for expert, model in enumerate(out):
        write_checkpoint(model, preset, None if sparse else Values(dtype, seed, expert), dtype, shard_bytes)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--dtype", choices=ITEM_BYTES, default="BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, help="largest file (default: the preset's, usually one file)")
    parser.add_argument("--sparse", action="store_true", help="right headers and sizes, no data and no disk space")
    args = parser.parse_args()
    for model in make_set(args.folder, PRESETS[args.preset], args.experts, args.dtype, args.seed, args.shard_bytes, sparse=args.sparse):
        print(model)


if __name__ == "__main__":
    main()
