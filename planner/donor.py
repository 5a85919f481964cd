"""The small files of the output folder: the donor's configuration and tokenizer, a model card, the recipe.

Files are copied by an allow-list of names that Hugging Face folders hold. Code and weights never are.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from plait.ops.errors import CheckpointError, PlanError
from plait.planner.checkpoint import check_inside
from plait.planner.header_text import shown
from plait.planner.types import Checkpoint, SideFile

RECIPE_NAME = "plait_recipe.yml"
MAX_SIDE_FILE_BYTES = 512_000_000

_COPIED = (
    # tokenizers
    "tokenizer*.json",
    "tokenizer*.model",
    "tokenizer.model.v*",
    "*.tiktoken",
    "tekken.json",
    "vocab.*",
    "vocab-*.json",
    "merges.txt",
    "bpe.codes",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*.model",
    "source.spm",
    "target.spm",
    "normalizer.json",
    # chat templates and generation
    "chat_template.*",
    "chat_templates/*.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    # images, sound, video
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor*.json",
    "video_preprocessor_config.json",
    "feature_extractor*.json",
    # sentence-transformers
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_*_config.json",
    "[0-9]*_*/config.json",
    # terms of use go with the weights
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
_NEVER = (".py", ".pyc", ".so", ".sh", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".npy")
_DTYPE_KEYS = ("torch_dtype", "dtype")
_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_NESTED = ("text_config", "llm_config", "language_config")


def side_files(
    donor: Checkpoint,
    *,
    dtype_name: str | None,
    num_layers: int | None,
    recipe_text: str,
    summary: Mapping[str, Any],
    layer_sources: Sequence[int] | None = None,
) -> tuple[SideFile, ...]:
    """Everything of the output folder but weights and index.

    Args:
        donor: the model whose configuration, tokenizer and the like the output takes.
        dtype_name: of the output, such as `bfloat16`; None leaves the configuration's.
        num_layers: of the output where the recipe changed it, else None.
        recipe_text: the recipe as the user wrote it.
        summary: for the model card; all optional: `name`, `method` (str or list), `models` (labels),
            `base` (label), `notes` (list of sentences).
        layer_sources: the donor's layer for each output layer, for per-layer lists in the configuration.

    Raises:
        CheckpointError: a file to be copied leads out of the donor's folder or is absurdly large.
        PlanError: a per-layer list of the configuration cannot be matched to the new layers.
    """
    place = Path(donor.path)
    folder = place if place.is_dir() else place.parent
    copied = _copied(folder)
    made: list[SideFile] = []
    if donor.config:
        config = output_config(donor.config, dtype_name=dtype_name, num_layers=num_layers, layer_sources=layer_sources, where=str(folder / "config.json"))
        made.append(SideFile("config.json", content=(json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()))
    card = _model_card(donor, recipe_text, summary, {side.name for side in copied}, _own_weights(folder))
    made.append(SideFile("README.md", content=card.encode()))
    made.append(SideFile(RECIPE_NAME, content=recipe_text.encode()))
    return (*made, *copied)


def output_config(
    config: Mapping[str, Any],
    *,
    dtype_name: str | None,
    num_layers: int | None,
    layer_sources: Sequence[int] | None = None,
    where: str = "config.json",
) -> dict[str, Any]:
    """The donor's configuration with the output's dtype and number of layers.

    Lists with one item a layer (`layer_types`, `no_rope_layers`, ...) follow `layer_sources`; without it
    they are cut, or continued when they repeat a pattern.

    Raises:
        PlanError: a per-layer list fits neither.
    """
    out = dict(config)
    nested = [key for key in _NESTED if isinstance(config.get(key), dict)]
    for key in nested:
        out[key] = dict(config[key])
    if dtype_name is not None:
        _set_dtype(out, dtype_name, add=True)
        for key in nested:
            _set_dtype(out[key], dtype_name, add=False)
    if num_layers is not None:
        levels = [out, *(out[key] for key in nested)]
        holders = [level for level in levels if any(_is_count(level.get(key)) for key in _COUNT_KEYS)]
        for level in holders:
            _set_layers(level, num_layers, layer_sources, where)
        if not holders:
            levels[-1]["num_hidden_layers"] = num_layers
    return out


def _set_dtype(level: dict[str, Any], dtype_name: str, add: bool) -> None:
    present = [key for key in _DTYPE_KEYS if key in level]
    for key in present or (["torch_dtype"] if add else []):
        level[key] = dtype_name


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _set_layers(level: dict[str, Any], count: int, sources: Sequence[int] | None, where: str) -> None:
    keys = [key for key in _COUNT_KEYS if _is_count(level.get(key))]
    before = level[keys[0]]
    for key in keys:
        level[key] = count
    for key, value in level.items():
        # A list of layer numbers (`mlp_only_layers`) may have this length by chance: it holds whole
        # numbers above 1, a per-layer list holds names, flags or nested values.
        if "layer" not in key or not isinstance(value, list) or len(value) != before or any(_is_count(v) and v > 1 for v in value):
            continue
        if sources is not None and len(sources) == count and all(0 <= s < before for s in sources):
            level[key] = [value[s] for s in sources]
        else:
            level[key] = _continued(value, count, key, where)


def _continued(value: list[Any], count: int, key: str, where: str) -> list[Any]:
    if count <= len(value):
        return value[:count]
    for period in range(1, len(value) // 2 + 1):
        if all(value[i] == value[i - period] for i in range(period, len(value))):
            return [value[i % period] for i in range(count)]
    why = f"`{key}` lists {len(value)} layers without a pattern and the output has {count}"
    raise PlanError(f"{where}: {why}; give the list for the output in the donor's config.json", path=where, key=key)


def _copied(folder: Path) -> list[SideFile]:
    found: list[SideFile] = []
    for name in sorted(_names(folder)):
        if name.lower().endswith(_NEVER) or not any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in _COPIED):
            continue
        real = check_inside(folder, folder / name)
        status = real.stat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode) or not name.isprintable():
            raise CheckpointError(f"{folder} holds {shown(name)}, which is no plain file or has control characters in its name; remove it", path=str(folder))
        size = status.st_size
        if size > MAX_SIDE_FILE_BYTES:
            raise CheckpointError(f"{folder / name} takes {size} bytes, too many for a side file; remove it from the model", path=str(folder / name), size=size)
        found.append(SideFile(name, source=str(real)))
    return found


def _names(folder: Path) -> list[str]:
    """Names of the folder's files and of those one level down, relative to it; links to folders are not followed."""
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if any(fnmatchcase(entry.name, p.split("/")[0]) for p in _COPIED if "/" in p):
                    names += [f"{entry.name}/{inner}" for inner in os.listdir(entry.path)]
            else:
                names.append(entry.name)
    return names


def _own_weights(folder: Path) -> list[str]:
    """Modules of a sentence-transformers folder that hold weights of their own, which are neither merged nor copied."""
    return sorted({Path(n).parts[0] for n in _names(folder) if "/" in n and n.endswith((".safetensors", ".bin"))})


def _model_card(donor: Checkpoint, recipe_text: str, summary: Mapping[str, Any], copied: set[str], own_weights: list[str]) -> str:
    models = list(dict.fromkeys(_public(m) for m in [*([summary["base"]] if summary.get("base") else []), *summary.get("models", ())]))
    library = "diffusers" if "_class_name" in donor.config else "transformers" if donor.config else None
    if "modules.json" in copied:
        library = "sentence-transformers"
    front: dict[str, Any] = {"base_model": models, "tags": ["merge", "plait"]}
    if library is not None:
        front["library_name"] = library
    methods = summary.get("method") or ()
    notes = [str(note) for note in summary.get("notes", ())]
    if donor.config.get("auto_map"):
        notes.append("The configuration names Python code of the donor (`auto_map`), which was not copied.")
    notes += [f"`{name}` of the donor holds weights of its own, which were neither merged nor copied." for name in own_weights]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe_text)), default=0))
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---", f"# {_public(str(summary.get('name') or 'Merged model'))}", ""]
    lines += ["A merge of neural-network checkpoints, made with plait.", ""]
    if methods:
        lines += ["Method: " + ", ".join(f"`{m}`" for m in ([methods] if isinstance(methods, str) else methods)), ""]
    if summary.get("base"):
        lines += [f"Base: `{_public(summary['base'])}`", ""]
    if summary.get("models"):
        lines += ["Models:", "", *(f"- `{_public(m)}`" for m in summary["models"]), ""]
    for note in notes:
        lines += [note, ""]
    return "\n".join([*lines, "Recipe:", "", f"{fence}yaml", recipe_text.rstrip("\n"), fence, ""])


def _public(label: str) -> str:
    """A model's label without the folders of the machine it was merged on."""
    if label.startswith(("/", "~", "./", "../")):
        label = os.path.basename(os.path.normpath(label))
    return " ".join(label.encode("utf-8", "backslashreplace").decode().replace("`", "'").split())
