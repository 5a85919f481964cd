"""Fine-tunes an expert for one task in seconds, and measures the accuracy of any checkpoint on it.

1. The lower layers are frozen: their output for every text is computed once and kept (`Features`).
2. The upper three layers are trained on it. A text belongs to the class whose label's sentence vector,
   as the base model gives it, is nearest; these label vectors are frozen too, so an expert is a
   checkpoint with exactly the tensors of the base, and any merge of experts can be measured.
3. Each training runs on one thread with a fixed seed: the same machine gives the same experts. Different
   tasks share nothing, so two of them run beside each other on two cores (`at_once`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.demo.encoder import BertConfig, Weights, embed, encode, pad, pool, run_layers, tokenize
from plait.demo.tasks import Example, Task

Item = TypeVar("Item")
Result = TypeVar("Result")

TRAINED_LAYERS = 3
SCALE = 20.0
"""Logits are this times the cosine of text and label, as in the contrastive training of the base."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an expert is trained; kept beside it, so that another setting means another training."""

    seed: int = 0
    epochs: int = 1
    batch: int = 16
    learning_rate: float = 4e-4
    warmup: float = 0.1


@dataclass(frozen=True, slots=True)
class Features:
    """What the frozen lower layers give for some texts: a [tokens, hidden] matrix for each, and the texts' classes."""

    rows: list[Tensor]
    classes: Tensor

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [texts, tokens, hidden], mask [texts, tokens] and classes [texts] of the chosen texts."""
        rows = [self.rows[index] for index in chosen]
        hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(hidden.shape[1])[None, :] < lengths[:, None]).float()
        return hidden, mask, self.classes[list(chosen)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: sums are then always taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function to every item on threads of their own, each with one torch thread, as many at once as there are cores."""
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))


def lower_names(config: BertConfig) -> tuple[str, ...]:
    """Beginnings of the names of the tensors that the frozen part reads."""
    return ("embeddings.", *(f"encoder.layer.{number}." for number in range(config.layers - TRAINED_LAYERS)))


def trained_names(weights: Weights, config: BertConfig) -> list[str]:
    """Names of the tensors that training changes."""
    upper = tuple(f"encoder.layer.{number}." for number in range(config.layers - TRAINED_LAYERS, config.layers))
    return [name for name in weights if name.startswith(upper)]


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of texts of like length, so that little is spent on padding."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def compute_features(weights: Weights, config: BertConfig, folder: Path, examples: Sequence[Example]) -> Features:
    """Run the lower layers once over all examples; the tokenizer is that of `folder`."""
    tokens = tokenize(folder, [text for text, _ in examples])
    rows: list[Tensor] = [torch.empty(0)] * len(tokens)
    for chosen in batches_by_length([len(row) for row in tokens], 64):
        batch = pad([tokens[index] for index in chosen])
        hidden = run_layers(weights, config, embed(weights, config, batch.ids), batch.mask, 0, config.layers - TRAINED_LAYERS)
        for place, index in enumerate(chosen):
            rows[index] = hidden[place, : len(tokens[index])].clone()
    return Features(rows, torch.tensor([label for _, label in examples]))


@torch.no_grad()
def label_vectors(weights: Weights, config: BertConfig, folder: Path, labels: Sequence[str]) -> Tensor:
    """The base model's unit vectors of the label names: the frozen head of a task, [classes, hidden]."""
    return encode(weights, config, pad(tokenize(folder, labels))).clone()


def train_expert(weights: Weights, config: BertConfig, features: Features, head: Tensor, settings: Settings) -> dict[str, Tensor]:
    """All tensors of the expert: copies of the base's, with the upper layers trained on `features`."""
    names = trained_names(weights, config)
    expert = {name: tensor.clone() for name, tensor in weights.items()}
    parameters = [expert[name].requires_grad_() for name in names]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.01, foreach=True)
    schedule = _batches(features, settings)
    warmup = max(1, round(settings.warmup * len(schedule)))
    for step, chosen in enumerate(schedule):
        rate = min((step + 1) / warmup, (len(schedule) - step) / max(1, len(schedule) - warmup))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
        hidden, mask, classes = features.batch(chosen)
        vectors = pool(run_layers(expert, config, hidden, mask, config.layers - TRAINED_LAYERS, config.layers), mask)
        loss = F.cross_entropy(SCALE * vectors @ head.T, classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in expert.items()}


def _batches(features: Features, settings: Settings) -> list[list[int]]:
    """The batches of all epochs: random, but of like length within groups of sixteen batches."""
    rng = random.Random(settings.seed)
    schedule: list[list[int]] = []
    for _ in range(settings.epochs):
        order = list(range(len(features.rows)))
        rng.shuffle(order)
        epoch: list[list[int]] = []
        for start in range(0, len(order), 16 * settings.batch):
            group = order[start : start + 16 * settings.batch]
            cut = batches_by_length([len(features.rows[index]) for index in group], settings.batch)
            epoch += [[group[index] for index in batch] for batch in cut]
        rng.shuffle(epoch)
        schedule += epoch
    return schedule


@torch.no_grad()
def accuracy(weights: Weights, config: BertConfig, features: Features, head: Tensor) -> float:
    """Share of texts whose nearest label vector is that of their class."""
    right = 0
    for chosen in batches_by_length([len(row) for row in features.rows], 64):
        hidden, mask, classes = features.batch(chosen)
        vectors = pool(run_layers(weights, config, hidden, mask, config.layers - TRAINED_LAYERS, config.layers), mask)
        right += int(((vectors @ head.T).argmax(1) == classes).sum())
    return right / len(features.rows)


@dataclass(frozen=True, slots=True)
class Exam:
    """A task made ready to measure checkpoints on: its test features, its head, and the frozen tensors they hold for."""

    task: Task
    base: Path
    config: BertConfig
    frozen: Weights
    features: Features
    head: Tensor

    def accuracy(self, weights: Weights) -> float:
        """Accuracy of a checkpoint; the kept features serve it only where its lower layers are the base's, bit by bit."""
        features = self.features
        if any(not torch.equal(weights[name], tensor) for name, tensor in self.frozen.items()):
            features = compute_features(weights, self.config, self.base, self.task.test)
        return accuracy(weights, self.config, features, self.head)


def prepare_exam(task: Task, base: Path, weights: Weights, config: BertConfig) -> Exam:
    """Compute what is the same for every checkpoint measured on `task`."""
    frozen = {name: tensor for name, tensor in weights.items() if name.startswith(lower_names(config)) and tensor.is_floating_point()}
    head = label_vectors(weights, config, base, task.labels)
    return Exam(task, base, config, frozen, compute_features(weights, config, base, task.test), head)
