"""Checkpoints in FP8 and MXFP4: decoded with their scales, or refused by name."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.scaled import joined
from edgepack.checkpoint.shards import header
from edgepack.checkpoint.source_files import SourceFiles
from edgepack.core import plugins
from edgepack.errors import CheckpointError
from edgepack.model.decoder import Decoder
from tests.support.scaled import FP8, configure, expanded, make_fp8
from tests.support.tiny import make_model


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read(tmp_path, tensors, block=None):
    """What is made of tensors in one file."""
    save_file(tensors, tmp_path / "w.safetensors")
    files = SourceFiles()
    found = joined(header(tmp_path / "w.safetensors", files), "w", block)
    return {name: entry.read(files) for name, entry in found.items()}, found


@pytest.mark.parametrize("block", [None, (16, 32)])
@pytest.mark.parametrize("shape", [(48, 64), (40, 72)])
def test_blocks_are_multiplied_by_their_scales(tmp_path, shape, block):
    """DeepSeek's and Qwen's FP8; blocks at the edges may be smaller, if their size is known."""
    codes = random(*shape).to(FP8)
    scale = random(-(-shape[0] // 16), -(-shape[1] // 32), seed=1).abs() + 0.1
    tensors = {"a.weight": codes, "a.weight_scale_inv": scale, "a.bias": random(shape[0])}
    if block is None and shape == (40, 72):
        with pytest.raises(CheckpointError, match=r"scales of a\.weight .* does not fit"):
            read(tmp_path, tensors)
        return
    made, found = read(tmp_path, tensors, block)
    wanted = codes.float() * expanded(scale, shape, (16, 32))
    assert torch.equal(made["a.weight"], wanted)
    assert set(made) == {"a.weight", "a.bias"}
    assert (found["a.weight"].dtype, found["a.weight"].shape) == ("F8_E4M3", shape)


@pytest.mark.parametrize("ending", ["_scale", "_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,), (48,), (48, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_of_rows_and_of_whole_tensors(tmp_path, shape, dtype, ending):
    codes, scale = random(48, 64).to(FP8), (random(*shape, seed=1).abs() + 0.1).to(dtype)
    others = {"a.input_scale": torch.ones(()), "a.k_scale": torch.ones(1)}
    made, _ = read(tmp_path, {"a.weight": codes, f"a.weight{ending}": scale, **others})
    by_row = scale.float().reshape(-1, 1)
    assert torch.equal(made["a.weight"], codes.float() * by_row)
    assert set(made) == {"a.weight"}


def test_exponents_as_scales(tmp_path):
    codes, exponents = random(8, 64).to(FP8), torch.tensor([[127, 130]] * 8, dtype=torch.uint8)
    made, _ = read(tmp_path, {"a.weight": codes, "a.weight_scale_inv": exponents})
    wanted = codes.float() * expanded(torch.tensor([[1.0, 8.0]] * 8), (8, 64), (1, 32))
    assert torch.equal(made["a.weight"], wanted)
    powers = {"a.weight_scale_inv": exponents.view(torch.float8_e8m0fnu)}
    assert torch.equal(read(tmp_path, {"a.weight": codes} | powers)[0]["a.weight"], wanted)


def test_experts_in_mxfp4_are_those_of_transformers(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(118, 130, (3, 10, 2), generator=generator, dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.down_proj"
    made, found = read(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales})
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(made[name], wanted)
    assert found[name].shape == tuple(wanted.shape) == (3, 64, 10)


@pytest.mark.parametrize("packed", [True, False])
def test_linear_layers_in_mxfp4_are_ggmls(tmp_path, packed):
    """The same codes in GGUF's layout: there the second half of a block is in the high bits."""
    fmt = plugins.find("formats", "mxfp4")
    codes = torch.randint(16, (6, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    scales = torch.randint(118, 130, (6, 2), generator=torch.Generator().manual_seed(2)).byte()
    halves = codes.reshape(6, 2, 2, 16)
    nibbles = halves[:, :, 0] | halves[:, :, 1] << 4
    rows = torch.cat([scales[..., None], nibbles], -1).reshape(6, -1)
    wanted = fmt.parse(rows).dequantize()
    pairs = codes[:, ::2] | codes[:, 1::2] << 4
    tensors = (
        {"a.weight_packed": pairs, "a.weight_scale": scales}
        if packed
        else {"a.weight_blocks": pairs.reshape(6, 2, 16), "a.weight_scales": scales}
    )
    made, _ = read(tmp_path, tensors)
    assert torch.equal(made["a.weight"], wanted)


def test_codes_without_scales_and_scales_of_another_shape(tmp_path):
    codes = random(48, 64).to(FP8)
    with pytest.raises(CheckpointError, match=r"a\.weight is stored as F8_E4M3 and has no scale"):
        read(tmp_path, {"a.weight": codes})
    with pytest.raises(CheckpointError, match="does not fit"):
        read(tmp_path, {"a.weight": codes, "a.weight_scale": torch.ones(47)})
    blocks = torch.zeros(4, 3, 16, dtype=torch.uint8)
    scales = torch.zeros(4, 2, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="does not fit"):
        read(tmp_path, {"a.weight_blocks": blocks, "a.weight_scales": scales})
    with pytest.raises(CheckpointError, match="stored as U8"):
        read(tmp_path, {"a.weight_packed": torch.zeros(4, 32, dtype=torch.uint8)})


@pytest.mark.filterwarnings("ignore")
def test_a_model_in_fp8_computes_what_transformers_computes(tmp_path):
    make_fp8(tmp_path / "m")
    checkpoint = open_checkpoint("m", tmp_path)
    settings = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 32))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, quantization_config=settings
    ).eval()
    ids = torch.randint(0, 500, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model(ids).logits[0]
    assert (Decoder(checkpoint).logits(ids)[0] - wanted).abs().max() < 1e-3
    (warning,) = checkpoint.warnings()
    assert "F8_E4M3 (8 bits)" in warning


def equal(folder, other):
    """Whether two folders hold the same weights."""
    one, two = (open_checkpoint(str(path)) for path in (folder, other))
    assert one.specs.keys() == two.specs.keys()
    assert len([s for s in one.specs.values() if s.dtype == "F8_E4M3"]) >= 12
    return all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.specs)


def test_one_stored_tensor_may_hold_several_weights_in_fp8(tmp_path):
    """Granite 4's gate and up projection."""
    make_fp8(tmp_path / "m", "granitemoehybrid")
    assert equal(tmp_path / "m", tmp_path / "m-plain")


def test_the_language_model_of_a_multimodal_repository_in_fp8(tmp_path):
    make_fp8(tmp_path / "m", "gemma3_text")
    path = tmp_path / "m/model.safetensors"
    tensors = {
        name.replace("model.", "model.language_model.", 1): W for name, W in load_file(path).items()
    }
    vision = {"model.vision_tower.patch.weight": torch.ones(4, 4)}
    save_file(tensors | vision, path, metadata={"format": "pt"})
    inner = json.loads((tmp_path / "m/config.json").read_text())
    outer = {"model_type": "gemma3", "quantization_config": inner.pop("quantization_config")}
    (tmp_path / "m/config.json").write_text(json.dumps(outer | {"text_config": inner}))
    assert equal(tmp_path / "m", tmp_path / "m-plain")
    lines = open_checkpoint("m", tmp_path).warnings()
    assert any("F8_E4M3" in line for line in lines)
    assert any("1 tensors are no part of the language model" in line for line in lines)


READ = [
    {"quant_method": "fbgemm_fp8"},
    {"quant_method": "compressed-tensors", "format": "float-quantized"},
    {
        "quant_method": "compressed-tensors",
        "format": "naive-quantized",
        "config_groups": {"g": {"weights": {"block_structure": [32, 32]}}},
    },
    {"quant_method": "modelopt", "quant_algo": "FP8"},
]


@pytest.mark.parametrize("about", READ, ids=lambda about: about["quant_method"])
def test_the_same_codes_by_other_names(tmp_path, about):
    make_fp8(tmp_path / "m")
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = open_checkpoint("m", tmp_path).tensor(name)
    configure(tmp_path / "m", about)
    assert torch.equal(open_checkpoint("m", tmp_path).tensor(name), wanted)


REFUSED = [
    ({"quant_method": "gptq", "bits": 4}, "gptq", "unquantized"),
    ({"quant_method": "awq"}, "awq", "unquantized"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "-bnb"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized", ""),
    (
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "config_groups": {"a": {"format": "float-quantized"}, "b": {"format": "nvfp4"}},
        },
        "nvfp4",
        "FP8 and MXFP4",
    ),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4", ""),
    ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "two positive numbers", ""),
    ({"quant_method": "fp8", "weight_block_size": "128"}, "two positive numbers", ""),
]


@pytest.mark.parametrize(("about", "named", "advice"), REFUSED)
def test_other_methods_are_refused_by_name(tmp_path, about, named, advice):
    make_model(tmp_path / "m")
    configure(tmp_path / "m", about)
    with pytest.raises(CheckpointError, match=named) as caught:
        open_checkpoint("m", tmp_path)
    assert advice in caught.value.hint
