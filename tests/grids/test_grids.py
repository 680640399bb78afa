"""Models whose weights already lie on a grid: built without an error, from a recipe to a file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import edgepack
from edgepack import formats
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.save import DTYPES
from edgepack.errors import RecipeError
from edgepack.formats._exact import recover
from tests.support.tiny import TEXT, make_model, write_gguf

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def on_grids(folder, fmt="q4_0", embeddings="q8_0", dtype=torch.bfloat16, off=()):
    """A model whose matrices were rounded to these types and stored as floats; those of `off` are
    on no grid."""
    make_model(folder, dtype=dtype)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, W in tensors.items():
        if W.dim() == 2 and name not in off:
            kind = formats.get(embeddings if name == EMBEDDING else fmt)
            tensors[name] = kind.quantize(W.float()).dequantize().to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def write_recipe(folder, compress, **more):
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    calibrate = {"source": "text.txt", "tokens": 512, "sequence_length": 64}
    export = {"measure": {"tokens": 0}}
    recipe = {"model": "model", "calibrate": calibrate, "compress": compress, "export": export}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe | more))
    return path


def built(folder, compress, target="gguf", **more):
    options = {key: more.pop(key) for key in ("experimental_types",) if key in more}
    recipe = write_recipe(folder, {"damping": [0.1], "iterations": 1} | compress, **more)
    return edgepack.build(recipe, target, out=folder / "out", force=True, **options)


def methods(artifact):
    return {name: about["method"] for name, about in artifact.manifest["weights"].items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_a_model_on_grids_is_taken_bit_for_bit(tmp_path, dtype):
    on_grids(tmp_path / "model", dtype=dtype)
    artifact = built(tmp_path, {"format": "q4_0", "embeddings": "q8_0", "rank": 4})
    source, file = open_checkpoint(str(tmp_path / "model")), open_checkpoint(str(artifact.base))
    for name, about in artifact.manifest["weights"].items():
        assert about["method"] == "exact"
        assert (about["error"], about["error_plain"], about["rank"]) == (0.0, 0.0, 0)
        assert file.specs[name].dtype == about["formats"]["Q"].upper()
        assert torch.equal(file.tensor(name).to(dtype), source.tensor(name).to(dtype))
    assert artifact.factors is None  # nothing is left for L·R
    grids = artifact.manifest["grids"]
    assert {name: one["weights"] for name, one in grids["types"].items()} == {"q4_0": 14, "q8_0": 1}
    assert grids["weights"] == 15
    report = (artifact.folder / "report.md").read_text()
    assert "15 of 15 matrices of the source (100.0 % of the numbers)" in report
    assert "- exact: taken as it is" in report


def test_a_dequantized_gguf_is_taken_too(tmp_path):
    on_grids(tmp_path / "hf", "q4_1")
    write_gguf(tmp_path / "model.gguf", open_checkpoint(str(tmp_path / "hf")), "BF16")
    artifact = built(tmp_path, {"format": "q4_1"}, model="model.gguf")
    assert set(methods(artifact).values()) == {"exact"}
    source = open_checkpoint(str(tmp_path / "model.gguf"))
    file = open_checkpoint(str(artifact.base))
    for name in methods(artifact):
        assert torch.equal(file.tensor(name).bfloat16(), source.tensor(name).bfloat16())


def test_another_format_is_kept_and_the_grid_is_told(tmp_path):
    on_grids(tmp_path / "model")
    artifact = built(tmp_path, {"format": "q4_1"})
    assert {about["formats"]["Q"] for about in artifact.manifest["weights"].values()} == {
        "q4_1",
        "q8_0",
    }
    (line,) = (w for w in artifact.manifest["warnings"] if w.startswith("compress.exact"))
    assert "11 more lie exactly on the grid of q4_0, and stored as q4_1" in line


def test_exact_types_are_preferred_and_others_named(tmp_path):
    on_grids(tmp_path / "model", off=[DOWN])
    artifact = built(tmp_path, {"format": "q6_k", "fallback": "nearest", "exact": "prefer"})
    found = methods(artifact)
    assert found.pop(DOWN) != "exact"
    assert set(found.values()) == {"exact"}
    assert artifact.manifest["weights"][DOWN]["formats"]["Q"] != "q4_0"
    assert (
        f"compress.exact: {DOWN} lies on no grid, and compressed as the recipe says"
        in (artifact.manifest["warnings"])
    )


def test_demanded_weights_on_no_grid_end_the_build_by_name(tmp_path):
    on_grids(tmp_path / "model", off=[DOWN])
    with pytest.raises(RecipeError, match=f"compress.exact: demand: {DOWN} lies on no grid of"):
        built(tmp_path, {"exact": "demand"})
    excepted = {"exact": "demand", "overrides": {"*.1.mlp.down_proj": {"format": "f16"}}}
    artifact = built(tmp_path, excepted)
    assert artifact.manifest["weights"][DOWN]["formats"]["Q"] == "f16"
    assert set(artifact.manifest["stages"]) == {"check", "grids", "decompose", "export", "measure"}
    with pytest.raises(RecipeError, match="demand leaves no choice for bits_per_weight"):
        built(tmp_path, {"exact": "demand", "bits_per_weight": 5})


def test_a_size_may_choose_an_exact_type(tmp_path):
    on_grids(tmp_path / "model")
    assert "q4_0" not in edgepack.plan(write_recipe(tmp_path, {})).target.ladder
    ample = built(tmp_path, {"bits_per_weight": 7})
    assert set(methods(ample).values()) == {"exact"}
    assert ample.manifest["allocation"]["expected_kl"] == 0
    assert ample.manifest["bits_per_weight"]["all"] < 7
    small = built(tmp_path, {"bits_per_weight": 4})
    used = {about["formats"]["Q"] for about in small.manifest["weights"].values()}
    assert "q4_0" in used
    assert len(used) > 1
    assert small.manifest["allocation"]["expected_kl"] > 0


def test_ignored_grids_are_not_looked_for(tmp_path):
    on_grids(tmp_path / "model")
    artifact = built(tmp_path, {"format": "q4_0", "exact": "ignore"})
    assert "grids" not in artifact.manifest["stages"]
    assert artifact.manifest["grids"] is None
    assert "exact" not in methods(artifact).values()


def test_a_changed_model_has_no_grids(tmp_path):
    on_grids(tmp_path / "model")
    plan = edgepack.plan(write_recipe(tmp_path, {"format": "q4_0", "rotate": "hadamard"}))
    assert "grids" not in [stage.name for stage in plan.stages]
    recipe = write_recipe(tmp_path, {"rotate": "hadamard", "exact": "prefer"})
    with pytest.raises(RecipeError, match="takes its weights off every grid"):
        edgepack.plan(recipe)


@pytest.mark.parametrize("fmt", ["int4_g32", "q4_0", "int2_g32"])
def test_grids_of_onnx_are_taken(tmp_path, fmt):
    pytest.importorskip("onnx")
    on_grids(tmp_path / "model", fmt, "int8")
    artifact = built(tmp_path, {"exact": "demand"}, "onnx")
    about = artifact.manifest["weights"]
    assert set(methods(artifact).values()) == {"exact"}
    assert {a["formats"]["Q"] for a in about.values()} == {fmt, "int8"}


def test_random_models_lie_on_no_grid(tmp_path):
    make_model(tmp_path / "model")
    artifact = built(tmp_path, {"format": "q4_0"})
    assert artifact.manifest["grids"]["types"] == {}
    text = (artifact.folder / "report.md").read_text()
    assert "no matrix of the source lies on a format's grid" in text


@pytest.mark.parametrize("name", ["iq2_nl", "iq3_nl", "nvfp4"])
def test_experimental_types_need_to_be_allowed(tmp_path, name):
    make_model(tmp_path / "model")
    with pytest.raises(RecipeError, match=f"compress.format: {name} is an experimental") as error:
        built(tmp_path, {"format": name})
    assert "--experimental-types" in str(error.value.hint)
    with pytest.raises(RecipeError, match=r"compress\.candidates"):
        built(tmp_path, {"bits_per_weight": 5, "candidates": [name, "q8_0"]})
    artifact = built(
        tmp_path,
        {"format": name, "overrides": {"*down*": {"format": "q4_0"}}},
        experimental_types=True,
    )
    assert artifact.manifest["recipe"]["compress"]["experimental_types"]
    assert any(line.startswith(f"{name}: ") for line in artifact.manifest["warnings"])
    W = open_checkpoint(str(tmp_path / "model")).tensor(DOWN)
    assert recover(W, torch.bfloat16, formats.get(name)) is None
