"""What edgepack says a graph needs is what the versions of ONNX Runtime say. Opt-in:

for v in 1.19.2 1.20.1 …; do pip install --no-deps --target FOLDER/$v onnxruntime==$v; done
EDGEPACK_ORTS=FOLDER pytest tests/export/test_onnx_versions.py
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.core.weights import WeightFormat
from edgepack.export.profiles import PROFILES, GraphOptions
from edgepack.export.requirements import NEEDS, oldest_version
from edgepack.runtimes.onnx_runtime import OnnxRuntime
from tests.support.graphs import INT8
from tests.support.tiny import make_model

onnx = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
ORTS = os.environ.get("EDGEPACK_ORTS")
SCRIPT = Path(__file__).parents[1] / "others/old_runtime.py"
FORMATS = [
    ("f16", "f16"),
    ("q4_0", "q4_0"),
    ("int4_g32", "int4_g32"),
    ("q8_0", "q8_0"),
    ("int3_g64", "int3_g64"),
    ("int2_g32", "int2_g32"),
    ("int2_g32", "q4_0"),
    ("int8", "int8"),
]
"""Of the blocks, of the embeddings."""
OTHERS = ("gemma2", "ernie4_5", "phi3")
"""Families with soft caps, with neighbours that turn together, with fused weights."""
HALVES = (False, True)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Graph → the version it is said to need."""
    folder, found = tmp_path_factory.mktemp("versions"), {}
    for family, formats in {"llama": FORMATS, **dict.fromkeys(OTHERS, FORMATS[:1])}.items():
        widths = {"hidden": 256, "intermediate": 512} if family == "llama" else {}
        make_model(folder / family, family, dtype=torch.float16, **widths)
        checkpoint = open_checkpoint(str(folder / family))
        matrices = [s for s in checkpoint.specs.values() if len(s.shape) > 1]
        for profile, half, (blocks, embeddings) in product(("cpu", "mobile"), HALVES, formats):
            options = GraphOptions(64, PROFILES[profile], half=half)
            names = {s.name: blocks if s.role != "token_embd" else embeddings for s in matrices}
            out = folder / f"{family}-{profile}-{half}-{blocks}-{embeddings}"
            out.mkdir()
            path = finish(onnx.write_plain(out, checkpoint, names, options))
            with OnnxRuntime(path, context=64) as runtime:
                np.save(path.with_suffix(".npy"), runtime.logits(list(range(3, 15)))[None])
            parts = {name: WeightFormat(form) for name, form in names.items()}
            graph = onnx.graph_without_values(checkpoint, parts, options)
            found[path] = oldest_version(graph, half=half)[0]
    return found


@pytest.mark.skipif(not ORTS, reason="EDGEPACK_ORTS is not set; see the top of this file")
@pytest.mark.parametrize("place", sorted(Path(ORTS).iterdir()) if ORTS else [None], ids=str)
def test_a_version_runs_what_it_is_said_to_and_nothing_else(place, graphs):
    done = subprocess.run(
        [sys.executable, SCRIPT, place, *graphs], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    own = tuple(int(part) for part in found.pop("version").split(".")[:2])
    for path, since in graphs.items():
        result, label = found[str(path)], path.parent.parent.name
        if own >= since:
            assert isinstance(result, float), (label, since, result)
            assert result < INT8, (label, result)
        elif since != (1, 20):  # 1.19 goes wrong in some formats of float16 only
            assert not (isinstance(result, float) and result < INT8), (label, since)


@pytest.mark.slow
def test_every_need_is_one_of_some_graph(graphs):
    assert {need.since for need in NEEDS} >= set(graphs.values())
    assert len(set(graphs.values())) > 4
