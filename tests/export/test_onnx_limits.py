"""What a graph cannot do of a model is refused, or said in a warning."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.export.profiles import GraphOptions
from tests.support.graphs import logits, rounded, write
from tests.support.tiny import LONGROPE, make_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ORIGINAL, LONGEST = (
    LONGROPE[key] for key in ("original_max_position_embeddings", "max_position_embeddings")
)


def planned(folder, **options):
    (folder / "recipe.yaml").write_text(
        json.dumps(
            {"model": "model", "export": {"onnx": options, "measure": {"tokens": 0}}},
        )
    )
    return edgepack.plan(folder / "recipe.yaml", "onnx")


@torch.no_grad()
def test_longrope_turns_by_the_context_of_the_graph(tmp_path):
    """transformers turns by the length of the text: both agree where the two are on one side."""
    model = make_model(tmp_path / "model", "phi3", dtype=torch.float16, **LONGROPE).float()
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    weights = rounded(checkpoint, "f16")
    ids = torch.randint(3, 400, (1, ORIGINAL + 20), generator=torch.Generator().manual_seed(0))
    found = {}
    for context, length in ((ORIGINAL, ORIGINAL), (2 * ORIGINAL, ORIGINAL + 20)):
        part = ids[:, :length]
        path = write(tmp_path / f"{context}", checkpoint, weights, GraphOptions(context))
        wanted = model(part).logits[0].numpy()
        found[context] = logits(path, part)
        assert np.abs(found[context] - wanted).max() < 1e-4 * wanted.std()
    assert np.abs(found[ORIGINAL] - found[2 * ORIGINAL][:ORIGINAL]).max() > 0.01


def test_longrope_s_context_is_the_original_unless_asked_for(tmp_path):
    make_model(tmp_path / "model", "phi3", **LONGROPE)
    (said,) = planned(tmp_path).warnings
    assert f"{ORIGINAL} of the model's {LONGEST} positions" in said
    (said,) = planned(tmp_path, context=2 * ORIGINAL).warnings
    assert f"beyond {ORIGINAL} positions" in said
    assert not planned(tmp_path, context=ORIGINAL).warnings


def test_webgpu_has_no_soft_caps(tmp_path):
    make_model(tmp_path / "model", "gemma2")
    with pytest.raises(EdgepackError, match=r"webgpu leaves out the soft cap .* gemma2") as caught:
        planned(tmp_path, profile="webgpu")
    assert "profile: web" in caught.value.hint
    assert planned(tmp_path, profile="web")


@pytest.mark.slow
def test_states_beyond_float16_are_found(tmp_path):
    make_model(tmp_path / "model", "gemma2", dtype=torch.float32, hidden=256, intermediate=256)
    (said,) = planned(tmp_path, activations="float16").warnings
    assert "float16 ends at 65504, and this model multiplies its embeddings by 16" in said
    edgepack.build(tmp_path / "recipe.yaml", "onnx", out=tmp_path / "out")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] *= 4e4
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EdgepackError, match="its states go beyond float16") as caught:
        edgepack.build(tmp_path / "recipe.yaml", "onnx", out=tmp_path / "more")
    assert "float32" in caught.value.hint
