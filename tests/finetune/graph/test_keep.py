"""What a graph has trained becomes an adapter that the folder's runtime loads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgepack.core.adapters import listed, usable
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.runtimes.models import Model
from tests.support.adapters import packed
from tests.support.commands import fails, run
from tests.support.training import rows

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")
from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.finetune.graph.folder import export_training
from edgepack.finetune.graph.keep import keep
from edgepack.finetune.graph.options import Options
from edgepack.finetune.graph.runner import TrainingSession, train
from tests.support.adapters import expected

pytestmark = pytest.mark.slow

TOKENS = list(range(5, 25))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("llama_cpp")
    compress = {"format": "q4_0", "rank": 4, "factors": "f16", "iterations": 1, "damping": [0.03]}
    place = tmp_path_factory.mktemp("keep")
    return packed(place, compress=compress, export={"measure": {"tokens": 0}})


@pytest.mark.parametrize("mode", ["factors", "stack"])
def test_a_graphs_result_runs_in_llama_cpp(folder, mode, tmp_path):
    finish(export_training(folder, tmp_path / "training", Options(mode=mode, length=16, rank=2)))
    found = finish(train(tmp_path / "training", rows(), steps=4, rate=5e-2, threads=1))
    found.write_factors(tmp_path / "factors.safetensors")
    command = ("import-training", folder, tmp_path / "training", tmp_path / "factors.safetensors")
    result = run(*command, "--name", mode)
    assert result.exit_code == 0, result.output
    base = PackedBase.open(folder)
    path = usable(next(f for f in listed(folder) if f.name == mode), base.target)
    with Model("tuned", base.file, base.factors, ((path, 1.0),)).open(64) as runtime:
        logits = runtime.logits(TOKENS)
    adapter = files.read(folder / "adapters" / mode, base)
    wanted, before = expected(base, TOKENS, [(adapter, 1.0)]), expected(base, TOKENS)
    moved = np.abs(wanted - before).max()
    assert moved > 0.05
    assert np.abs(logits - wanted).max() < 0.15 * max(moved, 1)
    session = TrainingSession(tmp_path / "training", threads=1)
    assert found.losses[0] == pytest.approx(session.step(session.first_state(), rows()[:1], 0.0), 9)


def test_what_does_not_belong_together_is_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    finish(export_training(folder, tmp_path / "training", Options(length=16)))
    found = finish(train(tmp_path / "training", rows(), steps=1, rate=1e-3, threads=1))
    found.write_factors(tmp_path / "factors.safetensors")
    shutil.copytree(tmp_path / "training", tmp_path / "other")
    about = json.loads((tmp_path / "other" / "training.json").read_text())
    changed = about | {"digest": "0" * 64}
    (tmp_path / "other" / "training.json").write_text(json.dumps(changed))
    command = ("import-training", folder, tmp_path / "other", tmp_path / "factors.safetensors")
    assert "training graph of another model" in fails(*command)[0]
    keep(folder, tmp_path / "training", tmp_path / "factors.safetensors", "once")
    with pytest.raises(EdgepackError, match="once: exists"):
        keep(folder, tmp_path / "training", tmp_path / "factors.safetensors", "once")
