"""What a file can hold and what it must not: values beyond float16, NaN and infinities."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat
from edgepack.errors import DecompositionError, ExportError
from edgepack.export.gguf import write_factors, write_model, write_plain
from edgepack.export.peft import write_adapter
from edgepack.export.profiles import GraphOptions
from edgepack.formats import f16
from tests.support.tiny import make_model

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
SCALES = {UP: 1e-10, "model.layers.0.mlp.down_proj.weight": 1e10, DOWN: 1.0}
"""Weight → factor; together they change nothing in the function, as up · gate is linear in up."""
TOKENS = list(range(3, 40))
BAD = [math.nan, math.inf, -math.inf]


def edit(folder, change) -> None:
    """Change the weights of a folder in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A model and the same function with weights that float16 cannot hold: (logits, checkpoint)."""
    folder = tmp_path_factory.mktemp("scaled")
    model = make_model(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].numpy()

    def change(tensors) -> None:
        for name, factor in SCALES.items():
            tensors[name] *= factor

    edit(folder, change)
    return logits, open_checkpoint(str(folder))


def near(found, wanted) -> bool:
    return bool(np.square(found - wanted).mean() < 1e-4 * np.square(wanted).mean())


@pytest.mark.slow
@pytest.mark.llama
def test_the_original_as_gguf_is_the_original(scaled, tmp_path):
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.llama_cpp import LlamaCpp

    logits, checkpoint = scaled
    write_plain(tmp_path / "m.gguf", checkpoint)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    wide = {name for name, kind in kinds.items() if kind == "F32" and "norm" not in name}
    assert wide == {"blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}
    with LlamaCpp(tmp_path / "m.gguf", None, 64, threads=1) as runtime:
        assert near(runtime.logits(TOKENS), logits)


def test_the_original_as_onnx_is_the_original(scaled, tmp_path):
    onnx = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime")
    from edgepack.runtimes.onnx_runtime import OnnxRuntime

    logits, checkpoint = scaled
    path = finish(onnx.write_plain(tmp_path, checkpoint, None, GraphOptions(128)))
    with OnnxRuntime(path, threads=1) as runtime:
        assert near(runtime.logits(TOKENS), logits)


def test_float16_that_was_asked_for_refuses_what_it_cannot_hold():
    W = torch.ones(4, 32)
    assert torch.equal(f16.PLUGIN.quantize(W * 65504).codes, (W * 65504).half())
    for value in (65505.0 + 15, -1e9, math.inf, math.nan):
        W[2, 3] = value
        why = "do not fit float16" if math.isfinite(value) else "not finite"
        with pytest.raises(DecompositionError, match=why):
            f16.PLUGIN.quantize(W)


@pytest.mark.parametrize(
    ("values", "held"),
    [
        ([1.0, 65504.0], True),
        ([1.0, 70000.0], False),
        ([1e-9, 2e-9], False),  # all become zero
        ([1e-6, 1.5e-6], False),  # two digits are left of them
        ([1.0, 1e-9], True),  # what is lost does not matter
        ([0.0, 0.0], True),
        ([math.nan, 1.0], False),
    ],
)
def test_what_float16_holds(values, held):
    assert f16.holds(torch.tensor([values] * 3)) is held


def plain(checkpoint, form="q8_0"):
    """What `write_model` asks for: formats, and every matrix rounded."""
    plugin = plugins.find("formats", form)
    formats = {s.name: form for s in checkpoint.specs.values() if len(s.shape) > 1}
    return formats, lambda name: plugin.quantize(checkpoint.tensor(name))


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["a norm", "a trained norm", "a scale", "an f16 matrix"])
def test_no_gguf_with_a_number_that_is_none(bad, where, tmp_path):
    make_model(tmp_path / "m", dtype=torch.float32)
    if where == "a norm":
        edit(tmp_path / "m", lambda t: t[NORM].__setitem__(3, bad))
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    formats, rounded = plain(checkpoint)
    norms = {NORM: torch.full((64,), bad)} if where == "a trained norm" else None

    def load(name) -> QuantizedTensor:
        found = rounded(name)
        if name == UP and where == "a scale":
            found.grid["d"][0, 0] = bad
        if name == UP and where == "an f16 matrix":
            return QuantizedTensor("f16", torch.full(found.codes.shape, bad).half(), {})
        return found

    if where == "an f16 matrix":
        formats[UP] = "f16"
    named = "blk.0.attn_norm" if "norm" in where else "blk.0.ffn_up"
    with pytest.raises(ExportError, match=rf"{named}.*not finite"):
        write_model(tmp_path / "out.gguf", checkpoint, formats, load, norms)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD)
def test_no_factors_with_a_number_that_is_none(bad, tmp_path):
    make_model(tmp_path / "m")
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    plugin = plugins.find("formats", "f16")

    def load(name) -> FactoredWeight:
        W = checkpoint.tensor(name)
        L = QuantizedTensor("f16", torch.full((len(W), 2), bad).half(), {})
        return FactoredWeight(plugin.quantize(W), L, plugin.quantize(W[:2]))

    parts = {UP: WeightFormat("f16", 2, "f16", "f16")}
    with pytest.raises(ExportError, match=r"lora_b.*not finite"):
        write_factors(tmp_path / "f.gguf", checkpoint, parts, load)
    with pytest.raises(ExportError, match=r"lora_B.*not finite"):
        write_adapter(tmp_path / "adapter", [UP], load)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a norm", "a matrix"])
def test_no_graph_with_a_number_that_is_none(where, tmp_path):
    onnx = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
    make_model(tmp_path / "m", dtype=torch.float32)
    name = NORM if where == "a norm" else UP
    edit(tmp_path / "m", lambda t: t[name].view(-1).__setitem__(5, math.nan))
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    with pytest.raises(ExportError, match=rf"{name}.*not finite"):
        finish(onnx.write_plain(tmp_path, checkpoint, None, GraphOptions(128)))


def test_a_norm_too_large_for_a_graph_of_float16_is_refused(tmp_path):
    onnx = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
    make_model(tmp_path / "m", dtype=torch.float32)
    edit(tmp_path / "m", lambda t: t[NORM].__setitem__(5, 1e6))
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    options = GraphOptions(128, half=True)
    formats, _ = plain(checkpoint)
    with pytest.raises(ExportError, match=rf"{NORM}.*not finite"):
        finish(onnx.write_plain(tmp_path, checkpoint, formats, options))
