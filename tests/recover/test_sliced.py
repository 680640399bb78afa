"""Recovery fine-tuning after slicing: closer to the unsliced model, same shape, resumable."""

import json
from pathlib import Path

import pytest
import torch

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.recover.sliced import FineTune, principal_part
from edgepack.slicing.stage import Slice
from tests.support.dying import survives
from tests.support.slices import recipe
from tests.support.tiny import make_model

TRAIN = {"rank": 8, "steps": 12, "tokens": 256, "evaluate_every": 4, "learning_rate": 0.03}


def finetuned(tmp_path: Path, width: int = 48, **options) -> Path:
    """A recipe with fine-tuning, for a model of which half the columns hardly matter."""
    make_model(tmp_path / "model", tied=False, dtype=torch.float32)
    path = recipe(tmp_path, width, recover=TRAIN, **options)
    given = json.loads(path.read_text())
    given["export"] = {"measure": {"tokens": 256, "context": 64}}
    path.write_text(json.dumps(given))
    return path


def kl(path: Path, out: Path) -> float:
    manifest = edgepack.build(path, "checkpoint", out=out).manifest
    return manifest["measured"]["results"]["edgepack"]["kl_mean"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["global", "per_block"])
def test_it_is_closer_to_the_model_before_slicing(tmp_path, method):
    path = finetuned(tmp_path, method=method)
    after = kl(path, tmp_path / "after")
    plan = edgepack.plan(path, "checkpoint")
    assert [stage.name for stage in plan.stages] == ["check", "slice", "rft", "export", "measure"]
    assert not list(plan.find(FineTune).folder.glob("start"))
    report = json.loads((tmp_path / "after/manifest.json").read_text())["rft"]
    assert report["best"] < 0.9 * report["start"]
    assert "- fine-tuned: held-out KL" in (tmp_path / "after/report.md").read_text()
    given = json.loads(path.read_text())
    del given["slice"]["recover"]
    path.write_text(json.dumps(given))
    assert after < 0.95 * kl(path, tmp_path / "before")
    shapes = [
        {
            name: tuple(spec.shape)
            for name, spec in edgepack.plan(path, "checkpoint").model.specs.items()
        },
        {name: tuple(plan.model.tensor(name).shape) for name in plan.model.specs},
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_what_is_compressed_is_the_finetuned_model(tmp_path):
    path = finetuned(tmp_path, 32)
    given = json.loads(path.read_text()) | {"compress": {"format": "q8_0"}}
    given["export"]["measure"]["tokens"] = 0
    path.write_text(json.dumps(given))
    manifest = edgepack.build(path, out=tmp_path / "out").manifest
    stages = ["check", "slice", "rft", "calibrate", "decompose", "export", "measure"]
    assert list(manifest["stages"]) == stages
    plan = edgepack.plan(path)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = open_checkpoint(str(tmp_path / "out/base.gguf")).tensor(name)
    tuned = plan.model.tensor(name)
    before = plan.model.with_weights_from(plan.find(Slice)).tensor(name)
    assert (stored - tuned).norm() < 0.02 * tuned.norm()
    assert (before - tuned).norm() > 0.02 * tuned.norm()


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    path = finetuned(tmp_path)

    def work(cache: str) -> None:
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / cache))
        edgepack.build(path, "checkpoint", out=tmp_path / "out", force=True)

    survives(work, tmp_path / "out", first=40, step=25)


def test_the_factors_start_as_the_principal_part():
    W = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    L, R = (part.dequantize() for part in principal_part(W, 5))
    U, S, V = torch.linalg.svd(W)
    assert torch.allclose(L @ R, U[:, :5] * S[:5] @ V[:5], atol=0.01)
    assert torch.allclose(L.norm(dim=0), R.norm(dim=1), rtol=0.01)
