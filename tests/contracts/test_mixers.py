"""Families whose blocks have other mixers than attention: computed as transformers does, decoded
token by token, written as GGUF and read back, packed, tuned; and what is refused."""

import json
import shutil
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

import edgepack
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint, values
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.weight_files import load_weight
from edgepack.decompose.stage import Decompose
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.export.gguf import write_model, write_plain
from edgepack.model.decoder import Decoder
from edgepack.model.gated_delta import delta_rule, gated_delta, kept_floats
from tests.support.recipes import write_recipe, write_texts
from tests.support.tiny import make_model

CONV, FULL, LINEAR = "conv", "full_attention", "linear_attention"
VARIANTS = {
    "lfm2": ("lfm2", {}),
    "lfm2 untied": ("lfm2", {"tied": False, "layer_types": [CONV, CONV, FULL]}),
    "lfm2 kernel": ("lfm2", {"conv_L_cache": 5, "layer_types": [CONV, CONV, FULL]}),
    "qwen": ("qwen3_5_text", {}),
    "qwen untied": ("qwen3_5_text", {"tied": False, "layer_types": [LINEAR] * 3 + [FULL]}),
    "qwen heads alike": ("qwen3_5_text", {"linear_num_key_heads": 4, "head_dim": 32}),
    "qwen three to one": (
        "qwen3_5_text",
        {"linear_num_value_heads": 6, "linear_conv_kernel_dim": 3, "kv_heads": 1},
    ),
    "lfm2 width": ("lfm2", {"block_auto_adjust_ff_dim": True, "block_multiple_of": 48}),
}
FAMILIES = ("lfm2", "qwen3_5_text")
LENGTH = 90  # more than a chunk of a gated delta net
IDS = torch.arange(3, 3 + 2 * LENGTH).view(2, LENGTH)
TOLERANCE = {"lfm2": 1e-5, "qwen3_5_text": 1e-4}
"""Of σ. transformers' gated delta rule itself is 3e-5 of σ from float64 (see below)."""


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
    decoder = Decoder(open_checkpoint(str(folder)))
    found, wanted = decoder.logits(IDS), expected(model)
    tolerance = TOLERANCE[decoder.checkpoint.architecture.name]
    assert (found - wanted).abs().max() < tolerance * wanted.std()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [[1] * LENGTH, [1, 66, 1, 2, 20]], ids=["single", "runs"])
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
    tolerance = TOLERANCE[decoder.checkpoint.architecture.name]
    assert (torch.cat(parts, dim=1) - wanted).abs().max() < tolerance * wanted.std()


@pytest.mark.parametrize("decay", [0.05, 1.0, 8.0])
def test_the_delta_rule_is_the_recurrence(decay):
    """…of transformers, position by position, also where most is forgotten in a chunk."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 150, 4, 16, generator=generator) for _ in range(3))
    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    a = -decay * torch.rand(2, 150, 4, generator=generator)
    rate = torch.rand(2, 150, 4, generator=generator)
    wanted, last = torch_recurrent_gated_delta_rule(
        q, k, v, g=a, beta=rate, initial_state=None, output_final_state=True
    )
    inputs = (t.transpose(1, 2) for t in (q * 16**-0.5, k, v, a, rate))
    found, state = delta_rule(*inputs, torch.zeros(2, 4, 16, 16))
    assert (found.transpose(1, 2) - wanted).abs().max() < 1e-5 * wanted.std()
    assert (state - last).abs().max() < 1e-5 * last.std()


@pytest.mark.parametrize(("keys", "heads", "width"), [(16, 16, 128), (16, 32, 128), (2, 4, 16)])
def test_no_more_is_kept_for_the_backward_pass_than_planned(models, keys, heads, width):
    """The first two have the heads of Qwen3.5 0.8B and 4B."""
    d = replace(
        open_checkpoint(str(models("qwen")[0])).dimensions,
        linear_num_key_heads=keys,
        linear_num_value_heads=heads,
        linear_key_head_dim=width,
        linear_value_head_dim=width,
    )
    qkv, gate, time = (2 * keys + heads) * width, heads * width, 128
    weights = {"ssm_dt.bias": torch.zeros(heads), "ssm_a": -torch.ones(heads)}
    weights |= {"ssm_norm": torch.ones(width), "ssm_conv1d": torch.ones(qkv, 1, 4)}
    rows = {"ssm_qkv": qkv, "ssm_gate": gate, "ssm_alpha": heads, "ssm_beta": heads}
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 4
        return t

    def linear(role, x):
        return x[..., :1].expand(*x.shape[:-1], rows.get(role, 8)).contiguous()

    x = torch.randn(1, time, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = gated_delta(weights, d, x, linear, None)
    assert out.requires_grad
    assert 0.5 * kept_floats(d) < sum(kept.values()) / time < kept_floats(d)


def test_the_delta_rule_has_the_recurrence_s_gradient():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 70, 8, generator=generator, dtype=torch.double) for _ in range(3))
    k = k / k.norm(dim=-1, keepdim=True)
    a = -torch.rand(1, 2, 70, generator=generator, dtype=torch.double)
    rate = torch.rand(1, 2, 70, generator=generator, dtype=torch.double)
    inputs = [t.requires_grad_() for t in (q, k, v, a, rate)]
    state = torch.zeros(1, 2, 8, 8, dtype=torch.double)

    def recurrence(q, k, v, a, rate):
        S, out = state, []
        for t in range(70):
            S = a[:, :, t, None, None].exp() * S
            error = v[:, :, t] - (S * k[:, :, t, :, None]).sum(-2)
            S = S + k[:, :, t, :, None] * (rate[:, :, t, None] * error)[:, :, None]
            out.append((S * q[:, :, t, :, None]).sum(-2))
        return torch.stack(out, dim=2)

    g = torch.randn(1, 2, 70, 8, generator=generator, dtype=torch.double)
    found = torch.autograd.grad(delta_rule(*inputs, state)[0], inputs, g)
    wanted = torch.autograd.grad(recurrence(*inputs), inputs, g)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


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
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", context=LENGTH) as runtime:
        logits = np.stack([runtime.logits(row.tolist()) for row in IDS])
    wanted = expected(model)
    assert (torch.from_numpy(logits) - wanted).norm() < 0.02 * wanted.norm()  # f16


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


def test_keys_and_tensors_of_qwen3_5_are_those_of_llama_cpp_s_converter(models, tmp_path):
    """Value heads tiled, not in groups; −exp(A_log), γ for γ − 1, names of their own."""
    folder, model = models("qwen untied")
    write_plain(tmp_path / "model.gguf", open_checkpoint(str(folder)))
    header = GgufHeader(tmp_path / "model.gguf")
    keys = {key.removeprefix("qwen35."): value for key, (value, *_) in header.metadata.items()}
    sizes = {"conv_kernel": 4, "state_size": 16, "group_count": 2, "time_step_rank": 4}
    assert {key: keys[f"ssm.{key}"] for key in sizes} == sizes
    assert keys["ssm.inner_size"] == 64
    assert keys["attention.recurrent_layers"] == [True, True, True, False]
    assert keys["full_attention_interval"] == 4
    assert keys["rope.dimension_sections"] == [2, 1, 1, 0]
    assert keys["rope.dimension_count"] == 8
    state, tiled = model.state_dict(), [0, 2, 1, 3]
    inside = "model.layers.0.linear_attn."

    def stored(name):
        shape = header.tensors[f"blk.0.{name}"].shape
        return header.bytes_of(f"blk.0.{name}").view(torch.float32).reshape(shape)

    assert torch.equal(stored("ssm_a"), -state[inside + "A_log"].exp()[tiled])
    assert torch.equal(stored("ssm_dt.bias"), state[inside + "dt_bias"][tiled])
    kernel = state[inside + "conv1d.weight"].squeeze(1)
    heads = kernel[64:].view(4, 16, 4)[tiled].flatten(0, 1)
    assert torch.equal(stored("ssm_conv1d.weight"), torch.cat([kernel[:64], heads]))
    assert torch.equal(stored("ssm_norm.weight"), state[inside + "norm.weight"])
    gains = state["model.layers.0.post_attention_layernorm.weight"] + 1
    assert torch.equal(stored("post_attention_norm.weight"), gains)
    assert "blk.0.attn_qkv.weight" in header.tensors
    assert header.tensors["blk.3.attn_q.weight"].shape == (128, 64)


def test_a_multimodal_repository_is_its_language_model(models, tmp_path):
    """With a prefix, a vision tower and heads that predict further tokens beside it."""
    folder, _ = models("qwen untied")
    shutil.copytree(folder, tmp_path / "whole")
    tensors = load_file(folder / "model.safetensors")
    stored = {n.replace("model.", "model.language_model.", 1): t for n, t in tensors.items()}
    more = {"mtp.fc.weight": torch.ones(4, 4), "model.visual.patch_embed.bias": torch.ones(4)}
    save_file(stored | more, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": False,
        "text_config": config,
    }
    (tmp_path / "whole" / "config.json").write_text(json.dumps(whole))
    found, alone = open_checkpoint(str(tmp_path / "whole")), open_checkpoint(str(folder))
    assert found.dimensions == alone.dimensions
    assert found.specs == alone.specs
    assert any("2 tensors are no part" in warning for warning in found.warnings())
    name = "model.layers.1.linear_attn.out_proj.weight"
    assert torch.equal(found.tensor(name), alone.tensor(name))
    tensors["mtp.fc.weight"] = torch.ones(4, 4)  # a text model that kept its heads
    shutil.copytree(folder, tmp_path / "text")
    save_file(tensors, tmp_path / "text" / "model.safetensors", {"format": "pt"})
    text = open_checkpoint(str(tmp_path / "text"))
    assert text.specs == alone.specs
    assert "prediction of several tokens (1 tensors)" in " ".join(text.warnings())


def test_adapters_have_hugging_face_s_order_of_value_heads(models):
    checkpoint = open_checkpoint(str(models("qwen")[0]))
    name = "model.layers.0.linear_attn.{}.weight"
    state = models("qwen")[1].state_dict()
    for module in ("in_proj_qkv", "in_proj_z", "out_proj"):
        W, stored = checkpoint.tensor(name.format(module)), state[name.format(module)]
        B, rank, A = torch.linalg.svd(W, full_matrices=False)
        pair = values.pair_to_hf(checkpoint, name.format(module), rank[:, None] * A, B)
        assert torch.allclose(pair[1] @ pair[0], stored, atol=1e-5)
        assert not torch.allclose(W, stored, atol=1e-2)
        again = values.pair_from_hf(checkpoint, name.format(module), *pair)
        assert torch.equal(again[1], B)
        assert torch.equal(again[0], rank[:, None] * A)


def test_lfm2_s_inner_width_is_the_adjusted_one(models):
    """⅔ of 96, up to a multiple of 48; transformers computes it when it makes the model."""
    checkpoint = open_checkpoint(str(models("lfm2 width")[0]))
    assert checkpoint.dimensions.intermediate_size == 96
    assert 48 * -(-int(2 * 96 / 3) // 48) == 96


# ------------------------------------------------------------------------ packing and tuning


def write_project(folder, family: str, **sections) -> None:
    make_model(
        folder / "model",
        family,
        tied=False,
        hidden=128,
        intermediate=128,
        dtype=torch.float16,
    )
    write_texts(folder, 30)
    write_recipe(folder, **sections)


@pytest.fixture(scope="module", params=FAMILIES)
def built(request, tmp_path_factory):
    """(plan, output folder, a text's logits by our forward pass with the decomposed weights)."""
    folder = tmp_path_factory.mktemp(request.param)
    finetune = {"data": "rows.jsonl", "steps": 12, "learning_rate": 0.001}
    compress = {"format": "q4_0", "rank": 8}
    write_project(folder, request.param, compress=compress, finetune=finetune)
    artifact = edgepack.build(folder / "recipe.yaml", "gguf", out=folder / "out")
    plan = edgepack.plan(folder / "recipe.yaml", "gguf")
    return plan, artifact


def test_every_projection_is_calibrated(built):
    _, artifact = built
    weights = artifact.manifest["weights"]
    inside = {name: about for name, about in weights.items() if ".layers." in name}
    assert any("conv.in_proj" in name or "in_proj_qkv" in name for name in inside)
    kept = ("in_proj_a.weight", "in_proj_b.weight")  # a row a head: f16
    rounded = [about for name, about in inside.items() if not name.endswith(kept)]
    assert all(about["error"] < 0.8 * about["error_plain"] for about in rounded)


@torch.no_grad()
def test_llama_cpp_computes_the_packed_model(built):
    llama_cpp = pytest.importorskip("edgepack.runtimes.llama_cpp")
    plan, artifact = built
    stage = plan.find(Decompose)
    dense = {n: lambda n=n: load_weight(stage.folder, n)[0].dense() for n in plan.formats}
    wanted = Decoder(plan.model, dense).logits(IDS)
    base, factors = artifact.folder / "base.gguf", artifact.folder / "factors.gguf"
    with llama_cpp.LlamaCpp(base, factors, context=LENGTH) as runtime:
        logits = np.stack([runtime.logits(row.tolist()) for row in IDS])
    found = torch.from_numpy(logits)
    assert (found - wanted).norm() < 0.1 * wanted.norm()  # llama.cpp rounds activations


def test_tuning_learns(built):
    _, artifact = built
    tuned = artifact.manifest["finetuned"]
    assert tuned["best_step"] > 0
    assert tuned["curve"]["held_out"][-1][1] < tuned["before"]["loss"]
    packed = PackedBase.open(artifact.folder)
    changed = {name.rpartition(".layers.0.")[2] for name in packed.matrices}
    assert changed & {"conv.in_proj.weight", "linear_attn.in_proj_qkv.weight"}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_models_are_merged_tensor_by_tensor(family, tmp_path):
    """A model and a GGUF of another one, whose values are in the order of llama.cpp."""
    for seed in (0, 1):
        make_model(tmp_path / str(seed), family, seed=seed, dtype=torch.float32)
    write_f32(tmp_path / "1.gguf", open_checkpoint("1", tmp_path))
    models = [{"model": str(tmp_path / name)} for name in ("0", "1.gguf")]
    weights = [{**model, "parameters": {"weight": 0.5}} for model in models]
    merge = {"merge_method": "linear", "dtype": "float32", "models": weights}
    (tmp_path / "merge.yaml").write_text(
        json.dumps(merge | {"tokenizer_source": str(tmp_path / "0")})
    )
    edgepack.merge_models(tmp_path / "merge.yaml", tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "1"))
    assert set(found) == set(one)
    for name, value in found.items():
        assert torch.allclose(value, (one[name] + other[name]) / 2, atol=1e-5), name


def write_f32(path, checkpoint):
    formats = {s.name: "f32" for s in checkpoint.specs.values() if s.is_matrix}
    write_model(path, checkpoint, formats, checkpoint.tensor)


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_supported_is_refused_in_one_line(family, tmp_path):
    write_project(tmp_path, family, compress={"format": "q4_0"})
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
