"""Which stages are done again when something changes: exactly those that depend on it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import edgepack
from edgepack.recipe.sections import Recipe
from tests.support.fine_tunes import write_adapter
from tests.support.tiny import TEXT, make_model

BASE = {
    "model": "model",
    "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
    "compress": {
        "format": "q4_0",
        "rank": 4,
        "damping": [0.1],
        "iterations": 1,
        "overrides": {"*.v_proj": {"format": "q8_0", "rank": 2, "factors": "f16"}},
    },
    "recover": {"steps": 4},
    "export": {"measure": {"tokens": 256, "context": 64}},
}
SIZED = {**BASE, "compress": {"bits_per_weight": 6, "damping": [0.1], "iterations": 1}}
SELF = {**BASE, "calibrate": {"tokens": 512, "sequence_length": 64}}
SLICED = {
    **BASE,
    "slice": {"sparsity": 0.4, "round_to": 32, "allow_growth": True, "recover": {"steps": 4}},
}
PER_BLOCK = {
    **BASE,
    "slice": {
        "method": "per_block",
        "schedule": {"attention": [0.2, 0.4], "mlp": [0.2, 0.4]},
        "round_to": 32,
        "allow_growth": True,
    },
}
COMPENSATED = {**BASE, "compress": BASE["compress"] | {"compensate": {"steps": 2}}}
MERGED = {**BASE, "export": BASE["export"] | {"merge_factors": True}}
JOINED = {key: part for key, part in BASE.items() if key != "model"} | {
    "merge": {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in ("model", "other")],
    }
}
"""Merged."""
WEIGHTED = JOINED | {
    "merge": JOINED["merge"]
    | {
        "weighted": "fisher",
        "calibrate": {"tokens": 512, "sequence_length": 64},
        "models": [
            {"model": "model", "parameters": {"weight": 0.5}, "text": "text.txt"},
            {"model": "other", "parameters": {"weight": 0.5}},
        ],
    }
}
STACKED = JOINED | {
    "merge": {
        "merge_method": "task_arithmetic",
        "base_model": "other",
        "parameters": {"weight": 0.5},
        "tokenizer": {"source": "base", "tokens": {"a": {"source": "model"}}},
        "slices": [
            {
                "base_model": "other",
                "sources": [
                    {"model": "model", "layer_range": [0, 2]},
                    {"model": "other", "layer_range": [0, 2]},
                ],
            }
        ],
    }
}
ADAPTED = {**BASE, "model": {"base": "model", "adapter": "adapter"}}
TUNED = {**BASE, "finetune": {"data": "notes.jsonl", "steps": 4}}
RECIPES = {
    "plain": (BASE, "gguf"),
    "sized": (SIZED, "gguf"),
    "self": (SELF, "gguf"),
    "sliced": (SLICED, "gguf"),
    "per_block": (PER_BLOCK, "onnx"),
    "onnx": (BASE, "onnx"),
    "compensated": (COMPENSATED, "gguf"),
    "merged": (MERGED, "gguf"),
    "joined": (JOINED, "gguf"),
    "stacked": (STACKED, "gguf"),
    "weighted": (WEIGHTED, "gguf"),
    "tuned": (TUNED, "gguf"),
    "adapted": (ADAPTED, "gguf"),
}

CHAIN = ("merge", "grids", "text", "slice", "rft", "calibrate", "allocate", "decompose", "recover")
CHAIN += ("merge_factors", "export", "measure")
"""Every stage but `check`, each made of those before it."""
GRIDS_AND = {name: {"grids", *CHAIN[i:]} for i, name in enumerate(CHAIN)}

ONE, OTHER = ({"model": name, "parameters": {"weight": 0.5}} for name in ("model", "other"))
PART = STACKED["merge"]["slices"][0]
SOURCES = PART["sources"]
MERGES = [
    (
        "merge_method",
        "joined",
        {"merge_method": "karcher", "models": [{"model": "model"}, {"model": "other"}]},
    ),
    ("models.model", "joined", {"models": [OTHER, ONE]}),
    ("models.parameters", "joined", {"models": [ONE, {**OTHER, "parameters": {"weight": 1}}]}),
    ("parameters", "joined", {"parameters": {"normalize": False}}),
    ("base_model", "joined", "other"),
    ("name", "joined", "joined"),
    ("dtype", "joined", "float32"),
    ("out_dtype", "joined", "float16"),
    ("tokenizer_source", "joined", "union"),
    ("chat_template", "joined", "chatml"),
    (
        "slices.sources.model",
        "stacked",
        {"slices": [{"sources": SOURCES[::-1], "base_model": "model"}]},
    ),
    (
        "slices.sources.layer_range",
        "stacked",
        {
            "slices": [
                {**PART, "sources": [{**source, "layer_range": [0, 1]} for source in SOURCES]}
            ]
        },
    ),
    (
        "slices.sources.parameters",
        "stacked",
        {
            "slices": [
                {**PART, "sources": [{**SOURCES[0], "parameters": {"weight": 1}}, SOURCES[1]]}
            ]
        },
    ),
    ("slices.base_model", "stacked", {"slices": [{**PART, "base_model": "model"}]}),
    ("slices.parameters", "stacked", {"slices": [{**PART, "parameters": {"lambda": 2}}]}),
    ("slices.residual_weight", "stacked", {"slices": [{**PART, "residual_weight": 1.0}]}),
    ("tokenizer.source", "stacked", {"tokenizer": {"source": "union"}}),
    (
        "tokenizer.tokens.source",
        "stacked",
        {"tokenizer": {"source": "base", "tokens": {"a": {}}}},
    ),
    (
        "tokenizer.tokens.force",
        "stacked",
        {"tokenizer": {"source": "base", "tokens": {"a": {"source": "model", "force": True}}}},
    ),
    (
        "tokenizer.pad_to_multiple_of",
        "stacked",
        {"tokenizer": {"source": "base", "pad_to_multiple_of": 64}},
    ),
]
"""Option of a merge, in which recipe, and another value (or other keys of the merge)."""
OF_FILE, OF_SELF = "calibrate of model", {"text of other", "calibrate of other"}
"""Stages of a weighted merge, for a model with a text and for one that writes its own."""
AFTER = {"check", *CHAIN}
OPTIONS = {
    "merge.weighted": [
        (
            "weighted",
            {"weighted": None, "calibrate": None, "models": [ONE, OTHER]},
            {*AFTER, OF_FILE, *OF_SELF},
        )
    ],
    "merge.models.text": [
        ("weighted", {"models": [{**ONE, "text": "other.txt"}, OTHER]}, {*AFTER, OF_FILE})
    ],
    "merge.calibrate.objective": [("weighted", "model", {*AFTER, OF_FILE, "calibrate of other"})],
    "merge.calibrate.tokens": [("weighted", 1024, {*AFTER, OF_FILE, *OF_SELF})],
    "merge.calibrate.held_out": [("weighted", 0.2, {*AFTER, OF_FILE, *OF_SELF})],
    "merge.calibrate.sequence_length": [("weighted", 32, {*AFTER, OF_FILE, *OF_SELF})],
    "merge.calibrate.seed": [("weighted", 1, {*AFTER, OF_FILE, *OF_SELF})],
    "model": [("plain", "other", {"check", *CHAIN})],
    "model.base": [("adapted", "other", {"check", *CHAIN})],
    "model.adapter": [
        ("adapted", "another", {"check", *CHAIN}),
        ("adapted", ["adapter", "another"], {"check", *CHAIN}),
    ],
    **{f"merge.{option}": [(name, value, {"check", *CHAIN})] for option, name, value in MERGES},
    "slice.method": [("sliced", "per_block", "slice", "checkpoint")],
    "slice.width": [("sliced", {"width": 32, "sparsity": None, "round_to": None}, set())],
    "slice.sparsity": [("sliced", 0.1, "slice")],
    "slice.schedule.attention": [("per_block", [0.6, 0.6], "slice")],
    "slice.schedule.mlp": [("per_block", [0.6, 0.6], "slice")],
    "slice.slice_head": [("per_block", True, "slice")],
    "slice.round_to": [("sliced", 64, "slice")],
    "slice.covariance": [("sliced", "raw", "slice")],
    "slice.orientation": [("sliced", "random", "slice")],
    "slice.seed": [("sliced", 1, "slice")],
    "slice.recover.steps": [("sliced", 8, "rft")],
    "slice.recover.tokens": [("sliced", 512, "rft")],
    "slice.recover.learning_rate": [("sliced", 0.01, "rft")],
    "slice.recover.evaluate_every": [("sliced", 2, "rft")],
    "slice.recover.patience": [("sliced", 1, "rft")],
    "slice.recover.seed": [("sliced", 1, "rft")],
    "slice.recover.rank": [("sliced", 8, "rft")],
    "calibrate.source": [("plain", "other.txt", "calibrate"), ("sliced", "other.txt", "slice")],
    "calibrate.objective": [("plain", "guided", "calibrate"), ("self", "layer", "calibrate")],
    "calibrate.tokens": [("plain", 1024, "calibrate"), ("self", 1024, "text")],
    "calibrate.held_out": [("plain", 0.2, "calibrate"), ("self", 0.2, "text")],
    "calibrate.sequence_length": [("plain", 32, "calibrate"), ("self", 32, "text")],
    "calibrate.seed": [("plain", 1, "calibrate"), ("self", 1, "text"), ("sliced", 1, "slice")],
    "compress.bits_per_weight": [("sized", 5, "decompose")],
    "compress.target_size": [
        ("sized", {"target_size": "150kB", "bits_per_weight": None}, "decompose")
    ],
    "compress.candidates": [("sized", ["q4_0", "q8_0"], GRIDS_AND["allocate"])],
    "compress.ranks": [("sized", [0, 2], {"allocate"})],
    "compress.format": [("plain", "q5_0", "decompose")],
    "compress.rank": [("plain", 8, "decompose"), ("merged", 8, "decompose")],
    "compress.factors": [("plain", "q8_0", "decompose")],
    "compress.embeddings": [("plain", "q4_0", "decompose")],
    "compress.head": [("plain", "q4_0", "decompose")],
    "compress.iterations": [("plain", 2, "decompose"), ("sized", 2, "decompose")],
    "compress.damping": [
        ("plain", [0.2], "decompose"),
        ("plain", [0.1, 0.2], "decompose"),
        ("sized", [0.2], "allocate"),
    ],
    "compress.exact": [
        ("plain", "ignore", {"grids"}),
        ("sized", "ignore", {"grids", "allocate"}),
        ("plain", "demand", {"grids"}),
    ],
    "compress.experimental_types": [("plain", True, {"grids"})],
    "compress.pad_width": [("plain", 256, GRIDS_AND["calibrate"])],
    "compress.rotate": [("plain", "hadamard", GRIDS_AND["calibrate"])],
    "compress.compensate.steps": [("compensated", 3, "decompose"), ("plain", 2, "decompose")],
    "compress.compensate.tokens": [("compensated", 256, "decompose")],
    "compress.compensate.learning_rate": [("compensated", 0.01, "decompose")],
    "compress.compensate.seed": [("compensated", 1, "decompose")],
    "compress.overrides.*.v_proj.format": [("plain", "q4_0", "decompose")],
    "compress.overrides.*.v_proj.rank": [("plain", 3, "decompose")],
    "compress.overrides.*.v_proj.factors": [("plain", "q8_0", "decompose")],
    "recover.source": [("plain", "other.txt", "recover"), ("self", "text.txt", "recover")],
    "recover.tokens_total": [("plain", 1024, "recover"), ("self", 1024, "recover")],
    "recover.steps": [("plain", 8, "recover"), ("merged", 8, "recover")],
    "recover.tokens": [("plain", 512, "recover")],
    "recover.learning_rate": [("plain", 0.01, "recover")],
    "recover.evaluate_every": [("plain", 2, "recover")],
    "recover.patience": [("plain", 1, "recover")],
    "recover.seed": [("plain", 1, "recover")],
    "recover.train": [("plain", ["scales"], "recover")],
    "export.onnx.profile": [("onnx", "mobile", "export"), ("plain", "mobile", set())],
    "export.onnx.activations": [("onnx", "float16", "export")],
    "export.onnx.qdq": [("onnx", True, "export")],
    "export.merge_factors": [("plain", True, "export"), ("merged", False, "merge_factors")],
    "export.onnx.adapters": [("onnx", True, "export")],
    "export.onnx.context": [("onnx", 64, "export")],
    "export.measure.text": [("plain", "other.txt", "measure")],
    "export.measure.tokens": [("plain", 128, "measure"), ("plain", 0, "measure")],
    "export.measure.context": [("plain", 128, "measure")],
    "export.measure.stock": [("plain", False, "measure")],
    "export.measure.reference": [("plain", "streamed", "measure")],
    "finetune.data": [("tuned", "other.jsonl", {"finetune"})],
    "finetune.validation": [("tuned", "other.jsonl", {"finetune"})],
    "finetune.mode": [("tuned", "factors", {"finetune"})],
    "finetune.r": [("tuned", 4, {"finetune"})],
    "finetune.lora_alpha": [("tuned", 8, {"finetune"})],
    "finetune.lora_dropout": [("tuned", 0.1, {"finetune"})],
    "finetune.init_lora_weights": [("tuned", "pissa", {"finetune"})],
    "finetune.target_modules": [("tuned", ["q_proj"], {"finetune"})],
    "finetune.layers_to_transform": [("tuned", [1], {"finetune"})],
    "finetune.learning_rate": [("tuned", 0.01, {"finetune"})],
    "finetune.weight_decay": [("tuned", 0.1, {"finetune"})],
    "finetune.warmup_ratio": [("tuned", 0.2, {"finetune"})],
    "finetune.clip": [("tuned", 2.0, {"finetune"})],
    "finetune.epochs": [("tuned", 2, {"finetune"})],
    "finetune.steps": [("tuned", 9, {"finetune"})],
    "finetune.batch_size": [("tuned", 2, {"finetune"})],
    "finetune.sequence_length": [("tuned", 128, {"finetune"})],
    "finetune.held_out": [("tuned", 0.2, {"finetune"})],
    "finetune.evaluate_every": [("tuned", 5, {"finetune"})],
    "finetune.patience": [("tuned", 2, {"finetune"})],
    "finetune.replay": [("tuned", 1.0, {"finetune"})],
    "finetune.skip_bad_rows": [("tuned", True, {"finetune"})],
    "finetune.arithmetic": [("tuned", "int4", {"finetune"})],
    "finetune.optimizer_states": [("tuned", "int8", {"finetune"})],
    "finetune.activations": [("tuned", "disk", {"finetune"})],
    "finetune.memory": [("tuned", "2GB", {"finetune"})],
    "finetune.seed": [("tuned", 1, {"finetune"})],
}
"""Option → (recipe, new value, the stage from which on all are other ones, or exactly which; the
target if it is another)."""
IN_NO_KEY = {
    "calibrate.keep": "whether H stays on disk: results are the same bytes",
    "slice.allow_growth": "allows what is otherwise refused, and changes nothing",
    "compress.fallback": "leads to formats, which are in the key; where all fit, to nothing",
    "export.name": "the name of the output folder",
    "finetune.name": "the name of the adapter's folder",
}


def options(model: type[BaseModel] = Recipe, place: str = "") -> Iterator[str]:
    """Every option that a recipe has."""
    for name, field in model.model_fields.items():
        sections = [kind for kind in kinds(field.annotation) if issubclass(kind, BaseModel)]
        glob = "*.v_proj." if name == "overrides" else ""
        for section in sections:
            yield from options(section, f"{place}{name}.{glob}")
        if not sections or place + name == "model":  # a name, or a section
            yield place + name


def kinds(annotation: object) -> Iterator[type]:
    """The types that an annotation names."""
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from kinds(argument)


def test_every_option_of_a_recipe_is_tried_or_the_table_says_why_not():
    known = list(options())
    assert len(known) > 50
    assert {*OPTIONS, *IN_NO_KEY} == set(known)
    assert not OPTIONS.keys() & IN_NO_KEY.keys()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_model(folder / "model", tied=False)
    make_model(folder / "other", tied=False, seed=1)
    for name, seed in (("adapter", 1), ("another", 2)):
        write_adapter(folder / name, "model.layers.0.mlp.up_proj", (96, 64), seed=seed)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    (folder / "other.txt").write_text("\n".join(reversed(TEXT * 30)))
    for name, answer in (("notes", "a fox"), ("other", "a dog")):
        row = {"prompt": "who?", "completion": answer}
        (folder / f"{name}.jsonl").write_text(json.dumps(row))
    return folder


def keys(place: Path, recipe: dict, target: str = "gguf") -> dict[str, str]:
    """Stage → key, as a plan has them."""
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return {stage.label: stage.key for stage in edgepack.plan(path, target).stages}


def changed(recipe: dict, key: str, value: object) -> dict:
    """The recipe with another value at a key, or with several beside it where they are a dict."""
    recipe = json.loads(json.dumps(recipe))
    *sections, last = key.replace("*.v_proj", "*|v_proj").split(".")
    if sections[:1] == ["merge"] and isinstance(value, dict):
        sections = ["merge"]
    inner = recipe
    for section in sections:
        inner = inner.setdefault(section.replace("|", "."), {})
    inner.update(value if isinstance(value, dict) else {last: value})
    return recipe


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Stages of `before` whose key is no longer the same."""
    return {name for name, key in before.items() if after.get(name) != key}


TRIED = [(option, *change) for option, changes in OPTIONS.items() for change in changes]


@pytest.mark.slow
@pytest.mark.parametrize("tried", TRIED, ids=[f"{t[1]}-{t[0]}-{t[2]}" for t in TRIED])
def test_an_option_is_in_the_keys_of_all_that_depends_on_it(place, tried):
    option, name, value, wanted, *others = tried
    recipe, target = RECIPES[name]
    target = others[0] if others else target
    if target == "checkpoint":
        recipe = {key: part for key, part in recipe.items() if key not in ("compress", "recover")}
    before = keys(place, recipe, target)
    after = keys(place, changed(recipe, option, value), target)
    if isinstance(wanted, str):
        wanted = set(CHAIN[CHAIN.index(wanted) :])
    assert moved(before, after) == wanted & before.keys()
    assert keys(place, recipe, target) == before


HARMLESS = {
    "slice.allow_growth": True,
    "compress.fallback": "nearest",
    "export.name": "x",
    "finetune.name": "x",
    "calibrate.keep": False,
}
"""Options in no key → another value."""


@pytest.mark.slow
@pytest.mark.parametrize("option", list(HARMLESS))
def test_what_is_in_no_key_changes_none(place, option):
    recipe = {**TUNED, "slice": {"width": 32}} if option.startswith("slice") else TUNED
    before = keys(place, recipe)
    assert before == keys(place, changed(recipe, option, HARMLESS[option]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "sized", "sliced"])
def test_another_text_is_in_every_key_whatever_its_name(place, name):
    """The file's content counts, not its path."""
    recipe, _ = RECIPES[name]
    before = keys(place, recipe)
    kept = (place / "text.txt").read_text()
    try:
        (place / "text.txt").write_text(kept.replace("fox", "cat"))
        assert moved(before, keys(place, recipe)) == set(before) - {"check", "grids"}
    finally:
        (place / "text.txt").write_text(kept)
    shutil.copy(place / "text.txt", place / "copy.txt")
    assert keys(place, changed(recipe, "calibrate.source", "copy.txt")) == before
