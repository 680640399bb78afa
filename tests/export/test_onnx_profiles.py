"""Profiles: the same model for other runtimes, and what each of them asks for."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx as protos
import pytest
import torch
from safetensors.numpy import load_file, save_file

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.export.profiles import PROFILES, GraphOptions
from edgepack.model.decoder import Decoder
from edgepack.runtimes.onnx_runtime import OnnxRuntime, data_files
from tests.support.graphs import FORMATS, INT8, distance, logits, rounded, write
from tests.support.tiny import make_model

onnxruntime = pytest.importorskip("onnxruntime")

OTHERS = [name for name in PROFILES if name != "cpu"]


def options(profile="cpu", **changes):
    return GraphOptions(128, PROFILES[profile], **changes)


def model(tmp_path, family="llama", **given):
    make_model(tmp_path / "model", family, hidden=128, intermediate=256, **given)
    return open_checkpoint(str(tmp_path / "model"))


def operators(path):
    return Counter(node.op_type for node in protos.load(path, load_external_data=False).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("profile", OTHERS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_every_profile_computes_the_same(profile, family, tmp_path):
    checkpoint = model(tmp_path, family, tied=family != "qwen3")
    weights = rounded(checkpoint, "int4_g32", rank=8)
    wanted = logits(write(tmp_path / "cpu", checkpoint, weights))
    found = logits(write(tmp_path / "out", checkpoint, weights, options(profile)))
    assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_plain_lookups_find_the_same_rows(form, tmp_path):
    checkpoint = model(tmp_path)
    weights = rounded(checkpoint, form)
    path = write(tmp_path / "out", checkpoint, weights, options("mobile"))
    assert not operators(path)["GatherBlockQuantized"]
    found, wanted = logits(path), logits(write(tmp_path / "cpu", checkpoint, weights))
    assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("form", ["f16", "q4_0", "int3_g64", "int8"])
@pytest.mark.parametrize("family", ["qwen2", "phi"])
def test_float16(form, family, tmp_path):
    checkpoint = model(tmp_path, family, tied=False)
    weights = rounded(checkpoint, form, rank=8)
    path = write(tmp_path / "half", checkpoint, weights, options(half=True))
    names = {"f16": "model_fp16", "q4_0": "model_q4f16", "int3_g64": "model_q4f16"}
    assert path.stem == names.get(form, "model_quantized")
    wanted = logits(write(tmp_path / "out", checkpoint, weights))
    found = logits(path)
    assert found.dtype == np.float32
    assert 0 < distance(found, wanted) < INT8
    with OnnxRuntime(path, context=64) as runtime:
        assert runtime._inputs["past_key_values.0.key"].type == "tensor(float16)"
        said = list(runtime.generate([5, 6, 7], 8))
    assert len(said) > 1


@pytest.mark.slow
def test_only_the_last_logits_where_they_are_asked_for(tmp_path):
    checkpoint = model(tmp_path)
    path = write(tmp_path / "out", checkpoint, rounded(checkpoint, "q4_0"), options("web"))
    with OnnxRuntime(path, context=64) as runtime:
        everything = runtime.logits([5, 6, 7, 8])
        ids = np.array([[5, 6, 7, 8]])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feed |= {name: runtime._empty(name, 1).numpy() for name in runtime._past}
        for count in (np.array(2), np.array([2])):  # Transformers.js gives one, genai the other
            feed["num_logits_to_keep"] = count
            (last,) = runtime._session.run(["logits"], feed)
            assert last.shape[1] == 2
            assert np.allclose(last[0], everything[-2:], atol=1e-5)


@pytest.mark.slow
def test_factors_of_a_page_are_inputs(tmp_path):
    checkpoint = model(tmp_path)
    weights = rounded(checkpoint, "q4_0", rank=4)
    path = write(tmp_path / "out", checkpoint, weights, options("web"))
    held = {t.name for t in protos.load(path, load_external_data=False).graph.initializer}
    given = [name for name in OnnxRuntime(path)._inputs if ".lora_" in name]
    assert len(given) == 2 * 7 * checkpoint.dimensions.num_hidden_layers
    assert not held & set(given)
    factors = tmp_path / "out/factors.safetensors"
    assert factors in data_files(path)
    assert "factors.safetensors" in (tmp_path / "out/README.md").read_text()
    assert not (tmp_path / "out/factors.onnx_adapter").exists()
    whole = load_file(factors)
    one = next(iter(whole))
    save_file(whole | {one: whole[one][:-1]}, factors)
    with pytest.raises(EdgepackError, match="does not fit the graph"):
        logits(path)
    factors.write_bytes(factors.read_bytes()[:100])
    with pytest.raises(EdgepackError, match=r"cannot read .*factors\.safetensors"):
        OnnxRuntime(path)
    factors.unlink()
    with pytest.raises(EdgepackError, match=r"takes .*lora_A, which nothing here gives"):
        OnnxRuntime(path)


@pytest.mark.slow
def test_files_of_a_page_are_small(tmp_path):
    assert PROFILES["web"].chunk == PROFILES["webgpu"].chunk == 500_000_000
    checkpoint = model(tmp_path)
    weights = rounded(checkpoint, "q4_0")
    small = replace(options("web"), profile=replace(PROFILES["web"], chunk=100_000))
    path = write(tmp_path / "out", checkpoint, weights, small)
    files = sorted(path.parent.glob("*_data*"))
    config = json.loads((tmp_path / "out/config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": "q4", "use_external_data_format": {path.name: len(files)}}
    assert len(files) > 1
    largest = max(w.Q.codes.numel() for w in weights.values())
    assert all(f.stat().st_size <= max(100_000, 2 * largest) for f in files)
    assert np.abs(logits(path) - logits(write(tmp_path / "cpu", checkpoint, weights))).max() < 1e-4


def recipe(tmp_path, form, profile, **more):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 99)
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": form, "embeddings": form, **more},
        "export": {"measure": {"tokens": 128, "context": 64}, "onnx": {"profile": profile}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(given))
    return path


@pytest.mark.slow
def test_a_recipe_names_the_profile(tmp_path):
    model(tmp_path)
    built = edgepack.build(recipe(tmp_path, "q4_0", "mobile"), "onnx", out=tmp_path / "out")
    assert built.manifest["requires"].startswith("ONNX Runtime 1.19 or later")
    assert "ONNX Runtime 1.19 or later" in (built.folder / "report.md").read_text()
    assert "reads one row at a time" in (built.folder / "README.md").read_text()
    assert not built.manifest["warnings"][1:]  # but for few tokens
    path = recipe(tmp_path, "q4_0", "web", rank=4, factors="f16")
    built = edgepack.build(path, "onnx", out=tmp_path / "web")
    assert built.manifest["measured"]["results"]["edgepack"]["kl_mean"] > 0
    size = sum(p.stat().st_size for p in (built.folder / "onnx").iterdir())
    size += (built.folder / "factors.safetensors").stat().st_size
    assert built.manifest["measured"]["results"]["edgepack"]["bytes"] == size


@pytest.mark.slow
def test_a_budget_counts_factors_that_are_inputs(tmp_path):
    checkpoint = model(tmp_path)
    from edgepack.core.weights import WeightFormat
    from edgepack.export import onnx

    weights = rounded(checkpoint, "q4_0", rank=4)
    path = write(tmp_path / "out", checkpoint, weights, options("web"))
    parts = {
        n: WeightFormat(w.Q.format, w.rank, w.L and w.L.format, w.R and w.R.format)
        for n, w in weights.items()
    }
    files = sum(p.stat().st_size for p in [path, *data_files(path)])
    expected = onnx.files_size(checkpoint, parts, options("web"))
    assert 0 <= expected - files < 0.02 * files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "profile", "said"),
    [("q4_0", "web", "wasm has no fast product"), ("int8", "webgpu", "no product of 8-bit")],
)
def test_formats_that_a_profile_runs_slowly_are_named(form, profile, said, tmp_path):
    model(tmp_path)
    made = edgepack.plan(recipe(tmp_path, form, profile), "onnx")
    assert any(said in warning for warning in made.warnings)
    other = edgepack.plan(recipe(tmp_path, form, "cpu"), "onnx")
    assert not any(said in warning for warning in other.warnings)


@pytest.mark.slow
def test_left_padding_is_the_default_and_mobile_is_without(tmp_path):
    checkpoint = model(tmp_path)
    weights = rounded(checkpoint, "q4_0")
    found = []
    for profile, count in (("cpu", 11), ("mobile", 9)):
        path = write(tmp_path / profile, checkpoint, weights, options(profile))
        found.append(logits(path))
        graph = protos.load(path, load_external_data=False).graph
        inputs = [len(n.input) for n in graph.node if n.op_type == "GroupQueryAttention"]
        assert set(inputs) == {count}
    assert np.abs(found[0] - found[1]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", ["q4_0", "int4_g32", "q8_0", "int4_g128"])
def test_qdq(form, half, tmp_path, monkeypatch):
    """The same codes in another layout: ONNX Runtime makes MatMulNBits of it by itself."""
    checkpoint = model(tmp_path, "qwen2", tied=False)
    weights = rounded(checkpoint, form, rank=32, factors="q8_0")
    path = write(tmp_path / "out", checkpoint, weights, options(half=half, qdq=True))
    plain = write(tmp_path / "plain", checkpoint, weights, options(half=half))
    count = operators(plain)["MatMulNBits"]
    assert count > 3 * 7
    assert operators(path)["DequantizeLinear"] == count
    assert not operators(path)["MatMulNBits"]
    found, wanted = logits(path), logits(plain)
    assert np.abs(found - wanted).max() < 1e-4 or (half and distance(found, wanted) < INT8)
    sizes = [sum(f.stat().st_size for f in p.parent.iterdir()) for p in (path, plain)]
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[1]
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimized.onnx")["MatMulNBits"] == count


@pytest.mark.slow
def test_qdq_leaves_what_has_no_type(tmp_path):
    checkpoint = model(tmp_path)
    weights = rounded(checkpoint, "int3_g64")
    path = write(tmp_path / "out", checkpoint, weights, options(qdq=True))
    assert not operators(path)["DequantizeLinear"]
    tied = rounded(checkpoint, "q4_0")
    path = write(tmp_path / "tied", checkpoint, tied, options(qdq=True))
    assert operators(path)["MatMulNBits"] == 1  # the head, which is the table
    assert np.abs(logits(path) - logits(write(tmp_path / "c", checkpoint, tied))).max() < 1e-4


@pytest.mark.slow
def test_8_bits_by_rows_take_factors_too(tmp_path):
    """They correct next to nothing, and are there to be trained in the page."""
    checkpoint = model(tmp_path)
    path = recipe(tmp_path, "int8", "web", rank=4, factors="f16")
    built = edgepack.build(path, "onnx", out=tmp_path / "out")
    weights = built.manifest["weights"]
    name = "model.layers.0.mlp.down_proj.weight"
    assert weights[name]["method"] == "corrected"
    assert 0 < weights[name]["error"] < weights[name]["error_plain"]
    assert (built.folder / "factors.safetensors").exists()
    with OnnxRuntime(built.base, context=64) as runtime:
        found = runtime.logits([5, 6, 7, 8])
    wanted = Decoder(checkpoint).logits(torch.tensor([[5, 6, 7, 8]]))[0].numpy()
    assert distance(found, wanted) < INT8
