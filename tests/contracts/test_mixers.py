"""Families whose blocks have other mixers than attention: computed as transformers does, decoded
token by token, written as GGUF and read back, packed, tuned; and what is refused."""

import json
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch

import edgepack
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.weight_files import load_weight
from edgepack.decompose.stage import Decompose
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.export.gguf import write_plain
from edgepack.model.decoder import Decoder
from tests.support.tiny import TEXT, make_model

CONV, FULL = "conv", "full_attention"
VARIANTS = {
    "lfm2": ("lfm2", {}),
    "lfm2 untied": ("lfm2", {"tied": False, "layer_types": [CONV, CONV, FULL]}),
    "lfm2 kernel": ("lfm2", {"conv_L_cache": 5, "layer_types": [CONV, CONV, FULL]}),
    "lfm2 width": ("lfm2", {"block_auto_adjust_ff_dim": True, "block_multiple_of": 48}),
}
FAMILIES = ("lfm2",)
IDS = torch.arange(3, 93).view(2, 45)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(folder, transformers' model) of a variant, float32, made once."""

    @cache
    def made(variant: str):
        folder = tmp_path_factory.mktemp("mixers") / "model"
        family, options = VARIANTS[variant]
        model = make_model(folder, family, layers=4, dtype=torch.float32, **options)
        return folder, model

    return made


@torch.no_grad()
def expected(model) -> torch.Tensor:
    logits = model(IDS).logits
    assert logits.std() > 0.5  # a flat model would agree with anything
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(models, variant):
    folder, model = models(variant)
    found = Decoder(open_checkpoint(str(folder))).logits(IDS)
    wanted = expected(model)
    assert (found - wanted).abs().max() < 1e-5 * wanted.std()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [[1] * 45, [1, 20, 1, 2, 21]], ids=["single", "runs"])
def test_decoding_with_caches_is_the_full_forward(models, variant, steps):
    decoder = Decoder(open_checkpoint(str(models(variant)[0])))
    blocks = [decoder.block(i) for i in range(4)]
    caches, head, parts = decoder.caches(len(IDS), IDS.shape[1]), decoder.head(), []
    for ids in IDS.split(steps, dim=1):
        x = decoder.embed(ids)
        for block, kept in zip(blocks, caches, strict=True):
            x = block(x, cache=kept)
        parts.append(head(x))
    wanted = decoder.logits(IDS)
    assert (torch.cat(parts, dim=1) - wanted).abs().max() < 1e-5 * wanted.std()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gguf_reads_as_the_folder_and_runs_in_llama_cpp(models, variant, tmp_path):
    folder, model = models(variant)
    original = open_checkpoint(str(folder))
    write_plain(tmp_path / "model.gguf", original)
    again = open_checkpoint(str(tmp_path / "model.gguf"))
    for field in fields(again.dimensions):
        assert getattr(again.dimensions, field.name) == getattr(original.dimensions, field.name)
    assert set(again.specs) == set(original.specs)
    for name, spec in original.specs.items():
        assert again.specs[name].shape == spec.shape
        found, wanted = again.tensor(name), original.tensor(name)
        assert torch.equal(found, wanted.half().float() if spec.is_matrix else wanted), name
    llama_cpp = pytest.importorskip("edgepack.runtimes.llama_cpp")
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", context=64) as runtime:
        logits = np.stack([runtime.logits(row.tolist()) for row in IDS])
    wanted = expected(model)
    assert (torch.from_numpy(logits) - wanted).norm() < 0.01 * wanted.norm()  # f16


def test_keys_and_tensors_of_lfm2_are_those_of_llama_cpp_s_converter(models, tmp_path):
    """As it writes them: no heads of keys in convolutions, kernels without a dimension of one, the
    final norm under the embedding's name."""
    write_plain(tmp_path / "model.gguf", open_checkpoint(str(models("lfm2 untied")[0])))
    header = GgufHeader(tmp_path / "model.gguf")
    assert header.metadata["lfm2.attention.head_count_kv"][0] == [0, 0, 2, 0]
    assert header.metadata["lfm2.shortconv.l_cache"][0] == 3
    assert header.tensors["blk.0.shortconv.conv.weight"].shape == (64, 3)
    assert header.tensors["blk.0.shortconv.in_proj.weight"].shape == (192, 64)
    assert header.tensors["blk.1.shortconv.out_proj.weight"].shape == (64, 64)
    assert {"token_embd_norm.weight", "blk.2.attn_q_norm.weight"} < set(header.tensors)
    assert not {"output_norm.weight", "blk.0.attn_q.weight"} & set(header.tensors)
    kinds = {n: t.kind.name for n, t in header.tensors.items()}
    assert kinds["blk.0.shortconv.conv.weight"] == "F32"


def test_lfm2_s_inner_width_is_the_adjusted_one(models):
    """⅔ of 96, up to a multiple of 48; transformers computes it when it makes the model."""
    checkpoint = open_checkpoint(str(models("lfm2 width")[0]))
    assert checkpoint.dimensions.intermediate_size == 96
    assert 48 * -(-int(2 * 96 / 3) // 48) == 96


# ------------------------------------------------------------------------ packing and tuning


def write_recipe(folder, family: str, **sections) -> None:
    make_model(
        folder / "model",
        family,
        tied=False,
        hidden=128,
        intermediate=128,
        dtype=torch.float16,
    )
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    rows = ({"prompt": f"{i} + 1?", "completion": f"{i + 1}"} for i in range(12))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    calibrate = {"source": "text.txt", "tokens": 1024, "sequence_length": 64}
    recipe = {
        "model": "model",
        "calibrate": calibrate,
        "export": {"measure": {"tokens": 0}},
        **sections,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


@pytest.fixture(scope="module", params=FAMILIES)
def built(request, tmp_path_factory):
    """(plan, output folder, a text's logits by our forward pass with the decomposed weights)."""
    folder = tmp_path_factory.mktemp(request.param)
    finetune = {"data": "rows.jsonl", "steps": 4, "learning_rate": 0.01}
    compress = {"format": "q4_0", "rank": 8}
    write_recipe(folder, request.param, compress=compress, finetune=finetune)
    artifact = edgepack.build(folder / "recipe.yaml", "gguf", out=folder / "out")
    plan = edgepack.plan(folder / "recipe.yaml", "gguf")
    return plan, artifact


def test_every_projection_is_calibrated(built):
    _, artifact = built
    weights = artifact.manifest["weights"]
    inside = {name: about for name, about in weights.items() if ".layers." in name}
    assert any("conv.in_proj" in name or "in_proj_qkv" in name for name in inside)
    assert all(about["error"] < 0.8 * about["error_plain"] for about in inside.values()), inside


@torch.no_grad()
def test_llama_cpp_computes_the_packed_model(built):
    llama_cpp = pytest.importorskip("edgepack.runtimes.llama_cpp")
    plan, artifact = built
    stage = plan.find(Decompose)
    dense = {n: lambda n=n: load_weight(stage.folder, n)[0].dense() for n in plan.formats}
    wanted = Decoder(plan.model, dense).logits(IDS)
    base, factors = artifact.folder / "base.gguf", artifact.folder / "factors.gguf"
    with llama_cpp.LlamaCpp(base, factors, context=64) as runtime:
        logits = np.stack([runtime.logits(row.tolist()) for row in IDS])
    found = torch.from_numpy(logits)
    assert (found - wanted).norm() < 0.05 * wanted.norm()  # llama.cpp rounds activations


def test_tuning_learns(built):
    _, artifact = built
    tuned = artifact.manifest["finetuned"]
    assert tuned["best_step"] > 0
    assert tuned["curve"]["held_out"][-1][1] < tuned["before"]["loss"]
    packed = PackedBase.open(artifact.folder)
    changed = {name.rpartition(".layers.0.")[2] for name in packed.matrices}
    assert changed & {"conv.in_proj.weight", "linear_attn.in_proj_qkv.weight"}


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_supported_is_refused_in_one_line(family, tmp_path):
    write_recipe(tmp_path, family, compress={"format": "q4_0"})
    with pytest.raises(RecipeError, match="blocks of several kinds"):
        edgepack.plan(tmp_path / "recipe.yaml", "onnx")
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipe["slice"] = {"method": "global", "width": 64}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=r"slice: .* have blocks of several kinds"):
        edgepack.plan(tmp_path / "recipe.yaml", "gguf")


def test_a_training_graph_is_refused(built, tmp_path):
    pytest.importorskip("onnx")
    _, artifact = built
    with pytest.raises(EdgepackError, match=r"several kinds .* have no training graph"):
        edgepack.export_training(artifact.folder, tmp_path / "training")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_types": ["conv", "sliding_attention"]}, "sliding_attention' is not supported"),
        ({"layer_types": ["conv"]}, r"equal to the number of `layer_types` \(1\)"),
        ({"conv_bias": True}, "conv_bias"),
        ({"conv_L_cache": 4}, "conv.conv.weight has shape"),
        ({"layer_types": ["conv", "conv"]}, "lacks tensors"),
    ],
)
def test_configurations_of_other_models_are_refused(change, named, tmp_path):
    make_model(tmp_path / "model", "lfm2")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(tmp_path / "model"))
