"""Training between the roundings of a block: what it gains, what it leaves alone, how it ends."""

import json
from pathlib import Path

import pytest
import torch

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core.disk import root
from edgepack.core.weight_files import load_tensors, load_weight
from edgepack.core.weights import WeightFormat
from edgepack.decompose.weights import Item
from edgepack.errors import RecipeError
from edgepack.model.decoder import Decoder
from edgepack.pipeline import make_plan
from edgepack.recipe.read import parse
from edgepack.recover.compensation import turns
from tests.support.dying import survives
from tests.support.tiny import TEXT, make_model, write_gguf

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
COMPRESS = {"format": "q2_0", "damping": [0.1], "iterations": 1}
CALIBRATE = {"source": "text.txt", "tokens": 2048, "sequence_length": 64}


def write_text(folder: Path) -> None:
    (folder / "text.txt").write_text("\n".join(TEXT * 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compensation")
    make_model(folder / "model", intermediate=128, layers=3)
    write_text(folder)
    return folder


def build(
    folder: Path, name: str, compress: dict, calibrate: dict = CALIBRATE, model: str = "model"
) -> Path:
    """The finished folder of the stage decompose."""
    given = {
        "model": model,
        "calibrate": calibrate,
        "compress": COMPRESS | compress,
        "export": {"measure": {"tokens": 0}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(given))
    artifact = edgepack.build(path, out=folder / name, force=True)
    return root() / "decompose" / artifact.manifest["stages"]["decompose"]


@torch.no_grad()
def distance(folder: Path, weights: Path) -> float:
    """How far the packed model's last hidden states are from the original's, on unseen text."""
    checkpoint = open_checkpoint(str(folder / "model"))
    names = [spec.name for spec in checkpoint.specs.values() if spec.is_matrix]
    dense = {n: (lambda n=n: load_weight(weights, n)[0].dense()) for n in names if "layers" in n}
    ids = torch.tensor(checkpoint.tokenizer.encode(" ".join(reversed(TEXT)) * 4))[None, :256]
    states = []
    for decoder in (Decoder(checkpoint), Decoder(checkpoint, dense)):
        x = decoder.embed(ids)
        for index in range(checkpoint.dimensions.num_hidden_layers):
            x = decoder.block(index)(x)
        states.append(x)
    return float((states[0] - states[1]).square().sum())


@pytest.mark.slow
def test_the_packed_model_is_closer(folder: Path):
    without = build(folder, "without", {})
    packed = build(folder, "with", {"compensate": {"steps": 24}})
    assert distance(folder, packed) < 0.95 * distance(folder, without)
    files = {p.name: p.stat().st_size for p in without.glob("*.safetensors")}
    assert files.keys() == {p.name for p in packed.iterdir()} - {"stage.json"}


@pytest.mark.slow
def test_training_that_gains_nothing_changes_nothing(folder: Path):
    """With steps as large as the weights themselves every training is taken back. The last writers
    are not trained but solved for."""
    without = build(folder, "plain", {})
    packed = build(folder, "wild", {"compensate": {"steps": 1, "learning_rate": 10}})
    for path in without.glob("*.safetensors"):
        one, other = (load_tensors(folder / path.name)[0] for folder in (without, packed))
        same = all(torch.equal(value, other[key]) for key, value in one.items())
        assert same == ("down_proj" not in path.name)


@pytest.mark.slow
def test_the_last_writer_makes_up_for_what_training_did_not(folder: Path):
    """With steps too small to matter, what it is solved for brings the model closer."""
    without = build(folder, "plain", {})
    packed = build(folder, "still", {"compensate": {"steps": 1, "learning_rate": 1e-9}})
    assert distance(folder, packed) < 0.97 * distance(folder, without)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["qwen2", "qwen3_moe", "lfm2", "gemma2", "gemma4_text", "qwen3_5_text", "phi3"]
)
def test_every_kind_of_block(family: str, tmp_path: Path):
    make_model(tmp_path / "model", family)
    write_text(tmp_path)
    compress = {"format": "q4_0", "compensate": {"steps": 2, "tokens": 128}}
    weights = build(tmp_path, "out", compress, CALIBRATE | {"tokens": 512})
    assert all(
        about["error"] < 0.5
        for spec in open_checkpoint(str(tmp_path / "model")).specs.values()
        if spec.is_matrix
        for about in [load_weight(weights, spec.name)[1]]
    )


@pytest.mark.slow
def test_with_factors_and_the_objective_layer(folder: Path):
    """Scales, L and R of what is rounded move; H is that of the packed prefix."""
    calibrate = CALIBRATE | {"objective": "layer"}
    plain = {"rank": 4, "factors": "f16"}
    without = build(folder, "layer", plain, calibrate)
    packed = build(folder, "layer-with", plain | {"compensate": {"steps": 16}}, calibrate)
    assert distance(folder, packed) < distance(folder, without)
    one, other = (load_weight(weights, Q_PROJ)[0] for weights in (without, packed))
    assert not torch.equal(one.R.dequantize(), other.R.dequantize())


@pytest.mark.slow
def test_what_the_checkpoint_has_in_its_format_is_taken_as_it_is(tmp_path: Path):
    make_model(tmp_path / "floats", intermediate=128)
    write_gguf(tmp_path / "model.gguf", open_checkpoint(str(tmp_path / "floats")), "Q8_0")
    write_text(tmp_path)
    overrides = {"*.self_attn.*": {"format": "q8_0"}}
    compress = {"overrides": overrides, "compensate": {"steps": 2, "tokens": 256}}
    weights = build(tmp_path, "out", compress, model="model.gguf")
    source = open_checkpoint(str(tmp_path / "model.gguf")).quantized(Q_PROJ)
    found, about = load_weight(weights, Q_PROJ)
    assert about["method"] == "source"
    assert torch.equal(found.Q.codes, source.codes)
    assert torch.equal(found.Q.grid["d"], source.grid["d"])


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(folder: Path, monkeypatch):
    """Also in later blocks, when what the first ones were made of is gone."""

    def work(cache: str) -> None:
        monkeypatch.setenv("EDGEPACK_CACHE", str(folder.parent / cache))
        build(folder, "killed", {"compensate": {"steps": 1, "tokens": 128}})

    survives(work, folder / "killed", first=20, step=9)


def test_those_that_read_the_same_are_rounded_together(folder: Path):
    model = open_checkpoint(str(folder / "model"))
    specs = [s for s in model.specs.values() if s.is_matrix and s.block == 1]
    fmt = WeightFormat("q4_0")
    items = [Item(model, s.name, fmt, (0.1,), 1, None, folder) for s in reversed(specs)]
    assert [{item.spec.role for item in group} for group in turns(items)] == [
        {"attn_q", "attn_k", "attn_v"},
        {"attn_output"},
        {"ffn_gate", "ffn_up"},
        {"ffn_down"},
    ]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"compress": {"format": "f16", "embeddings": "f16", "compensate": {}}}, "nothing is rou"),
        ({"compress": {"compensate": {}}, "calibrate": {"keep": False}}, "from the first block"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, sections: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        make_plan(parse({"model": "model", **sections}), "gguf", folder)


def test_the_plan_says_what_it_takes(folder: Path):
    def plan(compress: dict):
        given = {"model": "model", "calibrate": CALIBRATE, "compress": COMPRESS | compress}
        return make_plan(parse(given), "gguf", folder)

    without, packed = plan({}), plan({"compensate": {}})
    stages = [next(s for s in p.stages if s.name == "decompose") for p in (without, packed)]
    assert stages[0].memory() < stages[1].memory()
    assert stages[0].disk().peak < stages[1].disk().peak
    assert stages[0].disk().kept == stages[1].disk().kept
