"""Checkpoints of real models' shapes that are made up: a base and experts that differ from it by small noise, and statistics of them.

Values come from one pool of seeded normal numbers, read at a different place for every block: writing is as fast as the disk, and memory
stays at the size of the pool however large the tensors are. Deltas are dense and full of ties, as deltas of 16-bit weights are.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from plait.planner.checkpoint import open_checkpoint, resolve_model
from plait.planner.layers import split
from plait.planner.types import Checkpoint, TensorRef

POOL = 1 << 22
BLOCK = 1 << 20
NOISE = 0.002  #: standard deviation of what tells an expert from the base; weights have 0.02
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

    @property
    def numel(self) -> int:
        """Parameters."""
        return sum(map(prod, self.tensors().values()))

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
    "0.1b": Preset(768, 2048, 12, 4, 32000, 12),
    "1.1b": Preset(2048, 5632, 32, 4, 32000, 22),
    "1.1b-width-1layer": Preset(2048, 5632, 32, 4, 32000, 1),
    "70b-width-1layer": Preset(8192, 28672, 64, 8, 128256, 1),
    "70b-width-layer-alone": Preset(8192, 28672, 64, 8, 256, 1),
    "70b": Preset(8192, 28672, 64, 8, 128256, 80, 5_000_000_000),
    "moe-1layer": Preset(2048, 512, 16, 2, 512, 1, experts=40),
    "moe-100k": Preset(2048, 512, 16, 2, 151936, 65, 5_000_000_000, experts=512),
}


class Values:
    """The numbers of one model: `expert` 0 is the base, another adds noise of its own."""

    def __init__(self, dtype: str, seed: int, expert: int = 0, noise: float = NOISE) -> None:
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


# -- experts and statistics of a model that is there -------------------------------------------------
def open_base(model: str | Path) -> Checkpoint:
    """The headers of a model that experts are made for.

    Raises:
        CheckpointError: it cannot be opened.
    """
    return open_checkpoint(resolve_model(str(model)), str(model))


def write_like(model: Checkpoint, folder: Path, number: int, seed: int = 0, *, positive: bool = False) -> Path:
    """A checkpoint with the files, names, shapes and dtypes of another: an expert of it, or an importance of each of its weights.

    Args:
        model: whose headers are taken, and whose values.
        folder: made.
        number: tells experts apart.
        seed: of the noise.
        positive: magnitudes of seeded numbers alone, as statistics are, instead of the model's values with noise.
    """
    folder.mkdir(parents=True)
    pool = np.random.default_rng([seed, number]).standard_normal(POOL, dtype=np.float32) * np.float32(NOISE)
    for file in model.files:
        refs = [ref for ref in model.tensors.values() if ref.file == file.path]
        with open(file.path, "rb") as source, open(folder / Path(file.path).name, "wb") as out:
            out.write(source.read(min(ref.start for ref in refs) if refs else file.size))
            for ref in sorted(refs, key=lambda r: r.start):
                _write_changed(ref, source, out, np.abs(pool) if positive else pool, positive=positive)
    for name in ("config.json", "model.safetensors.index.json"):
        if (Path(model.path) / name).is_file():
            shutil.copyfile(Path(model.path) / name, folder / name)
    return folder


def _write_changed(ref: TensorRef, source: BinaryIO, out: BinaryIO, pool: NDArray[np.float32], *, positive: bool) -> None:
    """A tensor with the pool added, or the pool alone; integers and quantised floats stay as they are."""
    source.seek(ref.start)
    if ref.dtype not in ITEM_BYTES:
        for at in range(0, ref.nbytes, BLOCK):
            out.write(source.read(min(BLOCK, ref.nbytes - at)))
        return
    size = ITEM_BYTES[ref.dtype]
    for number, at in enumerate(range(0, ref.nbytes // size, BLOCK)):
        count = min(BLOCK, ref.nbytes // size - at)
        place = zlib.crc32(f"{ref.name}/{number}".encode()) % (POOL - BLOCK)
        values = pool[place : place + count]
        stored = source.read(count * size)
        out.write(encode(values if positive else decode(stored, ref.dtype) + values, ref.dtype).data.cast("B"))


def decode(stored: bytes, dtype: str) -> NDArray[np.float32]:
    """Stored bits as float32."""
    if dtype == "F32":
        return np.frombuffer(stored, np.float32)
    if dtype == "F16":
        return np.frombuffer(stored, np.float16).astype(np.float32)
    return (np.frombuffer(stored, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def write_layer_scores(names: Sequence[str], path: Path, number: int, seed: int = 0) -> Path:
    """A file of seeded sensitivities, one a layer, as `sens` reads them."""
    places = [(name, split(name)) for name in names]
    layers = list(dict.fromkeys(name if place is None else f"{place[0]}.{place[1]}" for name, place in places))
    scores = np.random.default_rng([seed, number]).uniform(0.1, 1.0, len(layers) + 1)
    found = dict(zip(layers, scores[1:].tolist(), strict=True))
    path.write_text(json.dumps({"layers": found, "transfer": float(scores[0])}))
    return path
