"""Saves the base and the experts as ordinary checkpoints, and takes those of an earlier run where nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from plait.demo import encoder, training
from plait.demo.folder import DemoFolder
from plait.demo.tasks import Task

_SIDE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_NOTE = "training.json"


@dataclass(frozen=True, slots=True)
class Expert:
    """A fine-tuned checkpoint: its task, its folder, how long it took to train, or None where an earlier run's is used."""

    task: str
    folder: Path
    seconds: float | None


def copy_base(package: Path, folder: DemoFolder) -> Path:
    """Copy the model of the package to the demo's folder, unless it is there."""
    if not (folder.base / "model.safetensors").is_file():
        with _Building(folder.base) as place:
            _copy_side_files(package, place)
            shutil.copyfile(package / "model.safetensors", place / "model.safetensors")
    return folder.base


def obtain_expert(task: Task, exam: training.Exam, weights: Mapping[str, Tensor], folder: DemoFolder, settings: training.Settings) -> Expert:
    """Train the expert of a task, or take the one of an earlier run if it was made from the same base, texts and settings."""
    place = folder.expert(task.name)
    mark = fingerprint(task, exam.base, settings)
    if _is_made(place, mark):
        return Expert(task.name, place, None)
    begin = time.monotonic()
    features = training.compute_features(weights, exam.config, exam.base, task.train)
    tensors = training.train_expert(weights, exam.config, features, exam.head, settings)
    seconds = time.monotonic() - begin
    save_checkpoint(place, exam.base, tensors, {"task": task.name, "labels": task.labels, "settings": asdict(settings), "fingerprint": mark})
    return Expert(task.name, place, seconds)


def save_checkpoint(place: Path, donor: Path, tensors: Mapping[str, Tensor], note: Mapping[str, object]) -> None:
    """Write an ordinary checkpoint folder with the donor's small files, whole or not at all."""
    from safetensors.torch import save_file

    if place.exists():
        shutil.rmtree(place)
    with _Building(place) as building:
        _copy_side_files(donor, building)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / "model.safetensors", metadata={"format": "pt"})
        (building / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def fingerprint(task: Task, base: Path, settings: training.Settings) -> str:
    """A hash of all that an expert depends on."""
    digest = hashlib.sha256((base / "model.safetensors").read_bytes())
    numbers = [asdict(settings), training.TRAINED_LAYERS, training.SCALE, encoder.MAX_TOKENS]
    digest.update(json.dumps([numbers, task.labels, task.train]).encode())
    return digest.hexdigest()


def _is_made(place: Path, mark: str) -> bool:
    note = place / _NOTE
    if not note.is_file() or not (place / "model.safetensors").is_file():
        return False
    return bool(json.loads(note.read_text(encoding="utf-8")).get("fingerprint") == mark)


def _copy_side_files(source: Path, target: Path) -> None:
    for name in _SIDE_FILES:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


class _Building:
    """A folder built beside its final place and renamed to it when all went well."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.beside = place.with_name(f".{place.name}.unfinished")

    def __enter__(self) -> Path:
        if self.beside.exists():
            shutil.rmtree(self.beside)
        self.beside.mkdir(parents=True)
        return self.beside

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self.beside, self.place)
        else:
            shutil.rmtree(self.beside)
