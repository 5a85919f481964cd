"""Recipes: mergekit's YAML is read as mergekit reads it, and everything wrong is told at once with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.errors import RecipeError
from plait.ops.method import Method, Param
from plait.planner import yaml_source as ys
from plait.planner.parameters import MissingValue, Resolver
from plait.planner.recipe import Recipe, load_recipe, parse_recipe
from support.golden import root

WEIGHT = Param("weight", float, "", default=1.0, per_expert=True, required=True)
DENSITY = Param("density", float, "", default=1.0, per_expert=True, low=0.0, high=1.0)
LAMBDA = Param("lambda", float, "", default=1.0, python="lam")
SEED = Param("seed", int, "", default=0, gradient=False)
TOPK = Param("topk", int, "", default=1)
MODE = Param("mode", str, "", default="sum", choices=("sum", "count"))
SKIP = Param("skip", list, "")


def fake(name: str, base: str = "unused", experts: tuple[int, int | None] = (1, None), params: tuple[Param, ...] = (), **facts: object) -> Method:
    return Method(name, lambda t: t, "test", base, experts, params, "", "", "", ("map",), **facts)  # type: ignore[arg-type]


METHODS = {
    m.name: m
    for m in (
        fake("linear", params=(WEIGHT,)),
        fake("ties", "required", params=(WEIGHT, DENSITY, LAMBDA, SEED, TOPK, MODE, SKIP)),
        fake("slerp", "required", (1, 1), (Param("t", float, "", required=True),), endpoint_base=True),
        fake("passthrough", "unused", (1, 1), (Param("scale", float, "", per_expert=True),)),
        fake("multislerp", "optional", params=(WEIGHT,)),
    )
}
STEPS = {m.name: m for m in (fake("magic_wsc", "required", params=(Param("rule", str, "", default="sphere", choices=("sphere", "ellipsoid")),), is_step=True),)}


def parse(text: str) -> Recipe:
    return parse_recipe(text, "r.yml", METHODS, STEPS)


def refusal(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    return str(caught.value).split("\n")


def complaints(text: str) -> list[str]:
    try:
        parse(text)
    except RecipeError as error:
        return str(error).split("\n")
    return []


TIES = """merge_method: ties
base_model: b
models:
  - model: a
    parameters:
      weight: 1.0
      density: {density}
"""


def resolve(recipe: Recipe, name: str, t: float = 0.0) -> dict[str, object]:
    part = recipe.parts[0]
    levels = (part.settings, recipe.settings)
    return dict(Resolver(METHODS[recipe.method].params, levels, [s.settings for s in part.experts])(name, [name] * len(part.experts), t))


# -- what is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ties", "linear", "slerp_filters_gradient", "passthrough_franken_scale", "slices_linear_two_out", "della", "model_stock"])
def test_reads_recipes_that_mergekit_ran(case: str) -> None:
    """Recipes of the reference set parse with plait's own methods, and every model in the YAML is found."""
    path = root() / "mergekit" / case / "fp32" / "config.yml"
    recipe = load_recipe(path)
    raw = yaml.safe_load(path.read_text())
    listed = [m["model"] for m in raw.get("models", [])] + [s["model"] for part in raw.get("slices", []) for s in part["sources"]]
    assert {ref.text for ref in recipe.models()} == {*listed, *([raw["base_model"]] if "base_model" in raw else [])}
    assert recipe.dtype == "float32"
    assert recipe.sliced == ("slices" in raw)


def test_base_listed_among_models_is_not_an_expert() -> None:
    """mergekit: base_model under models is the base, whatever its spelling, and needs no weight."""
    recipe = parse("merge_method: ties\nbase_model: m/b\nmodels:\n- model: ./m/b/\n- {model: a, parameters: {weight: 1}}\n")
    assert [s.model.text for s in recipe.parts[0].experts] == ["a"]
    assert recipe.parts[0].base is not None


def test_mapping_form_of_a_model() -> None:
    """mergekit writes models as {model: {path: ...}} in the configurations it saves."""
    recipe = parse("merge_method: linear\nmodels:\n- {model: {model: {path: a/b}, lora: null}, parameters: {weight: 1}}\n")
    assert recipe.models()[0].text == "a/b"


def test_plus_in_an_existing_folder_is_no_adapter(tmp_path: Path) -> None:
    """A folder whose name holds '+' beside the recipe is a model, not model+lora."""
    (tmp_path / "a+b").mkdir()
    (tmp_path / "r.yml").write_text("merge_method: linear\nmodels: [{model: a+b, parameters: {weight: 1}}]\n")
    assert load_recipe(tmp_path / "r.yml", METHODS, STEPS).models()[0].text == "a+b"


def test_anchors_and_merge_keys() -> None:
    """YAML's own reuse (`&`, `*`, `<<`) works as in yaml.safe_load."""
    recipe = parse(
        "merge_method: ties\nbase_model: b\nmodels:\n- model: a\n  parameters: &p {weight: 2, density: 0.5}\n- {model: c, parameters: {<<: *p, weight: 3}}\n"
    )
    assert resolve(recipe, "x")["weight"] == (2.0, 3.0)
    assert resolve(recipe, "x")["density"] == (0.5, 0.5)


def test_steps_by_name_and_by_mapping() -> None:
    """A step is a bare name or a mapping with parameters and its own base."""
    recipe = parse(TIES.format(density=1) + "steps:\n- magic_wsc\n- {method: magic_wsc, parameters: {rule: ellipsoid}}\n")
    assert [step.name for step in recipe.steps] == ["magic_wsc", "magic_wsc"]
    own = parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\nsteps: [{method: magic_wsc, base_model: b}]\n")
    base = own.step_base()
    assert base is not None
    assert base.text == "b"


def test_unused_base_is_allowed_where_a_step_needs_it() -> None:
    """linear with an unlisted base_model is refused, but not when magic_wsc works from that base."""
    text = "merge_method: linear\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    assert refusal(text) == [
        "r.yml:2:13: linear uses no base, and base_model b is not among the models; list it under models with a weight, or remove base_model"
    ]
    assert parse(text + "steps: [magic_wsc]\n").models()[0].text == "b"


# -- settings --------------------------------------------------------------------------------------


@settings(deadline=None)  # other work shares the machine
@given(points=st.lists(st.floats(-5, 5), min_size=1, max_size=6), layers=st.integers(2, 40))
def test_gradient_is_linear_interpolation(points: list[float], layers: int) -> None:
    """A list of numbers is numpy.interp over evenly spaced points."""
    recipe = parse(f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: {points}}}}}]\n")
    for layer in range(layers):
        t = layer / (layers - 1)
        expected = np.interp(t, np.linspace(0, 1, len(points)), points) if len(points) > 1 else points[0]
        (got,) = resolve(recipe, "x", t)["weight"]  # type: ignore[misc]
        assert got == pytest.approx(expected, abs=1e-12)


def test_gradients_of_words_and_whole_numbers() -> None:
    """Words step at the floor; whole numbers stay whole."""
    recipe = parse(TIES.format(density=1) + "parameters: {mode: [sum, count], topk: [1, 4]}\n")
    assert [resolve(recipe, "x", t)["mode"] for t in (0, 0.5, 0.99, 1)] == ["sum", "sum", "sum", "count"]
    assert [resolve(recipe, "x", t)["topk"] for t in (0, 0.5, 1)] == [1, 2, 4]


def test_first_matching_filter_wins_and_no_match_falls_through() -> None:
    """Filters are substrings, tried in order; a level without match leaves the value to the next level."""
    text = """merge_method: ties
base_model: b
models:
- model: a
  parameters:
    weight: [{filter: q_proj, value: 1}, {filter: proj, value: 2}]
- {model: c, parameters: {weight: 7}}
parameters:
  weight: [{filter: mlp, value: 3}, {filter: "*", value: 4}]
  density: 0.25
"""
    recipe = parse(text)
    assert [resolve(recipe, n)["weight"] for n in ("l.q_proj", "l.k_proj", "l.mlp.w", "norm")] == [(1, 7), (2, 7), (3, 7), (4, 7)]
    assert resolve(recipe, "norm")["density"] == (0.25, 0.25)
    assert resolve(recipe, "norm")["lam"] == 1.0


def test_slice_settings_stand_between_source_and_recipe() -> None:
    """Precedence is source, then output slice, then recipe, then default."""
    text = """merge_method: linear
slices:
- sources: [{model: a, layer_range: [0, 2], parameters: {weight: 1}}, {model: c, layer_range: [0, 2]}]
  parameters: {weight: 2}
- sources: [{model: a, layer_range: [2, 3]}]
parameters: {weight: 3}
"""
    recipe = parse(text)
    found = [Resolver((WEIGHT,), (p.settings, recipe.settings), [s.settings for s in p.experts])("n", ["n", "n"], 0) for p in recipe.parts]
    assert found == [(("weight", (1.0, 2.0)),), (("weight", (3.0,)),)]


def test_per_model_filters_look_at_the_models_own_name() -> None:
    """In a slice a model's tensor has another layer number than the output: its filters see its own name (as mergekit)."""
    recipe = parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: layers.7., value: 9}, {value: 1}]}}]\n")
    resolver = Resolver((WEIGHT,), ({},), [recipe.parts[0].experts[0].settings])
    assert resolver("layers.0.q", ["layers.7.q"], 0) == (("weight", (9.0,)),)
    assert resolver("layers.7.q", ["layers.0.q"], 0) == (("weight", (1.0,)),)


def test_required_value_that_no_filter_gives() -> None:
    """A required parameter given only under filters is missing for the other tensors."""
    recipe = parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]\n")
    with pytest.raises(MissingValue) as caught:
        resolve(recipe, "norm")
    assert (caught.value.param, caught.value.expert) == ("weight", 0)


def test_lists_and_single_values_are_not_gradients() -> None:
    """A parameter that is a list of names keeps it; one without gradients refuses a list."""
    assert resolve(parse(TIES.format(density=1) + "parameters: {skip: [norm, head]}\n"), "x")["skip"] == ("norm", "head")
    assert "seed takes one value" in refusal(TIES.format(density=1) + "parameters: {seed: [1, 2]}\n")[0]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TIES.format(density=50), "r.yml:7:16: density must be between 0 and 1, not 50"),
        (TIES.format(density="[0.1, 3]"), "r.yml:7:22: density must be between 0 and 1, not 3"),
        (TIES.format(density=".nan"), "r.yml:7:16: density must be finite, not nan"),
        (TIES.format(density=0.5).replace("density", "densty"), "r.yml:7:7: ties has no parameter 'densty' (did you mean 'density'?)"),
        (TIES.format(density=0.5).replace("ties", "tiess"), "r.yml:1:15: unknown merge method 'tiess' (did you mean 'ties'?)"),
        (TIES.format(density=0.5) + "out_dtyp: float16\n", "r.yml:8:1: unknown key 'out_dtyp' in a recipe (did you mean 'out_dtype'?)"),
        (
            TIES.format(density=0.5) + "dtype: float64\n",
            "r.yml:8:8: dtype 'float64' is not a dtype to merge in (did you mean 'float16'?); it is one of float16, bfloat16, float32",
        ),
        (TIES.format(density="{filter: x}"), "r.yml:7:16: this setting of density has no value; write 'value: ...'"),
        (
            TIES.format(density="{fliter: x, value: 1}"),
            "r.yml:7:17: unknown key 'fliter' in a setting of density (did you mean 'filter'?); it takes filter and value",
        ),
        (TIES.format(density="[{filter: x, value: 1}, 0.5]"), "r.yml:7:40: density mixes filters and bare values; write this one as '- value: ...'"),
        (TIES.format(density="[]"), "r.yml:7:16: density is an empty list; give one value a layer group, or a single value"),
        (
            TIES.format(density=1) + "      lambda: 2\n",
            "r.yml:8:7: lambda holds for the whole merge, not for one model; move it to the recipe's own parameters",
        ),
        (
            TIES.format(density=1).replace("      weight: 1.0\n", ""),
            "r.yml:4:12: a has no weight, which ties needs; give it under this model's parameters, or for all models under the recipe's parameters",
        ),
        (TIES.format(density=1).replace("base_model: b\n", ""), "r.yml:1:15: ties needs base_model; name the model the others were fine-tuned from"),
        (TIES.format(density=1).replace("model: a", "model: b"), "r.yml:3:1: ties takes at least 1 model besides base_model, and 0 are listed"),
        (
            TIES.format(density=1).replace("model: a", "model: a+lora"),
            "r.yml:4:12: 'a+lora' names a LoRA adapter after '+'; adapters are not supported yet: merge it into its model first",
        ),
        (
            TIES.format(density=1) + "chat_template: auto\n",
            "r.yml:8:1: chat_template is not supported yet; remove it (the chat template of base_model, or of the first model, is kept)",
        ),
        (TIES.format(density=1) + "steps: [magic_wcs]\n", "r.yml:8:9: unknown step 'magic_wcs' (did you mean 'magic_wsc'?)"),
        (TIES.format(density=1) + "steps: [ties]\n", "r.yml:8:9: unknown step 'ties'; it is a merge method, not a step"),
        (
            "merge_method: magic_wsc\nmodels: [{model: a}]\n",
            "r.yml:1:15: unknown merge method 'magic_wsc'; it is a step: name a merge method here and put it under steps:",
        ),
        ("merge_method: linear\nparameters: {weight: 1}\n", "r.yml:1:1: models is missing; list the models to merge under models:"),
        ("models: [{model: a}]\n", "r.yml:1:1: merge_method is missing; 'plait methods' lists them"),
        ("merge_method: linear\nmodels: a\n", "r.yml:2:9: models must be a list; begin each item with '- '"),
        (
            "merge_method: linear\nmodels: [{model: 12, parameters: {weight: 1}}]\n",
            "r.yml:2:18: model must be a name; put it in quotes if it looks like a number",
        ),
        (
            "merge_method: linear\nmodules: {}\n",
            "r.yml:2:1: modules (one recipe for each part of a multimodal model) is not supported yet; write models: or slices:",
        ),
        ("", "r.yml:1:1: the recipe is empty; begin with merge_method, base_model and models"),
        ("- a\n", "r.yml:1:1: a recipe is a mapping; begin with merge_method, base_model and models"),
        ("a: 1\nb: 2\na: 3\n", "r.yml:3:1: the key 'a' is given twice (first on line 1)"),
        ("1: a\n", "r.yml:1:1: a key must be text; put it in quotes"),
        ("a: !!python/object:os.system x\n", "r.yml:1:4: the tag !!python/object:os.system is not allowed in a recipe; remove it"),
        ("a: &x [*x]\n", "r.yml:1:4: an alias (*name) refers to the value that contains it"),
        ("a: 1\n---\nb: 2\n", "r.yml:2:1: a second YAML document begins here; a recipe is one document, so put each recipe in its own file"),
        ("a: [1\n", "r.yml:2:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: " + "[" * 100 + "]" * 100, "r.yml:1:67: the recipe has values nested more than 64 deep"),
    ],
)
def test_one_mistake_is_one_sentence_with_its_place(text: str, expected: str) -> None:
    """Each mistake gives exactly one line: file:line:column, what is wrong, and the next step."""
    assert refusal(text) == [expected]


def test_slices_with_wrong_ranges() -> None:
    """Unequal, empty and malformed ranges are told with both places; residual_weight has no effect."""
    text = """merge_method: linear
parameters: {weight: 1}
slices:
- sources:
  - {model: a, layer_range: [0, 4]}
  - {model: c, layer_range: [2, 5]}
  residual_weight: 0.5
- sources: [{model: a, layer_range: [3, 3]}]
- sources: [{model: a, layer_range: [0, 1.5]}]
- sources: [{model: a}]
"""
    assert refusal(text) == [
        "r.yml:6:29: layer_range [2, 5] is 3 layers, but [0, 4] on line 5 is 4; all sources of a slice have the same number of layers",
        "r.yml:7:3: residual_weight has no effect (mergekit accepts and ignores it); remove it",
        "r.yml:8:37: layer_range [3, 3] holds no layer; START is at least 0 and below END, which is not included",
        "r.yml:9:37: layer_range must be two whole numbers [START, END], END not included",
        "r.yml:10:13: this source has no layer_range; write 'layer_range: [START, END]', END not included",
    ]


def test_slerp_takes_two_models_and_one_is_the_base() -> None:
    """An endpoint base must be one of the two; a single other model is merged with it, as in mergekit."""
    head = "merge_method: slerp\nbase_model: b\nparameters: {t: 0.5}\nmodels: "
    assert refusal(head + "[{model: a}, {model: c}]\n") == ["r.yml:2:13: base_model b must be one of the two models that slerp takes"]
    assert len(parse(head + "[{model: a}]\n").parts[0].experts) == 1
    assert "exactly 1 model besides base_model, and 2 are" in refusal(head + "[{model: a}, {model: b}, {model: c}]\n")[0]


def test_all_problems_are_told_at_once_in_file_order() -> None:
    """Several mistakes give several lines, sorted by place, and the same in the error's facts."""
    with pytest.raises(RecipeError) as caught:
        parse("merge_method: ties\nbase: b\nmodels:\n- model: a\n  parameters: {wieght: 1, density: 2}\ndtype: fp8\nsteps: [{parameters: {}}]\n")
    lines = str(caught.value).split("\n")
    places = [line.split(" ")[0] for line in lines]
    assert places == ["r.yml:1:15:", "r.yml:2:1:", "r.yml:4:10:", "r.yml:5:16:", "r.yml:5:36:", "r.yml:6:8:", "r.yml:7:9:"]
    assert caught.value.facts["problems"] == tuple(lines)


def test_step_without_any_base() -> None:
    """A step that works from the base needs one, in the recipe or of its own; two different ones are refused."""
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\nsteps: [magic_wsc]\n"
    assert refusal(text) == ["r.yml:3:9: the step magic_wsc needs the base; give base_model in the recipe or in this step"]
    both = TIES.format(density=1) + "steps: [{method: magic_wsc, base_model: c}]\n"
    assert "differs from b on line 2" in refusal(both)[0]


def test_alias_bomb_is_refused_quickly() -> None:
    """Aliases that expand to billions of values are refused without being expanded."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "more than 10,000 values" in refusal("\n".join(lines))[0]


@pytest.mark.parametrize(("raw", "words"), [(b"\xff\xfe\x00", "not text in UTF-8"), (b"a" * (5 << 20), "longer than 256 KiB"), (b"a: \x07", "not valid YAML")])
def test_files_that_are_no_recipes(tmp_path: Path, raw: bytes, words: str) -> None:
    """Binary, huge and damaged files end in one sentence that names the file."""
    path = tmp_path / "x.yml"
    path.write_bytes(raw)
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(path, METHODS, STEPS)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A path that is not there, or is a folder, is said plainly."""
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(RecipeError, match="cannot read the recipe"):
            load_recipe(path, METHODS, STEPS)


# -- any input -------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text("ab:-*&#'\" \n1.é", max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.*", min_size=1, max_size=4), inner, max_size=3),
    max_leaves=12,
)


def plain(node: ys.Node) -> object:
    if isinstance(node, ys.Scalar):
        return node.value
    if isinstance(node, ys.Items):
        return [plain(item) for item in node.nodes]
    return {key: plain(entry.node) for key, entry in node.entries.items()}


@settings(deadline=None)  # other work shares the machine
@given(value=_VALUES)
def test_tree_holds_what_yaml_safe_load_gives(value: object) -> None:
    """Reading with places changes no value."""
    text = yaml.safe_dump(value, allow_unicode=True)
    assert plain(ys.read_yaml(text, "f")) == yaml.safe_load(text)


@settings(deadline=None)  # other work shares the machine
@given(data=st.data())
def test_no_recipe_ends_in_a_traceback(data: st.DataObject) -> None:
    """Any mapping with a recipe's keys is accepted or refused with RecipeError, each line beginning with its place."""
    keys = ["merge_method", "base_model", "models", "slices", "parameters", "dtype", "steps", "tokenizer_source", "oops"]
    small = st.one_of(_VALUES, st.sampled_from(["ties", "linear", "magic_wsc", [{"model": "a"}], [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]]))
    value = data.draw(st.dictionaries(st.sampled_from(keys), small, max_size=7))
    assert all(line.startswith("r.yml:") for line in complaints(yaml.safe_dump(value)))


@settings(deadline=None)  # other work shares the machine
@given(text=st.text("abm: -[]{}&*!<>|%@\"'\n\t#,?é", max_size=60))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    """Arbitrary text is refused with RecipeError."""
    with pytest.raises(RecipeError):
        parse(text)
