"""docs/extending.md: its target, its device and its stage, in builds of small models."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
import transformers
from typer.testing import CliRunner

import edgepack
from edgepack import devices, pipeline
from edgepack.checkpoint import open_checkpoint
from edgepack.cli import app
from edgepack.core import fingerprint
from edgepack.core.artifact import Artifact
from edgepack.core.progress import finish
from edgepack.core.weight_files import load_weight
from edgepack.decompose.stage import Decompose
from edgepack.errors import EdgepackError, RecipeError
from tests.docs.extending import recipe
from tests.support.dying import dies_before
from tests.support.tiny import make_model

pytestmark = pytest.mark.usefixtures("installed")


def run_cli(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


# ---------------------------------------------------------------------------- a target


@torch.no_grad()
def mean_kl(original, other, chunks: torch.Tensor) -> float:
    """Mean KL in nats a token over the second halves of chunks ``[n, length]``."""
    first = chunks.shape[1] // 2
    log_p, log_q = (
        model(chunks[:, :-1]).logits[:, first:].double().log_softmax(-1)
        for model in (original, other)
    )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"rank": 8}, {"rotate": "hadamard"}], ids=str)
def test_the_target_is_built_and_measured(here, more):
    model = make_model(here / "model", tied=False, intermediate=128, dtype=torch.float32)
    path = recipe(
        here,
        compress={"format": "q4_0", "damping": [0.1], **more},
        export={"measure": {"tokens": 128, "context": 64}},
    )
    said = run_cli("plan", path, "--target", "merged")
    assert "measure" in said
    run_cli("build", path, "--target", "merged", "--out", here / "out")
    artifact = Artifact.open(here / "out")
    assert artifact.manifest["target"] == "merged"
    assert "merged" in run_cli("show", here / "out")

    plan = edgepack.plan(path, "merged")
    written = open_checkpoint(str(here / "out"))
    stage = plan.find(Decompose)
    assert written.specs.keys() == plan.model.specs.keys()
    for name, spec in written.specs.items():
        packed = name in plan.formats
        wanted = load_weight(stage.folder, name)[0].dense() if packed else plan.model.tensor(name)
        assert torch.equal(written.tensor(name), wanted), name
        assert packed == (len(spec.shape) == 2)
    assert artifact.manifest["weights"].keys() == plan.formats.keys()

    load = transformers.AutoModelForCausalLM.from_pretrained
    merged = load(here / "out", dtype=torch.float32).eval()
    measured = artifact.manifest["measured"]
    chunks = plan.text.tokens.held_out.flatten()[: measured["tokens"]].view(-1, 64)
    kl = measured["results"]["edgepack"]["kl_mean"]
    assert kl > 0.001
    assert kl == pytest.approx(mean_kl(model, merged, chunks), rel=1e-3)
    sizes = sum(path.stat().st_size for path in (here / "out").glob("*.safetensors"))
    assert plan.target.files_size(plan.model, plan.formats) == pytest.approx(sizes, rel=0.05)


@pytest.mark.slow
def test_the_target_says_what_it_cannot_do(here):
    make_model(here / "model")
    slices = {"method": "per_block", "sparsity": 0.25, "allow_growth": True}
    with pytest.raises(RecipeError, match="per_block model is of no family"):
        edgepack.plan(recipe(here, slice=slices), "merged")


# ---------------------------------------------------------------------------- a device


def test_a_device_that_is_not_there_is_one_line(here):
    for address, why in [("no-such-ssh pi", "No such file"), ("sh -c 'exit 255'", "failed")]:
        device = devices.get(f"shell:{address}")
        for action in (device.describe, lambda d=device: d.run(["true"], 5)):
            with pytest.raises(EdgepackError, match=why) as refused:
                action()
            assert "\n" not in str(refused.value)
            assert refused.value.hint


# ---------------------------------------------------------------------------- a stage


@pytest.fixture
def with_tails(checkout, here, monkeypatch):
    """Runs the page's program; what it does to `pipeline.STEPS` is undone."""
    monkeypatch.setattr(pipeline, "STEPS", pipeline.STEPS)

    def build(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["build_with_tails.py", *map(str, arguments)])
        steps = pipeline.STEPS
        runpy.run_path(str(checkout / "build_with_tails.py"), run_name="__main__")
        assert len(pipeline.STEPS) == len(steps) + 1

    return build


def kurtosis(W: torch.Tensor) -> float:
    w = W.double().numpy().ravel()
    return float((w**4).mean() / (w**2).mean() ** 2)


@pytest.mark.slow
def test_the_stage_is_in_plan_manifest_and_cache(with_tails, here, monkeypatch, capsys):
    monkeypatch.setenv("EDGEPACK_CACHE", str(here / "cache"))
    model = make_model(here / "model", tied=False)
    with torch.no_grad():
        model.lm_head.weight[3, 5] = 100.0
    model.save_pretrained(here / "model")
    path = recipe(here)
    without = edgepack.plan(path)
    with_tails(path, "gguf", here / "out")
    assert capsys.readouterr().out.strip() == str(here / "out")

    plan = edgepack.plan(path)
    assert [stage.name for stage in plan.stages][:3] == ["check", "tails", without.stages[1].name]
    assert "tails" in run_cli("plan", path)
    assert "edgepack_extra.tails.stage" in fingerprint.covered_code(plan.stages[1].code)
    others = {stage.name: stage.key for stage in without.stages}
    manifest = Artifact.open(here / "out").manifest
    key = manifest["stages"].pop("tails")
    assert manifest["stages"] == others  # nothing is done again because of it
    matrices = {n: p.detach() for n, p in model.named_parameters() if p.ndim == 2}
    assert manifest["tails"].keys() == matrices.keys()
    for name, value in matrices.items():
        about = manifest["tails"][name]
        assert about["kurtosis"] == pytest.approx(kurtosis(value))
        assert about["largest"] == pytest.approx(float(value.abs().max()))
    heavy = [line for line in manifest["warnings"] if "kurtosis" in line]
    assert len(heavy) == 1
    assert heavy[0].startswith("lm_head.weight: kurtosis")
    assert "kurtosis" in (here / "out" / "report.md").read_text()

    folder = here / "cache" / "tails" / key
    written = list(folder.glob("*.json"))
    assert len(written) == len(matrices) + 1
    written.remove(folder / "stage.json")  # whose time is that of the last use
    before = {file.name: file.stat().st_mtime_ns for file in written}
    edgepack.build(path, out=here / "again")
    assert {file.name: file.stat().st_mtime_ns for file in written} == before
    make_model(here / "model", tied=False, seed=1)
    assert edgepack.plan(path).stages[1].key != key


@pytest.mark.slow
def test_a_killed_stage_goes_on_where_it_was(with_tails, here, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(here / "cache"))
    make_model(here / "model", tied=False)
    path = recipe(here)
    with_tails(path, "gguf", here / "out")
    monkeypatch.setenv("EDGEPACK_CACHE", str(here / "other"))
    plan = edgepack.plan(path)
    stage = next(stage for stage in plan.stages if stage.name == "tails")
    finish(pipeline.run(plan, until="check"))
    assert dies_before(7, lambda: finish(pipeline.run(plan, until="tails")))
    assert not stage.is_done
    begun = {file.name: file.stat().st_ino for file in stage.partial.glob("*.json")}
    assert 1 < len(begun) < len(stage.paths)
    assert "tails" in run_cli("plan", path)
    assert "begun" in run_cli("plan", path)
    finish(pipeline.run(plan, until="tails"))
    files = {file.name: file for file in stage.folder.glob("*.json") if file.name != "stage.json"}
    assert files.keys() == set(stage.paths.values())
    assert {name: files[name].stat().st_ino for name in begun} == begun
    whole = here / "cache" / "tails" / stage.key
    assert {n: f.read_bytes() for n, f in files.items()} == {
        n: (whole / n).read_bytes() for n in files
    }
