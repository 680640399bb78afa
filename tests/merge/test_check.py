"""What a check says of the inputs of a merge, before any weight is read."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint._layout import TensorInfo
from edgepack.core.tables import format_size
from edgepack.errors import RecipeError
from edgepack.merge.check import TokenizerOptions, check
from edgepack.merge.facts import facts_by_name, facts_from, facts_of
from edgepack.merge.inputs import open_input
from edgepack.merge.of_recipe import check_merge
from edgepack.recipe.merging import Merge
from edgepack.recipe.references import Reference
from tests.support.tiny import CHAT, LLAMA3, make_model, make_tokenizer, write_gguf


@pytest.fixture
def make(tmp_path):
    """Facts of a small model called by its folder."""

    def make(name, family="llama", edit=None, card=None, **options):
        folder = tmp_path / name
        make_model(folder, family, **options)
        if edit:
            config = json.loads((folder / "config.json").read_text()) | edit
            (folder / "config.json").write_text(json.dumps(config))
        if card:
            (folder / "README.md").write_text(f"---\n{card}\n---\n")
        return facts_of(name, open_checkpoint(str(folder)))

    return make


def row(found, fact):
    (one,) = (r for r in found.rows if r.fact == fact)
    return one


def test_models_that_agree_have_no_notes(make):
    a = make("a")
    found = check([a, make("b", seed=1)], "a")
    assert found.exit_code == 0
    assert found.warnings == ()
    assert {r.verdict for r in found.rows} == {"ok"}
    found.require()
    lines = found.lines()
    assert lines[0].split() == ["a", "b"]
    assert any(line.split() == ["RoPE", "theta", "10000", "10000", "ok"] for line in lines)
    assert len(lines) == len(found.rows) + 1
    assert row(found, "tokenizer files").values == ("the same", "the same")
    assert found.tokenizer is None
    numel = sum(math.prod(info.shape) for info in a.tensors.values())
    assert row(found, "result").values[0].startswith(f"{numel / 1e6:.1f} M weights")


@pytest.mark.parametrize(
    ("options", "fact", "verdict", "note"),
    [
        ({"family": "qwen2"}, "family", "error", "a is a llama model, b a qwen2 model"),
        ({"hidden": 32}, "hidden size", "error", "64 in a, 32 in b"),
        ({"intermediate": 64}, "feed-forward size", "error", "96 in a, 64 in b"),
        ({"kv_heads": 4}, "key-value heads", "error", "2 in a, 4 in b"),
        ({"layers": 3}, "layers", "error", "2 in a, 3 in b: not as many"),
        ({"edit": {"rms_norm_eps": 1e-5}}, "norm epsilon", "warning", "1e-06 in a, 1e-05 in b"),
        ({"edit": {"max_position_embeddings": 512}}, "positions", "warning", "256 in a, 512 in b"),
        ({"rope_parameters": LLAMA3}, "RoPE scaling", "ok", ""),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "RoPE theta",
            "warning",
            "10000 in a, 500000 in b: the result has that of a",
        ),
        ({"dtype": torch.float32}, "stored as", "warning", "different types; write dtype"),
        ({"tied": False}, "head", "warning", "some heads are tied"),
        ({"rows": 520}, "vocabulary rows", "ok", ""),
    ],
)
def test_a_difference_has_its_row(make, options, fact, verdict, note):
    found = check([make("a"), make("b", **options)], "a")
    assert row(found, fact).verdict == verdict
    assert row(found, fact).note.startswith(note)
    assert len(row(found, fact).values) == 2
    is_error = verdict == "error"
    assert (found.exit_code != 0) == is_error
    if is_error:
        with pytest.raises(RecipeError, match="--check lists them|" + fact):
            found.require()
    elif note:
        assert any(fact in w and note in w for w in found.warnings)


def test_scaled_rope_in_two_models_that_differ(make):
    other = LLAMA3 | {"factor": 32.0}
    found = check([make("a", rope_parameters=LLAMA3), make("b", rope_parameters=other)], "a")
    assert row(found, "RoPE scaling").verdict == "warning"
    assert '"factor": 32.0' in row(found, "RoPE scaling").note


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def by_name(folder, name):
    """As a folder of a family that is not known."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {k: TensorInfo(tuple(file.get_slice(k).get_shape()), "BF16") for k in file.keys()}  # noqa: SIM118
    config = json.loads((folder / "config.json").read_text())
    return facts_by_name(name, config, tensors, folder, "model.layers", 2)


def test_a_family_that_is_not_known_is_compared_by_name(tmp_path):
    for name in "abc":
        make_model(tmp_path / name, intermediate=96 if name != "c" else 64)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config |= {"model_type": "novel", "rope_theta": 20000.0 if name == "b" else 10000.0}
        config.pop("rope_parameters", None)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    lost = "model.layers.1.self_attn.q_proj.weight"
    edit_tensors(tmp_path / "b", lambda tensors: tensors.pop(lost))
    a, b, c = (by_name(tmp_path / name, name) for name in "abc")
    same = check([a, by_name(tmp_path / "a", "again")], "a")
    assert same.exit_code == 0
    assert row(same, "family").note.startswith("edgepack does not know novel")
    padded = check([a], "a", options=TokenizerOptions("base", pad_to_multiple_of=64))
    assert "cannot be put into another order" in row(padded, "differing tokens").note
    assert check([a, c], "a", options=TokenizerOptions("base")).tokenizer is not None
    missing = check([a, b], "a")
    assert row(missing, "tensors").note == ("b lacks layer 1: self_attn.q_proj.weight, which a has")
    assert row(missing, "RoPE theta").verdict == "warning"
    shapes = check([a, c], "a")
    assert row(shapes, "shapes").note.startswith("layer 0: mlp.down_proj.weight is [64, 96] in a")
    assert row(shapes, "shapes").note.endswith("and 5 more")
    assert row(shapes, "feed-forward size").verdict == "error"


def test_layer_ranges_are_held_to_the_layers_that_there_are(make):
    a, b = make("a", layers=3), make("b", layers=2)
    stacked = [[("a", range(0, 3))], [("b", range(0, 2))]]
    found = check([a, b], slices=stacked)
    assert found.exit_code == 0
    assert row(found, "layers").values == ("3", "2")
    alone = check([a])
    grown = float(row(found, "result").values[0].split()[0])
    assert grown > float(row(alone, "result").values[0].split()[0])
    wrong = check([a, b], slices=[[("a", range(0, 2)), ("b", range(1, 3))]])
    assert row(wrong, "layers").note == "layer_range [1, 3] of b, which has 2 layers"
    assert wrong.exit_code == 2


def test_vocabularies_that_differ_are_an_error_until_a_tokenizer_is_chosen(make, tmp_path):
    a, b = make("a"), make("b", rows=520)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.chat_template = CHAT + " "
    tokenizer.save_pretrained(tmp_path / "b")
    b = facts_of("b", open_checkpoint(str(tmp_path / "b")))
    found = check([a, b], "a")
    assert row(found, "differing tokens").values == ("0", "1")
    assert "only b has '<|pad|>'" in row(found, "differing tokens").note
    assert "tokenizer_source: union" in row(found, "differing tokens").hint
    assert found.tokenizer is None
    with pytest.raises(RecipeError, match="the vocabularies differ in 1 token:"):
        found.require()
    found = check([a, b], "a", options=TokenizerOptions("union"))
    assert found.exit_code == 0
    assert row(found, "pad token").values == ("<|endoftext|>", "<|pad|>")
    assert row(found, "pad token").note.endswith("the result has that of a")
    assert row(found, "eos token").verdict == "ok"
    assert row(found, "chat template").values == ("no. 1", "no. 2")
    assert row(found, "chat template").verdict == "warning"
    assert found.tokenizer.ids["<|pad|>"] == len(make_tokenizer())
    chosen = check([a, b], "a", options=TokenizerOptions("union", chat_template="chatml"))
    assert row(chosen, "chat template").verdict == "ok"
    base = check([a, b], "a", options=TokenizerOptions("base"))
    assert "'<|pad|>' of b cannot be in the result" in row(base, "differing tokens").note


def test_the_same_tokens_in_other_files_need_no_choice(make, tmp_path):
    a, _ = make("a"), make("b")
    path = tmp_path / "b" / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")
    b = facts_of("b", open_checkpoint(str(tmp_path / "b")))
    found = check([a, b], "a")
    assert row(found, "differing tokens").values == ("0", "0")
    assert found.warnings == ()
    assert found.tokenizer.rows.is_identity("b", len(make_tokenizer()))


def test_a_recipe_is_checked_with_its_slices_and_tokenizer(tmp_path):
    make_model(tmp_path / "a", layers=3)
    make_model(tmp_path / "b", seed=1)
    sources = [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, 2]}]},
    ]
    rules = {
        "<|new|>": {"source": {"kind": "model_token", "model": "b", "token": "a"}},
        "<|zero|>": {"source": {"kind": "zero"}, "force": True},
        "b": {"source": "b"},
    }
    recipe = {
        "merge_method": "passthrough",
        "slices": sources,
        "dtype": "float16",
        "tokenizer": {"source": "a", "tokens": rules, "pad_to_multiple_of": 8},
    }
    merge = Merge.model_validate(recipe)
    inputs = {r: open_input(r, tmp_path) for r in merge.references()}
    found = check_merge(merge, inputs)
    assert found.exit_code == 0
    assert row(found, "layers").values == ("3", "2")
    assert found.tokenizer.rows.count == 512
    assert {"<|new|>", "<|zero|>"} <= found.tokenizer.ids.keys()
    expected = sum(
        math.prod(info.shape) for info in facts_from(inputs[Reference("a")]).tensors.values()
    ) + 64 * (512 - len(make_tokenizer()))
    assert row(found, "result").values[0] == (
        f"{expected / 1e6:.1f} M weights, {format_size(2 * expected)}"
    )
    elsewhere = Merge.model_validate({**recipe, "tokenizer": None, "tokenizer_source": "c"})
    wrong = check_merge(elsewhere, inputs)
    assert (
        row(wrong, "differing tokens").note == "tokenizer: c is not among the models of the merge"
    )


def test_a_model_without_a_tokenizer(make, tmp_path):
    a = make("a")
    make("b")
    for path in (tmp_path / "b").glob("token*"):
        path.unlink()
    (tmp_path / "b" / "chat_template.jinja").unlink(missing_ok=True)
    b = facts_of("b", open_checkpoint(str(tmp_path / "b")))
    found = check([a, b], "a")
    assert row(found, "vocabulary rows").note.startswith("b has no tokenizer")
    assert found.exit_code == 0
    asked = check([a, b], "a", options=TokenizerOptions("union"))
    assert row(asked, "vocabulary rows").verdict == "error"


def test_licences_are_those_of_the_cards(make):
    a = make("a", card="license: apache-2.0")
    b = make("b", card="license: other\nlicense_name: llama3")
    found = check([a, b, make("c")], "a")
    assert row(found, "licence").values == ("apache-2.0", "llama3", "–")
    assert row(found, "licence").note.startswith("apache-2.0 and llama3")


def test_a_gguf_merges_with_the_folder_that_it_comes_from(make, tmp_path):
    a = make("a")
    mistral = make("m", "mistral")
    path = tmp_path / "m.gguf"
    write_gguf(path, open_checkpoint(str(tmp_path / "m")), "F16")
    packed = facts_of("m.gguf", open_checkpoint(str(path)))
    found = check([mistral, packed], "m").with_memory(3_000_000)
    assert row(found, "family").verdict == "ok"
    assert row(found, "stored as").values == ("BF16", "F16")
    assert row(found, "memory of the merge").values == ("3.0 MB", "")
    assert found.as_json()["models"] == ["m", "m.gguf"]
    assert found.as_json()["ok"]
    assert row(check([a, packed], "a"), "family").verdict == "ok"
    assert row(check([a, mistral], "a"), "family").verdict == "error"
