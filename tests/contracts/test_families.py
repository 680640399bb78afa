"""Every family through every stage: what is written computes what its weights say, judged by
transformers, ONNX Runtime and llama.cpp, or the plan refuses it."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import edgepack
from edgepack.core import plugins
from edgepack.core.artifact import Artifact
from edgepack.core.weight_files import load_weight
from edgepack.decompose.stage import Decompose
from edgepack.errors import RecipeError
from edgepack.export import _onnx_weights
from edgepack.model.decoder import Decoder
from edgepack.planning.plan import Plan
from edgepack.recover.stage import Recover
from edgepack.targets.onnx import Onnx
from tests.support.commands import fails
from tests.support.tiny import FAMILIES, LAYER_NORM, TEXT, make_model

EVERY = plugins.names("architectures")
FIRST = [family for family in EVERY if not plugins.find("architectures", family).completed]
"""Families that go through everything; the others, of the same facts, through what reads facts."""
OBJECTIVES = ["layer", "guided", "model"]
COMPRESSED = [(family, objective) for family in FIRST for objective in OBJECTIVES]
GRAPHS = [f for f in EVERY if Onnx.why_not(plugins.find("architectures", f)) is None]
COMPRESSED += [(family, "guided") for family in GRAPHS if family not in FIRST]
IDS = torch.arange(3, 67).view(2, 32)
TRAIN = {"steps": 12, "tokens": 256, "evaluate_every": 4, "learning_rate": 0.01}
TUNE = {**TRAIN, "rank": 8, "learning_rate": 0.03}
SLICE = {"method": "per_block", "allow_growth": True}
WIDTHS = {"schedule": {"attention": [0.1, 0.4], "mlp": [0.3, 0.2]}, "round_to": 32}


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """ONNX Runtime's products with float32 activations, so that logits can be compared."""
    monkeypatch.setattr(_onnx_weights, "ACCURACY", 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory, float32_products):
    """A two-block model of each family with the transformers model, made once."""
    base = tmp_path_factory.mktemp("families")
    (base / "text.txt").write_text("\n".join(TEXT * 30))

    @cache
    def made(family: str) -> tuple[Path, transformers.PreTrainedModel]:
        folder = base / family
        tied = plugins.find("architectures", family).head == "tied"
        model = make_model(
            folder, family, tied=tied, hidden=128, intermediate=128, dtype=torch.float16
        )
        return folder, model.float()

    return made


def write_recipe(folder: Path, model: Path, sections: Mapping) -> Path:
    given = {
        "model": str(model),
        "calibrate": {
            "source": str(model.parent / "text.txt"),
            "tokens": 1024,
            "sequence_length": 64,
            "objective": sections.get("objective", "model"),
        },
        "export": {"measure": {"tokens": 0}},
    }
    given |= {key: value for key, value in sections.items() if key != "objective"}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(given))
    return path


def build(folder: Path, model: Path, target: str, **sections) -> tuple[Plan, Artifact]:
    path = write_recipe(folder, model, sections)
    artifact = edgepack.build(path, target, out=folder / "out")
    return edgepack.plan(path, target), artifact


@torch.no_grad()
def promised(plan: Plan, ids: Tensor = IDS) -> Tensor:
    """Logits by our own forward pass with the weights of the last stage."""
    recovered = plan.find(Recover)
    stage = recovered or plan.find(Decompose)
    norms = recovered.norms if recovered else {}
    dense = {name: lambda n=name: load_weight(stage.folder, n)[0].dense() for name in plan.formats}
    decoder = Decoder(plan.model, dense | {n: lambda v=v: v for n, v in norms.items()})
    return decoder.logits(ids)


def runtime_logits(target: str, folder: Path, ids: Tensor = IDS) -> Tensor:
    if target == "gguf":
        llama_cpp = pytest.importorskip("edgepack.runtimes.llama_cpp")
        runtime = llama_cpp.LlamaCpp(folder / "base.gguf", context=64)
    else:
        onnx_runtime = pytest.importorskip("edgepack.runtimes.onnx_runtime")
        runtime = onnx_runtime.OnnxRuntime(onnx_runtime.model_file(folder), context=64)
    with runtime:
        return torch.from_numpy(np.stack([runtime.logits(row.tolist()) for row in ids]))


@torch.no_grad()
def transformers_logits(model: transformers.PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits


def held_out(plan: Plan) -> Tensor:
    """The tokens that the report's figures are of."""
    return plan.text.tokens.held_out


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert wanted.std() > 0.3  # a flat model would agree with anything
    assert (found - wanted).norm() < tolerance * wanted.norm()


@torch.no_grad()
def divergence(original: Tensor, other: Tensor) -> float:
    """Mean KL in nats a token between logits."""
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (original, other))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


# ------------------------------------------------------------------------ calibrate, decompose


@pytest.mark.slow
@pytest.mark.parametrize(("family", "objective"), COMPRESSED)
def test_compressed_by_every_objective(models, tmp_path, family, objective):
    folder, model = models(family)
    plan, artifact = build(
        tmp_path, folder, "onnx", objective=objective, compress={"format": "q4_0", "rank": 16}
    )
    logits = runtime_logits("onnx", artifact.folder)
    assert_same(logits, promised(plan), 1e-4)
    errors = {n: (a["error"], a["error_plain"]) for n, a in artifact.manifest["weights"].items()}
    linear = [n for n, spec in plan.model.specs.items() if len(spec.shape) > 1 and spec.block]
    assert all(errors[n][0] < 0.7 * errors[n][1] for n in linear), errors
    assert divergence(transformers_logits(model), logits) < 0.4  # of a random model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compressed_for_llama_cpp(models, tmp_path, family):
    folder, _ = models(family)
    plan, artifact = build(tmp_path, folder, "gguf", compress={"format": "q4_0"})
    found, wanted = runtime_logits("gguf", artifact.folder), promised(plan)
    missed = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    # llama.cpp rounds activations, and a rounded one may go to another expert
    assert missed.flatten().quantile(0.8) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", *LAYER_NORM])
def test_a_size_is_spent(models, tmp_path, family):
    folder, model = models(family)
    compress = {"bits_per_weight": 6.0, "candidates": ["q8_0", "q4_0"]}
    plan, artifact = build(tmp_path, folder, "onnx", compress=compress)
    assert {fmt.Q for fmt in plan.formats.values()} >= {"q4_0", "q8_0"}
    logits = runtime_logits("onnx", artifact.folder)
    assert_same(logits, promised(plan), 1e-4)
    assert divergence(transformers_logits(model), logits) < 0.4  # of a random model


# ------------------------------------------------------------------------ recover


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FIRST, "gemma2", "olmo2", "phi3"])
def test_recovery_is_closer_to_transformers_logits(models, tmp_path, family):
    """…on the held-out tokens as much as the report says."""
    folder, model = models(family)
    kl = {}
    for name, more in (("start", {}), ("best", {"recover": TRAIN})):
        place = tmp_path / name
        place.mkdir()
        compress = {"format": "q2_0", "embeddings": "q8_0"}
        plan, artifact = build(place, folder, "onnx", compress=compress, **more)
        ids = held_out(plan)
        logits = runtime_logits("onnx", artifact.folder, ids)
        assert_same(logits, promised(plan, ids), 1e-4)
        kl[name] = divergence(transformers_logits(model, ids), logits)
    report = artifact.manifest["recovered"]
    assert kl["best"] < kl["start"]
    assert {name: report[name] for name in kl} == pytest.approx(kl, rel=0.01)


# ------------------------------------------------------------------------ slice


def sliced(family: str, method: str) -> dict:
    return (
        {"method": "global", "width": 64, "allow_growth": True}
        if method == "global"
        else {**SLICE, **WIDTHS}
    )


GLOBAL = [*(family for family in FIRST if family in FAMILIES), "granite", "smollm3"]
METHODS = [(family, "per_block") for family in FIRST] + [(family, "global") for family in GLOBAL]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), METHODS)
def test_sliced_and_fine_tuned(models, tmp_path, family, method):
    folder, model = models(family)
    kl = {}
    for name, more in (("start", {}), ("best", {"recover": TUNE})):
        place = tmp_path / name
        place.mkdir()
        plan, artifact = build(place, folder, "checkpoint", slice=sliced(family, method) | more)
        ids = held_out(plan)
        written = transformers.AutoModelForCausalLM.from_pretrained(
            artifact.folder, trust_remote_code=True, dtype=torch.float32
        )
        logits = transformers_logits(written, ids)
        with torch.no_grad():
            assert_same(logits, Decoder(plan.model).logits(ids), 1e-3)
        kl[name] = divergence(transformers_logits(model, ids), logits)
    report = artifact.manifest["rft"]
    assert kl["best"] < kl["start"]
    assert {name: report[name] for name in kl} == pytest.approx(kl, rel=0.03)


BY_OBJECTIVE = [
    (family, method, objective)
    for family, method in METHODS
    for objective in (OBJECTIVES if method == "per_block" else OBJECTIVES[-1:])
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method", "objective"), BY_OBJECTIVE)
def test_sliced_and_compressed(models, tmp_path, family, method, objective):
    """Per-block slices have another width at every place."""
    folder, _ = models(family)
    more = {"recover": TRAIN} if objective == "model" else {}
    plan, artifact = build(
        tmp_path,
        folder,
        "onnx",
        objective=objective,
        slice=sliced(family, method),
        compress={"format": "q4_0"},
        **more,
    )
    assert len(set(Decoder(plan.model).widths)) == (1 if method == "global" else 2)
    assert_same(runtime_logits("onnx", artifact.folder), promised(plan), 1e-4)
    errors = [a["error"] for a in artifact.manifest["weights"].values()]
    assert max(errors) < 0.05


# ------------------------------------------------------------------------ what is refused


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYER_NORM)
@pytest.mark.parametrize("option", [{"rotate": "hadamard"}, {"pad_width": 256}])
def test_models_with_layer_norms_are_neither_rotated_nor_padded(models, tmp_path, family, option):
    folder, _ = models(family)
    path = write_recipe(tmp_path, folder, {"compress": {"format": "q4_0", **option}})
    with pytest.raises(RecipeError, match="LayerNorms, which this would change"):
        edgepack.plan(path, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"rotate": "hadamard"}, {"pad_width": 256}])
def test_a_slice_per_block_is_neither_rotated_nor_padded(models, tmp_path, option):
    folder, _ = models("llama")
    sections = {"slice": {**SLICE, **WIDTHS}, "compress": {"format": "q4_0", **option}}
    path = write_recipe(tmp_path, folder, sections)
    with pytest.raises(RecipeError, match="a basis of its own at every place"):
        edgepack.plan(path, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYER_NORM)
def test_no_gguf_has_a_place_for_them(models, tmp_path, family):
    folder, _ = models(family)
    path = write_recipe(tmp_path, folder, {"compress": {"format": "q4_0"}})
    assert "cannot be written as GGUF" in fails("plan", path, "--target", "gguf")[0]
