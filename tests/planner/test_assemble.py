"""From a recipe and headers to one job a tensor: nothing left out in silence, everything wrong told at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError, PlanError, RecipeError
from plait.ops.method import Method, Param
from plait.planner.assemble import Assembly, assemble
from plait.planner.checkpoint import open_checkpoint
from plait.planner.recipe import load_recipe, parse_recipe
from plait.planner.safetensors_header import read_header
from plait.planner.types import Checkpoint, TensorRef
from support.golden import root
from support.steps import assert_proportional

WEIGHT = Param("weight", float, "", default=1.0, per_expert=True, required=True)


def fake(name: str, base: str, experts: tuple[int, int | None], params: tuple[Param, ...] = (), **facts: object) -> Method:
    return Method(name, lambda t: t, "test", base, experts, params, "", "", "", ("map",), **facts)  # type: ignore[arg-type]


METHODS = {
    m.name: m
    for m in (
        fake("linear", "unused", (1, None), (WEIGHT,)),
        fake("ties", "required", (1, None), (WEIGHT,)),
        fake("slerp", "required", (1, 1), (Param("t", float, "", required=True),), endpoint_base=True),
        fake("passthrough", "unused", (1, 1), (Param("scale", float, "", per_expert=True),)),
        fake("multislerp", "optional", (1, None)),
    )
}
STEPS = {"wsc": fake("wsc", "required", (1, None), (Param("gamma", float, "", default=1.0),), is_step=True)}

Shapes = dict[str, tuple[int, ...]]


def llama(layers: int = 2, vocabulary: int = 40) -> Shapes:
    shapes: Shapes = {"lm_head.weight": (vocabulary, 8), "model.embed_tokens.weight": (vocabulary, 8)}
    for n in range(layers):
        shapes[f"model.layers.{n}.self_attn.q_proj.weight"] = (8, 8)
        shapes[f"model.layers.{n}.mlp.down_proj.weight"] = (8, 16)
    return {**shapes, "model.norm.weight": (8,)}


def model(label: str, shapes: Shapes, dtype: str | Mapping[str, str] = "BF16", config: dict[str, Any] | None = None) -> Checkpoint:
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        code = dtype if isinstance(dtype, str) else next((c for part, c in dtype.items() if part in name), "BF16")
        nbytes = int(np.prod(shape)) * BY_CODE[code].itemsize
        tensors[name] = TensorRef(f"/m/{label}.safetensors", name, code, shape, offset, nbytes)
        offset += nbytes
    return Checkpoint(label, f"/m/{label}", (), tensors, config or {"model_type": "llama"})


def run(text: str, *models: Checkpoint) -> Assembly:
    return assemble(parse_recipe(text, "r.yml", METHODS, STEPS), {m.label: m for m in models}.__getitem__, METHODS, STEPS)


def plan_problems(text: str, *models: Checkpoint) -> list[str]:
    with pytest.raises(PlanError) as caught:
        run(text, *models)
    return str(caught.value).split("\n")


def linear(*labels: str) -> str:
    return "merge_method: linear\nmodels:\n" + "".join(f"- {{model: {label}, parameters: {{weight: 1}}}}\n" for label in labels)


def ties(base: str, *labels: str) -> str:
    return linear(*labels).replace("linear\n", f"ties\nbase_model: {base}\n", 1)


# -- against mergekit's outputs --------------------------------------------------------------------

GOLDEN = root() / "mergekit"
CASES = (
    *("dare_linear", "dare_ties", "della", "della_linear", "dtype_bf16_slerp_out_fp32", "dtype_fp16", "dtype_fp32_out_bf16", "dtype_unset", "linear"),
    *("linear_filters_gradient", "linear_normalize_false", "model_stock", "model_stock_filter_wise", "passthrough", "passthrough_franken"),
    *("passthrough_franken_scale", "slerp", "slerp_filters_gradient", "slices_linear_two_out", "task_arithmetic", "task_arithmetic_normalize_lambda"),
    *("ties", "ties_densities", "ties_int8_mask", "ties_rescale"),
)


def golden(case: str, dtype: str) -> Assembly:
    return assemble(load_recipe(GOLDEN / case / dtype / "config.yml"), lambda text: open_checkpoint(GOLDEN / text, text))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_names_shapes_and_dtypes_are_mergekits(case: str, dtype: str) -> None:
    """Every case that mergekit ran plans the same tensors, and the configuration gets the same dtype and layer count."""
    found = golden(case, dtype)
    want = {name: (entry.dtype, entry.shape) for name, entry in read_header(GOLDEN / case / dtype / "out.safetensors").entries.items()}
    assert {job.output: (job.dtype, job.shape) for job in found.jobs} == want
    config = json.loads((GOLDEN / case / dtype / "meta.json").read_text())["config"]
    assert found.dtype_name == config["dtype"]
    assert (found.num_layers or found.donor.config["num_hidden_layers"]) == config["num_hidden_layers"]


def stored(ref: TensorRef) -> np.ndarray[Any, Any]:
    return load_file(ref.file)[ref.name].astype(np.float64)


@pytest.mark.parametrize("case", ["linear", "linear_filters_gradient", "slices_linear_two_out", "linear_normalize_false"])
def test_resolved_weights_give_mergekits_numbers(case: str) -> None:
    """Gradients, filters, slices and precedence: the weighted sum with plait's resolved weights is mergekit's output.

    The known defect (the head of two slices with different numbers of models) does not arise in these recipes.
    """
    want = load_file(GOLDEN / case / "fp32" / "out.safetensors")
    for job in golden(case, "fp32").jobs:
        params = dict(job.params)
        total = sum(w * stored(ref) for w, ref in zip(params["weight"], job.experts, strict=True))
        got = total / sum(params["weight"]) if params["normalize"] else total
        assert np.abs(got - want[job.output]).max() <= 2e-6 * np.abs(got).max(), job.output


@pytest.mark.parametrize("case", ["passthrough_franken", "passthrough_franken_scale"])
def test_renumbered_layers_are_mergekits(case: str) -> None:
    """Frankenmerges take each layer, embedding and head from the model that mergekit takes them from."""
    want = load_file(GOLDEN / case / "fp32" / "out.safetensors")
    for job in golden(case, "fp32").jobs:
        (scale,) = dict(job.params)["scale"]
        assert np.array_equal(stored(job.experts[0]) * (1 if scale is None else scale), want[job.output]), job.output


def test_slerp_gradient_at_each_tensor() -> None:
    """t by filter and layer, solved from mergekit's own output: the embedding and the head are at 0.5, layer 1 ends at the gradient's end."""
    want = load_file(GOLDEN / "slerp_filters_gradient" / "fp32" / "out.safetensors")
    for job in golden("slerp_filters_gradient", "fp32").jobs:
        assert job.base is not None
        t, a, b = dict(job.params)["t"], stored(job.base), stored(job.experts[0])
        angle = np.arccos(np.clip((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
        sine, near = np.sin(angle), np.cos(angle) > 0.9995
        left, right = (1 - t, t) if near else (np.sin((1 - t) * angle) / sine, np.sin(t * angle) / sine)
        got = left * a + right * b
        assert np.abs(got - want[job.output]).max() <= 1e-5 * np.abs(got).max(), job.output


def test_refuses_what_mergekit_refuses_and_unlike_tokenizers() -> None:
    """Vocabulary mismatch names both tensors and sizes; tokenizer_source works only where tokenizers are the same."""
    with pytest.raises(PlanError) as caught:
        golden("vocab_mismatch_no_tokenizer_source", "fp32")
    message = str(caught.value)
    assert all(word in message for word in ("lm_head.weight", "model.embed_tokens.weight", "40 in models/fp32/ft1", "44 in models/fp32/tok2"))
    for case in ("tokenizer_base_ties", "tokenizer_union_linear", "tokenizer_model_slerp"):
        with pytest.raises(RecipeError, match=r"tokenizers of .* and models/fp32/tok2 differ"):
            golden(case, "fp32")


def test_tokenizer_source_with_one_tokenizer() -> None:
    """base, union and a model's path are all the same where the tokenizer files are byte-identical."""
    text = (GOLDEN / "task_arithmetic" / "fp32" / "config.yml").read_text()
    for source in ("base", "union", "models/fp32/ft2"):
        recipe = parse_recipe(f"{text}\ntokenizer_source: {source}\n")
        assert len(assemble(recipe, lambda t: open_checkpoint(GOLDEN / t, t)).jobs) == 21


# -- models ----------------------------------------------------------------------------------------


def test_every_tensor_of_the_donor_in_file_order() -> None:
    """The output is the donor's tensors in its file order; roles, layers and labels are filled in."""
    base, a, c = (model(label, llama()) for label in "bac")
    found = run(ties("b", "a", "c"), base, a, c)
    assert [job.output for job in found.jobs] == list(base.tensors)
    assert found.donor is base
    assert [m.label for m in found.checkpoints] == ["b", "a", "c"]
    job = next(j for j in found.jobs if j.output == "model.layers.1.self_attn.q_proj.weight")
    assert (job.role, job.layer, job.labels, job.base) == ("attention", 1, ("a", "c"), base.tensors[job.output])
    assert found.notes == ()


def test_extra_tensors_are_left_out_with_a_note() -> None:
    """What only an expert has is not in the output, and is said."""
    found = run(ties("b", "a"), model("b", llama()), model("a", {**llama(), "v_head.weight": (1, 8), "v_head.bias": (1,)}))
    assert found.notes == ("left out 2 tensors of a that b does not have: v_head.weight, v_head.bias",)


def test_integers_are_copied_with_a_note() -> None:
    """Position ids are the donor's, unmerged, even where an expert lacks them."""
    shapes = {**llama(), "embeddings.position_ids": (1, 16)}
    found = run(ties("b", "a"), model("b", shapes, {"position_ids": "I64"}), model("a", llama()))
    job = found.jobs[-1]
    assert (job.method, job.dtype, job.base, len(job.experts), job.experts[0].file) == ("copy", "I64", None, 1, "/m/b.safetensors")
    assert found.notes == ("1 integer tensor copied from b: embeddings.position_ids",)
    assert "holds integers (I64) in b but BF16 in a" in plan_problems(ties("b", "a"), model("b", shapes, {"position_ids": "I64"}), model("a", shapes))[0]


def test_tied_head_uses_the_models_embedding() -> None:
    """A model that ties its head gives its embedding as head where the others have one; an untied one without head is refused."""
    tied = {k: v for k, v in llama().items() if k != "lm_head.weight"}
    found = run(linear("a", "c"), model("a", llama()), model("c", tied, config={"tie_word_embeddings": True}))
    assert found.jobs[0].output == "lm_head.weight"
    assert found.jobs[0].experts[1].name == "model.embed_tokens.weight"
    assert "c ties its head to its embedding" in found.notes[0]
    for config in ({}, {"tie_word_embeddings": False}):
        lines = plan_problems(linear("a", "c"), model("a", llama()), model("c", tied, config=config))
        assert lines == ["tensor 'lm_head.weight' is in a but not in c; only models with the same tensors can be merged"]


def test_all_misfits_are_told_at_once() -> None:
    """Missing, misshapen, quantised, double and integer tensors of several models give one error, a line for each kind and model."""
    less = {k: v for k, v in llama().items() if "mlp" not in k}
    turned = {**llama(), "model.layers.0.mlp.down_proj.weight": (16, 8), "model.layers.1.mlp.down_proj.weight": (16, 8)}
    broadcast = {**llama(), "model.norm.weight": (1,)}
    lines = plan_problems(
        linear("a", "less", "turned", "broad", "fp8", "f64"),
        model("a", llama()),
        model("less", less),
        model("turned", {**turned, "lm_head.weight": (44, 8)}),
        model("broad", broadcast),
        model("fp8", llama(), {"q_proj": "F8_E4M3"}),
        model("f64", llama(), {"q_proj": "F64"}),
    )
    assert lines == [
        "tensor 'lm_head.weight': the vocabulary sizes differ: 40 in a and 44 in turned; merge models that share one tokenizer",
        "tensor 'model.layers.0.self_attn.q_proj.weight' of fp8 is quantised (float8_e4m3fn), which can only be copied unchanged; "
        "use the model's unquantised weights (and 1 more like it)",
        "tensor 'model.layers.0.self_attn.q_proj.weight' of f64 is float64, which is not computed on; set dtype: float32 in the recipe (and 1 more like it)",
        "tensor 'model.layers.0.mlp.down_proj.weight' is in a but not in less; only models with the same tensors can be merged (and 1 more like it)",
        "tensor 'model.norm.weight': broad has shape [1] but a has [8]; only models of one architecture and size can be merged",
    ]
    both = plan_problems(linear("a", "turned"), model("a", llama()), model("turned", turned))
    assert both == [
        "tensor 'model.layers.0.mlp.down_proj.weight': turned has shape [16, 8] but a has [8, 16]; "
        "only models of one architecture and size can be merged (and 1 more like it)"
    ]


def test_models_of_different_depth() -> None:
    """More layers in one model are not left out in silence."""
    lines = plan_problems(linear("a", "c"), model("a", llama(2)), model("c", llama(3)))
    assert lines == ["a has 2 layers and c has 3; models of different depth need slices: with a layer_range for each"]


def test_packed_quantised_weights_are_refused() -> None:
    """Integer weights of a quantised checkpoint are not position ids: merging would copy them beside merged scales."""
    shapes = {**llama(), "model.layers.0.mlp.up_proj.qweight": (4, 8)}
    packed = [model(label, shapes, {"qweight": "I32"}, {"quantization_config": {"quant_method": "gptq"}}) for label in "ac"]
    assert "packed quantised weights (I32)" in plan_problems(linear("a", "c"), *packed)[0]
    assert len(run("merge_method: passthrough\nmodels: [{model: a}]\n", packed[0]).jobs) == len(shapes)


def test_float8_passes_through_unchanged_only() -> None:
    """passthrough without scale keeps float8; with a scale, a step or another dtype it is refused."""
    fp8 = model("a", llama(), {"q_proj": "F8_E4M3"})
    text = "merge_method: passthrough\nmodels: [{model: a}]\n"
    assert {job.dtype for job in run(text, fp8).jobs} == {"BF16", "F8_E4M3"}
    for more in ("parameters: {scale: 2}\n", "dtype: bfloat16\n", "steps: [{method: wsc, base_model: a}]\n"):
        assert "quantised" in plan_problems(text + more, fp8)[0]


@pytest.mark.parametrize(
    ("inputs", "recipe", "output", "load"),
    [
        (("BF16", "BF16"), "", "BF16", None),
        (("BF16", "F16"), "", "F32", None),
        (("BF16", "F32"), "", "F32", None),
        (("BF16", "F32"), "dtype: bfloat16\n", "BF16", "BF16"),
        (("BF16", "BF16"), "dtype: bfloat16\n", "BF16", None),
        (("F32", "F32"), "dtype: bfloat16\nout_dtype: float32\n", "F32", "BF16"),
        (("F32", "F32"), "out_dtype: float16\n", "F16", None),
        (("F64", "F64"), "dtype: float32\n", "F32", "F32"),
    ],
)
def test_dtypes(inputs: tuple[str, str], recipe: str, output: str, load: str | None) -> None:
    """dtype rounds on load, out_dtype on save; without either the inputs promote as in torch."""
    a, c = (model(label, llama(), code) for label, code in zip("ac", inputs, strict=True))
    found = run(linear("a", "c") + recipe, a, c)
    assert {(job.dtype, job.load_dtype) for job in found.jobs} == {(output, load)}
    assert found.dtype_name == BY_CODE[output].name


def test_stacks_have_their_own_gradient() -> None:
    """Encoder and decoder of different depth each run from the first to the last value; what lies outside stands at the first."""
    shapes = {f"{s}.block.{n}.w": (2, 2) for s, count in (("encoder", 3), ("decoder", 5)) for n in range(count)} | {"shared.weight": (4, 2), "single.0.w": (2,)}
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: [0, 1]}}]\n"
    got = {job.output: dict(job.params)["weight"][0] for job in run(text, model("a", shapes)).jobs}
    want = {"shared.weight": 0, "single.0.w": 1} | {f"encoder.block.{n}.w": n / 2 for n in range(3)} | {f"decoder.block.{n}.w": n / 4 for n in range(5)}
    assert got == want


def test_endpoint_base_and_steps() -> None:
    """slerp's base is one of its two models; a step of a base-free merge brings the base into every job."""
    a, b = model("a", llama()), model("b", llama())
    job = run("merge_method: slerp\nbase_model: b\nparameters: {t: 0.5}\nmodels: [{model: a}, {model: b}]\n", a, b).jobs[0]
    assert (job.base, job.experts, job.params) == (b.tensors[job.output], (a.tensors[job.output],), (("t", 0.5),))
    found = run(linear("a") + "steps: [{method: wsc, base_model: b, parameters: {gamma: [{filter: norm, value: 0.5}, {value: 2}]}}]\n", a, b)
    assert {(job.output == "model.norm.weight", job.steps[0].params) for job in found.jobs} == {(True, (("gamma", 0.5),)), (False, (("gamma", 2.0),))}
    assert all(job.base == b.tensors[job.output] for job in found.jobs)
    assert found.donor is a


def test_a_required_value_that_filters_miss() -> None:
    """The message names recipe line, model, parameter and the first tensor, and counts the rest."""
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]\n"
    with pytest.raises(RecipeError) as caught:
        run(text, model("a", llama()))
    assert str(caught.value).startswith("r.yml:1:15: a has no weight for tensor 'lm_head.weight': no filter matches it")
    assert str(caught.value).endswith("(and 4 more like it)")


def test_parameters_of_the_base_have_no_effect_and_are_said() -> None:
    """mergekit ignores the base's weight in silence."""
    found = run(ties("b", "a", "b"), model("b", llama()), model("a", llama()))
    assert found.notes == ("r.yml:5:3: the parameters of b have no effect, since it is the base",)


def test_the_base_under_another_name() -> None:
    """Two spellings of one folder would make the base its own expert."""
    base = model("b", llama())
    models = {"b": base, "other": Checkpoint("other", base.path, (), base.tensors, {}), "a": model("a", llama())}
    with pytest.raises(RecipeError, match=r"^r.yml:5:11: other is the base_model \(b\) under another name"):
        assemble(parse_recipe(ties("b", "a", "other"), "r.yml", METHODS, STEPS), models.__getitem__, METHODS, STEPS)


def test_a_model_that_cannot_be_opened_is_named_with_its_line() -> None:
    """The recipe's place stands before the checkpoint's own message."""

    def missing(text: str) -> Checkpoint:
        raise CheckpointError(f"{text}: there is no such folder", path=text)

    with pytest.raises(CheckpointError, match=r"^r.yml:3:11: a: there is no such folder") as caught:
        assemble(parse_recipe(linear("a"), "r.yml", METHODS, STEPS), missing, METHODS, STEPS)
    assert caught.value.facts["path"] == "a"


# -- slices ----------------------------------------------------------------------------------------


def slices(*parts: list[tuple[str, int, int]], method: str = "linear", more: str = "") -> str:
    lines = [f"merge_method: {method}\n{more}slices:"]
    for part in parts:
        sources = [f"{{model: {m}, layer_range: [{start}, {end}]}}" for m, start, end in part]
        lines.append(f"- sources: [{', '.join(sources)}]")
    return "\n".join(lines) + "\n"


WEIGHTED = "parameters: {weight: [0, 1]}\n"


@settings(deadline=None)  # other work shares the machine
@given(ranges=st.lists(st.tuples(st.sampled_from("ac"), st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=4))
def test_slices_are_renumbered_without_gaps(ranges: list[tuple[str, int, int]]) -> None:
    """Whatever the ranges, output layers run 0, 1, 2, ... and layer i comes from the i-th layer of the ranges laid end to end."""
    models = {label: model(label, llama(8)) for label in "ac"}
    found = run(slices(*([(m, start, start + size)] for m, start, size in ranges), method="passthrough"), *models.values())
    flat = [(m, n) for m, start, size in ranges for n in range(start, start + size)]
    got = [job for job in found.jobs if job.layer is not None]
    assert [job.output for job in got] == [f"model.layers.{i}.{rest}" for i in range(len(flat)) for rest in ("self_attn.q_proj.weight", "mlp.down_proj.weight")]
    assert [(job.labels[0], job.experts[0].name.split(".")[2]) for job in got[::2]] == [(m, str(n)) for m, n in flat]
    assert found.num_layers == (None if len(flat) == 8 else len(flat))
    outside = {job.output: job.labels[0] for job in found.jobs if job.layer is None}
    assert outside == {"model.embed_tokens.weight": ranges[0][0], "lm_head.weight": ranges[-1][0], "model.norm.weight": ranges[-1][0]}


def test_gradient_runs_over_each_slice_and_all_models_reach_the_head() -> None:
    """t restarts in every slice, is 1 in a slice of one layer; head and norm average all of the last slice's models (mergekit drops some)."""
    models = [model(label, llama(4)) for label in "ac"]
    found = run(slices([("a", 0, 3)], [("a", 3, 4), ("c", 1, 2)], more=WEIGHTED), *models)
    got = {job.output: dict(job.params)["weight"] for job in found.jobs}
    assert [got[f"model.layers.{n}.mlp.down_proj.weight"] for n in range(4)] == [(0.0,), (0.5,), (1.0,), (1.0, 1.0)]
    assert got["model.embed_tokens.weight"] == (0.0,)
    assert got["lm_head.weight"] == got["model.norm.weight"] == (0.0, 0.0)


def test_base_of_a_slice() -> None:
    """A base among the sources has its own range; one beside them shares the sources' range, which must then be one."""
    models = [model(label, llama(4)) for label in "abc"]
    more = "base_model: b\nparameters: {weight: 1}\n"
    job = run(slices([("a", 0, 2), ("b", 2, 4)], method="ties", more=more), *models).jobs[2]
    assert job.base is not None
    assert (job.experts[0].name, job.base.name) == ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.weight")
    beside = run(slices([("a", 1, 2), ("c", 1, 2)], method="ties", more=more), *models).jobs[2]
    assert beside.base is not None
    assert beside.base.name == "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(RecipeError, match="the base b is not among this slice's sources, whose layer ranges differ"):
        run(slices([("a", 0, 1), ("c", 1, 2)], method="ties", more=more), *models)


def test_base_merged_with_other_layers_of_itself() -> None:
    """Layers of the base may be experts too: the first source that names it is the base."""
    b = model("b", llama(4))
    job = run(slices([("b", 0, 2), ("b", 2, 4)], method="slerp", more="base_model: b\nparameters: {t: 0.5}\n"), b).jobs[2]
    assert job.base is not None
    assert (job.base.name, job.experts[0].name) == ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.weight")


def test_ranges_and_stacks_that_cannot_be_sliced() -> None:
    """Ranges beyond a model, models with two stacks and models without layers are told with the recipe's line."""
    a = model("a", llama(2))
    two = model("two", {**llama(2), "vision.layers.0.w": (2, 2)})
    flat = model("flat", {"w": (2, 2)})
    cases = {
        slices([("a", 0, 3)], more=WEIGHTED): r"^r.yml:4:37: layer_range \[0, 3\] reaches beyond the 2 layers of a, numbered 0 to 1; END is not included",
        slices([("two", 0, 1)], more=WEIGHTED): r"two has 2 stacks of layers \(model.layers, vision.layers\); use models: instead",
        slices([("flat", 0, 1)], more=WEIGHTED): "flat has no layers",
    }
    for text, words in cases.items():
        with pytest.raises(RecipeError, match=words):
            run(text, a, two, flat)


def test_slices_say_what_they_leave_out() -> None:
    """A tensor of a used layer that the first model lacks is named, with its own layer number."""
    more = model("c", {**llama(3), "model.layers.2.self_attn.q_norm.weight": (8,), "model.extra": (1,)})
    found = run(slices([("a", 0, 1), ("c", 2, 3)], more=WEIGHTED), model("a", llama(2)), more)
    assert found.notes == ("left out 2 tensors of c that a does not have: model.layers.2.self_attn.q_norm.weight, model.extra",)


# -- real files and speed --------------------------------------------------------------------------


def test_real_files_from_end_to_end(tmp_path: Path) -> None:
    """A recipe beside two written checkpoints assembles from their headers alone."""
    for label in "ac":
        (tmp_path / label).mkdir()
        save_file({n: np.ones(s, np.float32) for n, s in llama().items()}, tmp_path / label / "model.safetensors")
    (tmp_path / "r.yml").write_text(linear("a", "c"))
    found = assemble(load_recipe(tmp_path / "r.yml"), lambda text: open_checkpoint(tmp_path / text, text))
    assert {job.output: job.shape for job in found.jobs} == llama()
    assert all(ref.file.startswith(str(tmp_path)) for job in found.jobs for ref in job.experts)


def test_planning_costs_the_same_for_each_tensor() -> None:
    """Many tensors of three experts and a base, with filters, gradients and a step."""
    text = ties("b", "a", "c", "d").replace("weight: 1", "weight: [{filter: experts.1, value: [0, 1]}, {value: 1}]") + "steps: [wsc]\n"

    def made(count: int) -> Callable[[], Any]:
        shapes: Shapes = {f"model.layers.{i // 100}.mlp.experts.{i % 100}.w1.weight": (4, 4) for i in range(count)}
        models = [model(label, shapes) for label in "bacd"]
        return lambda: run(text, *models)

    assert len(made(2500)().jobs) == 2500
    assert_proportional(made, 800, 3000)
