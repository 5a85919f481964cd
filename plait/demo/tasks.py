"""Three small text classification tasks, read from the files of an installed data package.

| task      | text                                   | classes | source                                              |
| --------- | -------------------------------------- | ------- | --------------------------------------------------- |
| question  | what does a question ask for           | 6       | Li & Roth 2002 (the TREC question set)              |
| spam      | is a text message spam                 | 2       | Almeida & Hidalgo 2011 (SMS Spam Collection)        |
| sentiment | is a sentence of a film review for it  | 2       | Pang & Lee 2004, rated by Hutto & Gilbert 2014      |

Texts that occur twice are used once, so no text is in both training and test.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.ops.errors import PlaitError

Example = tuple[str, int]

_SEED = 2024


@dataclass(frozen=True, slots=True)
class Task:
    """A classification task: the words that stand for each class, and two disjoint sets of (text, class)."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where a task comes from: its file in the data package, how to read it, how many examples to take of it."""

    name: str
    file: str
    labels: tuple[str, ...]
    read: Callable[[Path], Iterator[Example]]
    train: int
    test: int
    balanced: bool


def read_questions(path: Path) -> Iterator[Example]:
    """Lines such as `HUM:ind Who wrote Hamlet ?`; the class is the part before the colon."""
    classes = {"ABBR": 0, "DESC": 1, "ENTY": 2, "HUM": 3, "LOC": 4, "NUM": 5}
    for line in path.read_text(encoding="utf-8").splitlines():
        label, _, text = line.partition(" ")
        yield text.strip(), classes[label.partition(":")[0]]


def read_messages(path: Path) -> Iterator[Example]:
    """Rows of a CSV file with the columns `spam` (0 or 1) and `text`."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["text"].strip(), int(row["spam"])


def read_reviews(path: Path) -> Iterator[Example]:
    """Tab-separated rows of id, mean rating of twenty people in -4..4, and sentence; the lukewarm ones are left out."""
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 1:
            yield text.strip(), int(float(rating) > 0)


SOURCES = (
    TaskSource(
        "sentiment",
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        ("a bad film", "a good film"),
        read_reviews,
        train=1000,
        test=300,
        balanced=True,
    ),
    TaskSource(
        "question",
        "question_labels.txt",
        ("an abbreviation", "a description or a reason", "a thing", "a person", "a place", "a number"),
        read_questions,
        train=1000,
        test=300,
        balanced=False,
    ),
    TaskSource("spam", "sms-spam.csv", ("a personal message", "an advertisement"), read_messages, train=400, test=300, balanced=True),
)


def split(source: TaskSource, examples: list[Example]) -> Task:
    """Drop repeated texts, shuffle with a fixed seed, and cut into disjoint training and test sets.

    Raises:
        PlaitError: the file holds fewer examples than the task takes.
    """
    unique = {" ".join(text.lower().split()): (text, label) for text, label in reversed(examples) if text}
    rows = sorted(unique.values())
    random.Random(f"{_SEED} {source.name}").shuffle(rows)
    if source.balanced:
        by_class = [[row for row in rows if row[1] == label] for label in range(len(source.labels))]
        rows = [row for group in zip(*by_class, strict=False) for row in group]
    if len(rows) < source.train + source.test:
        raise PlaitError(
            f"{source.file} of the data package holds {len(rows)} usable texts and the task {source.name} takes {source.train + source.test}: "
            "install the release of the package that `plait demo` names in its documentation",
            task=source.name,
        )
    return Task(source.name, source.labels, tuple(rows[source.test : source.test + source.train]), tuple(rows[: source.test]))


def load_tasks(folder: Path) -> list[Task]:
    """Read the three tasks from the data folder of the package.

    Args:
        folder: what `package_folder(DATA)` gives.

    Raises:
        PlaitError: a file is damaged or too short.
    """
    tasks = []
    for source in SOURCES:
        try:
            examples = list(source.read(folder / source.file))
        except (ValueError, KeyError) as error:
            raise PlaitError(
                f"{folder / source.file} is not the file that the demo knows ({error}): reinstall the data package", path=str(folder / source.file)
            ) from error
        tasks.append(split(source, examples))
    return tasks
