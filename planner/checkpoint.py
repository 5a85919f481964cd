"""Find a model on this machine and read its headers: names, shapes, dtypes, byte ranges, identities.

A model is a folder with `model.safetensors.index.json`, a folder with one safetensors file (or with
a complete set `name-00001-of-0000n.safetensors`), or a safetensors file. Nothing outside the folder
is followed, except from a snapshot of the Hugging Face cache to its own blobs. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from plait.ops.errors import CheckpointError
from plait.planner.header_text import shown
from plait.planner.json_file import read_json
from plait.planner.pickles import describe
from plait.planner.safetensors_header import read_header
from plait.planner.types import Checkpoint, FileIdentity, TensorRef

MAX_CONFIG_BYTES = 4_000_000
MAX_INDEX_BYTES = 24_000_000
#: Tensors of one model, in all its files.
MAX_MODEL_TENSORS = 200_000
MAX_FILES = 10_000
MAX_FILE_NAME = 255

_MAX_CONFIG_MARKS = 300_000  # commas, colons and brackets; the labels of 21,000 classes take half of that

_INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_NAME = re.compile(r"(?!\.)[^/\\]*\.safetensors")
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
_REPO = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_WEIGHTS = (*_PICKLES, ".gguf", ".h5", ".msgpack")


def open_checkpoint(path: str | Path, label: str | None = None) -> Checkpoint:
    """Read the headers of one model.

    Args:
        path: a model folder, a `.safetensors` file, or a `*.safetensors.index.json` file.
        label: what the user called it; the path when not given.

    Returns:
        The checkpoint, its tensors by shard and then by offset.

    Raises:
        CheckpointError: something is missing, damaged, ambiguous or not safetensors.
    """
    place = _absolute(path)
    if not os.path.lexists(place):
        raise CheckpointError(f"{place}: there is no such file or folder; check the path", path=str(place))
    folder = place if os.path.isdir(place) else place.parent
    weight_map: dict[str, str] | None = None
    index = None
    if folder is place:
        index, names = _choose(folder)
    elif place.name.endswith(_INDEX_SUFFIX):
        index, names = place, []
    elif place.suffix == ".safetensors":
        names = [place.name]
    else:
        raise CheckpointError(f"{place} is not a safetensors file; {_conversion(place)}", path=str(place))
    if index is not None:
        weight_map = _read_index(index)
        unsorted = set(weight_map.values())
        if len(unsorted) > MAX_FILES:
            raise CheckpointError(f"{index} names {len(unsorted)} files, more than the {MAX_FILES} that plait reads as one model", path=str(index))
        names = sorted(unsorted, key=_natural)
        for name in names:
            if not os.path.lexists(folder / name):
                raise CheckpointError(f"{folder / name} is listed in {index.name} but is not in the folder; download it again", path=str(folder / name))
    files, tensors = _read_files(folder, names, contained=folder is place or index is not None)
    if index is not None and weight_map is not None:
        _check_index(index, weight_map, tensors)
    if not tensors:
        raise CheckpointError(f"{place} holds no tensors; give another model", path=str(place))
    return Checkpoint(label if label is not None else str(path), str(place), files, tensors, _read_config(folder))


def resolve_model(text: str, near: Path | None = None) -> Path:
    """Find the folder or file that a recipe means by a model's name.

    Tried in order: the path itself (relative to the current folder), relative to `near`, and the
    local Hugging Face cache for `org/name` or `org/name@revision`.

    Args:
        text: as written in the recipe or on the command line.
        near: the recipe's folder.

    Raises:
        CheckpointError: nothing is there; the message lists every place tried.
    """
    if not text:
        raise CheckpointError("a model's name is empty; give a path or org/name", name=text)
    given = _expanded(text)
    places = [Path(os.path.abspath(given))]
    if near is not None and not given.is_absolute():
        places.append(Path(os.path.abspath(Path(near) / given)))
    for place in places:
        if os.path.exists(place):  # Path.exists raises where a name is too long
            return place
    tried = list(dict.fromkeys(map(str, places)))
    match = _REPO.fullmatch(text)
    if match and ".." not in text:
        for cache in _hub_caches():
            snapshot, looked = _snapshot(cache, match["repo"], match["revision"])
            if snapshot is not None:
                return snapshot
            tried.append(looked)
    hint = f"give a folder that exists, or fetch it first (`hf download {match['repo']}`)" if match and "/" in text else "give a folder that exists"
    raise CheckpointError(f"no model {shown(text)} on this machine; tried {', '.join(tried)}; plait never downloads: {hint}", name=text, tried=tuple(tried))


def _expanded(path: str | Path) -> Path:
    """A path as the user gave it, `~` resolved."""
    try:
        os.fsencode(path)
        if "\0" not in str(path):
            return Path(path).expanduser()
        why = "holds a NUL character"
    except UnicodeEncodeError:
        why = "holds characters that no file name can"
    except RuntimeError:
        why = "begins with the home folder of a user whom this machine does not know"
    raise CheckpointError(f"the path {shown(str(path))} {why}; give a path or org/name", path=str(path))


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(_expanded(path)))


def check_inside(folder: Path, path: Path) -> Path:
    """The real path of a file of a model folder; refused when a link leads out of the folder.

    A snapshot of the Hugging Face cache holds links to the `blobs` of the same repository: allowed.
    """
    try:
        real = path.resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a link that leads nowhere; download the model again", path=str(path)) from error
    roots = [home]
    for parent in (home, *home.parents):
        if parent.parent.name == "snapshots":
            roots.append(parent.parent.parent / "blobs")
            break
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{path} is a link out of its model folder, to {real}; put a copy in the folder or give the file itself", path=str(path))
    return real


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d{1,18})", name) if part]


def _choose(folder: Path) -> tuple[Path | None, list[str]]:
    """The index of a folder, or the names of its safetensors files when they can only be meant one way."""
    try:
        names = sorted((e.name for e in os.scandir(folder) if not e.name.startswith(".")), key=_natural)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed ({error.strerror}); check its permissions", path=str(folder)) from error
    indexes = [n for n in names if n.endswith(_INDEX_SUFFIX)]
    files = [n for n in names if n.endswith(".safetensors")]
    odd = next((n for n in (*indexes, *files) if not n.isprintable()), None)
    if odd is not None:
        raise CheckpointError(f"{folder} holds a file named {shown(odd)}, with control characters: do not use this model", path=str(folder), name=odd)
    if "model" + _INDEX_SUFFIX in indexes or len(indexes) == 1:
        index = folder / ("model" + _INDEX_SUFFIX if len(indexes) > 1 else indexes[0])
        whole = index.name.removesuffix(".index.json")
        if whole in files and whole not in set(_read_index(index).values()):
            why = f"holds both {index.name} and {whole}, and loaders disagree about which is the model; remove one, or give the path of the file that is meant"
            raise CheckpointError(f"{folder} {why}", path=str(folder))
        return index, []
    if len(files) <= 1:
        if not files:
            raise CheckpointError(f"{folder} holds no safetensors file; {_conversion(folder)}", path=str(folder))
        return None, files
    _check_set(folder, files)
    return None, files


def _check_set(folder: Path, files: list[str]) -> None:
    """Several files and no index: only a complete numbered set is one model."""
    matches = [_SHARD.fullmatch(n) for n in files]
    found = {(m["stem"], int(m["count"])): m for m in matches if m}
    if not all(matches) or len(found) != 1:
        listed = ", ".join(files[:4]) + (", ..." if len(files) > 4 else "")
        why = f"holds {len(files)} safetensors files and no index ({listed}); give the path of the one that is meant"
        raise CheckpointError(f"{folder} {why}", path=str(folder))
    (_, count), sample = next(iter(found.items()))
    present = {int(m["number"]) for m in matches if m}
    if len(files) != count or present != set(range(1, count + 1)):  # the count of a name may be astronomical: no set of that many
        absent = next((i for i in range(1, len(files) + 2) if i not in present), count)
        width = len(sample["number"])
        name = f"{sample['stem']}-{absent:0{width}d}-of-{sample['count']}.safetensors"
        raise CheckpointError(f"{folder / name} is absent from a set of {count} shards; download it again", path=str(folder / name))


def _conversion(place: Path) -> str:
    """What to do where there is no safetensors file: `place` is a folder or a file of another kind."""
    names = sorted(os.listdir(place)) if os.path.isdir(place) else [place.name]
    found = next((n for n in names if n.endswith(_OTHER_WEIGHTS)), None)
    if found is None:
        return "give a folder with model.safetensors"
    file = place / found if os.path.isdir(place) else place
    if found.endswith(_PICKLES) and os.path.lexists(file):
        return describe(file)
    return f"{shown(found)} holds weights in a format that plait does not read: convert it to safetensors first"


def _read_index(index: Path) -> dict[str, str]:
    check_inside(index.parent, index)
    weight_map = read_json(index, MAX_INDEX_BYTES, "the index", 2 * MAX_MODEL_TENSORS + 10_000).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} holds no weight_map; download it again", path=str(index))
    plain: set[str] = set()
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in plain:
            continue
        if not isinstance(name, str) or len(name) > MAX_FILE_NAME or not name.isprintable() or not _SHARD_NAME.fullmatch(name):
            why = "an index may only name safetensors files of its own folder: do not use this model"
            raise CheckpointError(f"{index} sends tensor {shown(tensor)} to {shown(name)}; {why}", path=str(index), tensor=tensor)
        plain.add(name)
    return weight_map


def _read_files(folder: Path, names: list[str], contained: bool) -> tuple[tuple[FileIdentity, ...], dict[str, TensorRef]]:
    files: list[FileIdentity] = []
    tensors: dict[str, TensorRef] = {}
    for name in names:
        path = folder / name
        if contained:
            check_inside(folder, path)
        header = read_header(path)
        file = header.identity.path
        files.append(header.identity)
        if len(tensors) + len(header.entries) > MAX_MODEL_TENSORS:
            raise CheckpointError(f"{folder} holds more than the {MAX_MODEL_TENSORS} tensors that plait reads from one model", path=str(folder))
        if not tensors.keys().isdisjoint(header.entries):
            twice = next(key for key in header.entries if key in tensors)
            raise CheckpointError(f"tensor {shown(twice)} is in both {tensors[twice].file} and {file}; remove one of them", path=file, tensor=twice)
        tensors.update(header.entries)
    return tuple(files), tensors


def _check_index(index: Path, weight_map: dict[str, str], tensors: dict[str, TensorRef]) -> None:
    shards = {file: os.path.basename(file) for file in {ref.file for ref in tensors.values()}}
    if weight_map.items() <= {name: shards[ref.file] for name, ref in tensors.items()}.items():
        return
    for name, shard in weight_map.items():
        held = tensors.get(name)
        if held is None or shards[held.file] != shard:
            where = "no shard holds it" if held is None else f"it is in {os.path.basename(held.file)}"
            raise CheckpointError(f"{index} puts tensor {shown(name)} into {shard}, but {where}; download the model again", path=str(index), tensor=name)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not os.path.lexists(path):
        return {}
    check_inside(folder, path)
    return read_json(path, MAX_CONFIG_BYTES, "the configuration", _MAX_CONFIG_MARKS)


def _hub_caches() -> list[Path]:
    env = os.environ
    found = [env[key] for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if env.get(key)]
    if env.get("HF_HOME"):
        found.append(os.path.join(env["HF_HOME"], "hub"))
    found.append(os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface", "hub"))
    return [_expanded(p) for p in dict.fromkeys(found)]


def _snapshot(cache: Path, repo: str, revision: str | None) -> tuple[Path | None, str]:
    """The snapshot folder of a repository in a cache, and the place that was looked at."""
    home = cache / ("models--" + repo.replace("/", "--"))
    wanted = revision or "main"
    looked = home / "snapshots" / wanted
    candidates = [wanted]
    ref = home / "refs" / wanted
    if os.path.isfile(ref):
        with open(ref, encoding="utf-8", errors="replace") as stream:
            candidates.insert(0, stream.read(200).strip())
    for name in candidates:
        if re.fullmatch(r"[\w-][\w.-]*", name) and os.path.isdir(home / "snapshots" / name):
            return home / "snapshots" / name, str(looked)
    return None, str(looked if os.path.isdir(home) else home)
