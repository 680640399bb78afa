"""Gradients of training graphs equal those of PyTorch's autograd on the dequantized model."""

import json

import numpy as np
import pytest
import torch

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight
from edgepack.errors import EdgepackError
from tests.support.graphs import DRAWN, FORMATS
from tests.support.slices import recipe as slicing
from tests.support.tiny import LONGROPE, TEMPERED, make_model
from tests.support.training import Reference, packed, rows

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")
from edgepack.export import onnx as export
from edgepack.export.profiles import GraphOptions
from edgepack.finetune.graph import matrices
from edgepack.finetune.graph.base import open_base
from edgepack.finetune.graph.folder import export_training
from edgepack.finetune.graph.options import AdamW, Options
from edgepack.finetune.graph.runner import TrainingSession

NEAR = 1e-4
BATCH = rows(2)


def options(**given):
    free = AdamW(clip=0.0)
    return Options(**{"length": 16, "batch": 2, "rank": 4, "optimizer": free} | given)


def errors(folder, checkpoint, weights, settings, source="out"):
    """Relative errors of the loss and of the gradient; all of theta is away from 0."""
    finish(export_training(folder / source, folder / "training", settings))
    session = TrainingSession(folder / "training", threads=1)
    state = session.first_state()
    draw = np.random.default_rng(1)
    state.theta += (0.02 * draw.standard_normal(state.theta.size)).astype(np.float32)
    parameters = session.about.matrices()
    reference = Reference(checkpoint, weights, settings.mode, parameters, state.theta)
    loss, wanted = reference.gradient(BATCH)
    found = session.step(state, BATCH, 0.0)
    gradient = state.m / (1 - settings.optimizer.beta1)
    assert np.linalg.norm(wanted) > 0.05
    distance = np.linalg.norm(gradient - wanted) / np.linalg.norm(wanted)
    return abs(found - loss) / loss, distance


def assert_near(*given, **more):
    loss, gradient = errors(*given, **more)
    assert loss < NEAR
    assert gradient < NEAR


@pytest.mark.parametrize("mode", ["factors", "stack"])
@pytest.mark.parametrize("family", DRAWN)
def test_every_family(family, mode, tmp_path):
    checkpoint, weights = packed(tmp_path, family)
    assert_near(tmp_path, checkpoint, weights, options(mode=mode))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form, tmp_path):
    checkpoint, weights = packed(tmp_path, form=form, hidden=128, intermediate=256)
    assert_near(tmp_path, checkpoint, weights, options(mode="stack"))


def test_weights_in_chunks(tmp_path, monkeypatch):
    """Products with pieces of a matrix, and the vocabulary in pieces."""
    monkeypatch.setattr(matrices, "CHUNK", 1500)
    checkpoint, weights = packed(tmp_path, "phi", form="int8")
    assert_near(tmp_path, checkpoint, weights, options())


@pytest.mark.parametrize("length", [16, None])
def test_blocks_that_are_kept_and_rows_of_any_length(length, tmp_path):
    checkpoint, weights = packed(tmp_path, "qwen2")
    assert_near(tmp_path, checkpoint, weights, options(recompute=False, length=length))


def test_frozen_factors_in_blocks(tmp_path):
    checkpoint, weights = packed(tmp_path, rank=32, factors="int4_g32")
    assert_near(tmp_path, checkpoint, weights, options(mode="stack"))


def test_only_some_weights(tmp_path):
    checkpoint, weights = packed(tmp_path, rank=0)
    settings = options(mode="stack", roles=("attn_q", "ffn_down"))
    assert_near(tmp_path, checkpoint, weights, settings)


def test_matrices_of_float32(tmp_path):
    make_model(tmp_path / "m", "opt", dtype=torch.float32)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    formats = {n: "f32" for n, s in checkpoint.specs.items() if len(s.shape) == 2}
    (tmp_path / "out").mkdir()
    finish(export.write_plain(tmp_path / "out", checkpoint, formats, GraphOptions(128)))
    base, settings = open_base(tmp_path / "out"), options(mode="stack")
    assert {base.load(name).Q.format for name in formats} == {"f32"}
    finish(export_training(tmp_path / "out", tmp_path / "training", settings))
    session = TrainingSession(tmp_path / "training", threads=1)
    loss = session.step(session.first_state(), BATCH, 0.0)
    reference = Reference(checkpoint, {}, "stack", [], np.zeros(0, np.float32))
    assert loss == pytest.approx(reference.loss(BATCH).item(), rel=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mistral", {"sliding_window": 5}),
        ("llama", {"head_dim": 80, "heads": 2, "kv_heads": 1}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        ("qwen3", {"tied": False, "kv_heads": 4}),
        ("smollm3", {"layers": 4}),
        ("gemma2", {"sliding_window": 5}),
        ("gemma3_text", {"sliding_window": 5}),
        ("olmo3", {"sliding_window": 5}),
        ("ministral3", {"rope_parameters": TEMPERED | {"original_max_position_embeddings": 4}}),
        ("phi3", LONGROPE),
    ],
    ids=str,
)
def test_windows_wide_heads_and_stretched_rotation(family, config, tmp_path):
    checkpoint, weights = packed(tmp_path, family, **config)
    assert_near(tmp_path, checkpoint, weights, options())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_model_sliced_per_block(family, tmp_path):
    make_model(tmp_path / "model", family, tied=False, dtype=torch.float32)
    path = slicing(tmp_path, 40, method="per_block")
    edgepack.build(path, "onnx", out=tmp_path / "out")
    base = open_base(tmp_path / "out")
    weights = {name: base.load(name) for name in base.formats}
    assert_near(tmp_path, base.checkpoint, weights, options(mode="stack"))


def recipe(folder, form, rank):
    make_model(folder / "m", dtype=torch.float16)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 99)
    given = {
        "model": "m",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": form, "rank": rank, "factors": "f16", "embeddings": "q8_0"},
        "export": {"measure": {"tokens": 0}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(given))
    return edgepack.build(folder / "recipe.yaml", "gguf", out=folder / "out")


@pytest.mark.slow
def test_a_gguf_folder(tmp_path):
    """Rows of q and k are in another order there, in the factors too."""
    built = recipe(tmp_path, "q4_0", 4)
    base = open_base(tmp_path / "out")
    stock = open_checkpoint(str(built.base))
    weights = {name: base.load(name) for name in base.formats}
    for name, weight in weights.items():
        assert torch.equal(weight.Q.dequantize(), stock.tensor(name))
    name = "model.layers.0.self_attn.q_proj.weight"
    source = open_checkpoint(str(tmp_path / "m")).tensor(name)
    bare = FactoredWeight(weights[name].Q).dense()
    assert (weights[name].dense() - source).norm() < (bare - source).norm()
    assert_near(tmp_path, stock, weights, options())


@pytest.mark.slow
def test_formats_that_onnx_cannot_hold_are_named(tmp_path):
    recipe(tmp_path, "q4_1", 0)
    with pytest.raises(EdgepackError, match=r"model\.layers\.0\..* is stored as q4_1") as caught:
        open_base(tmp_path / "out")
    assert "q4_0" in caught.value.hint
    assert "q4_1" in plugins.names("formats")
