"""Checkpoints measured without another runtime, as llama.cpp measures their GGUF."""

import json

import numpy as np
import pytest
import torch

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.metrics.multiple_choice import score
from edgepack.model.decoder import Decoder
from edgepack.runtimes import torch_decoder
from edgepack.runtimes.llama_cpp import LlamaCpp
from edgepack.runtimes.torch_decoder import TorchDecoder
from tests.support.slices import recipe
from tests.support.tiny import make_model, write_gguf

PAIRS = [("The fox", " rests."), ("The fox", " jumps over the dog."), ("A", " box")]


@pytest.fixture(params=[True, False], ids=["in memory", "block by block"])
def decoder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_decoder, "fits_in_memory", lambda _: request.param)
    make_model(tmp_path / "model", dtype=torch.float32)
    return Decoder(open_checkpoint(str(tmp_path / "model")))


@pytest.mark.slow
def test_scores_are_those_of_llama_cpp(decoder, tmp_path):
    pytest.importorskip("llama_cpp")
    write_gguf(tmp_path / "model.gguf", decoder.checkpoint)
    with LlamaCpp(tmp_path / "model.gguf", context=64, sequences=8) as other:
        own = TorchDecoder(decoder, 64, 8)
        assert own.bos == other.bos
        for text in ("The fox <|im_end|> rests.", "Größe: 3.14"):
            assert own.tokenize(text) == other.tokenize(text)
            assert own.tokenize(text, special=True) == other.tokenize(text, special=True)
        found, wanted = (np.array([s for s, _ in score(r, PAIRS)]) for r in (own, other))
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
        ids = list(range(5, 30))
        assert np.abs(own.logits(ids, 7) - other.logits(ids, 7)).max() < 0.05


def test_a_branch_does_not_see_what_its_neighbours_are_filled_up_with(decoder):
    own = TorchDecoder(decoder, 64, 8)
    together = [s for s, _ in score(own, PAIRS)]
    alone = [next(iter(score(own, [pair])))[0] for pair in PAIRS]
    assert np.allclose(together, alone, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["global", "per_block"])
def test_a_sliced_checkpoint_is_measured(tmp_path, method):
    make_model(tmp_path / "model", tied=False)
    path = recipe(tmp_path, 40, method=method)
    given = json.loads(path.read_text())
    given["export"] = {"measure": {"tokens": 128, "context": 64}}
    path.write_text(json.dumps(given))
    artifact = edgepack.build(path, "checkpoint", out=tmp_path / "out")
    found = artifact.manifest["measured"]["results"]["edgepack"]
    assert found["kl_mean"] > 0.01
    assert found["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert "through our own forward pass" in (tmp_path / "out/report.md").read_text()
