"""ONNX graphs of random models: written, run, compared."""

import numpy as np
import pytest
import torch

from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, WeightFormat
from edgepack.export import onnx_families
from edgepack.export.profiles import GraphOptions
from edgepack.runtimes.onnx_runtime import OnnxRuntime

onnx = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")

IDS = torch.arange(3, 40)[None]
PLAIN = GraphOptions(128)
FORMATS = [n for n in plugins.names("formats") if onnx.stores(plugins.find("formats", n))]
_NAMES = plugins.names("architectures")
DRAWN = [f for f in _NAMES if not onnx_families.why_not(plugins.find("architectures", f))]
"""Families that graphs compute."""
INT8 = 0.06
"""What rounding activations to 8 bits may change in logits, relative, on weights this random."""


def rounded(checkpoint, form, rank=0, factors="f16"):
    """Every matrix in one format, the embeddings in q8_0 (their width is one row's)."""
    plugin, more = plugins.find("formats", form), plugins.find("formats", factors)
    weights = {}
    for spec in checkpoint.specs.values():
        if len(spec.shape) == 2:
            W = checkpoint.tensor(spec.name)
            weights[spec.name] = FactoredWeight(plugin.quantize(W))
            if rank and spec.block is not None:
                L, R = torch.randn(W.shape[0], rank), torch.randn(rank, W.shape[1])
                pair = (more.quantize(part * 0.02) for part in (L, R))
                weights[spec.name] = FactoredWeight(plugin.quantize(W), *pair)
    return weights


def write(folder, checkpoint, weights, options=PLAIN):
    folder.mkdir(exist_ok=True)
    parts = {
        name: WeightFormat(w.Q.format, w.rank, w.L and w.L.format, w.R and w.R.format)
        for name, w in weights.items()
    }
    return finish(onnx.write_folder(folder, checkpoint, parts, weights.__getitem__, options))


def logits(path, ids=IDS):
    with OnnxRuntime(path, context=128) as runtime:
        return runtime.logits(ids[0].tolist())


def distance(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
