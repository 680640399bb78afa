"""GGUF files that would end the process inside llama.cpp are refused before it sees them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Type

from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import plugins
from edgepack.core.weights import FactoredWeight, WeightFormat
from edgepack.errors import EdgepackError
from edgepack.export.gguf import write_factors, write_plain
from edgepack.runtimes import base as _base
from edgepack.runtimes.gguf_check import (
    Encodable,
    cache_bytes,
    check_adapter,
    check_model,
    read_encodable,
)
from tests.support.tiny import make_model

WEIGHT = "blk.1.ffn_down.weight"
A, B = f"{WEIGHT}.lora_a", f"{WEIGHT}.lora_b"
EPSILON = "llama.attention.layer_norm_rms_epsilon"
UP = "model.layers.1.mlp.down_proj.weight"
U32, F32, TEXT, LIST = Type.UINT32, Type.FLOAT32, Type.STRING, Type.ARRAY


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and an adapter of rank 4 for one of its weights."""
    folder = tmp_path_factory.mktemp("gguf")
    make_model(folder / "m")
    checkpoint, plugin = open_checkpoint(str(folder / "m")), plugins.find("formats", "f16")
    write_plain(folder / "base.gguf", checkpoint)

    def load(name) -> FactoredWeight:
        W = checkpoint.tensor(name)
        L, R = torch.randn(len(W), 4) * 0.01, torch.randn(4, W.shape[1])
        return FactoredWeight(plugin.quantize(W), plugin.quantize(L), plugin.quantize(R))

    parts = {UP: WeightFormat("f16", 4, "f16", "f16")}
    write_factors(folder / "factors.gguf", checkpoint, parts, load)
    return folder / "base.gguf", folder / "factors.gguf"


def changed(source, out, keys=None, tensors=None):
    """The file with other values of keys and other tensors: (values, type), None to leave out."""
    header, keys, tensors = GgufHeader(source), keys or {}, tensors or {}
    writer = gguf.GGUFWriter(out, "llama")
    writer.kv_data[0].clear()
    for key, value in {**header.metadata, **keys}.items():
        if value is not None:
            writer.add_key_value(key, *value)
    for tensor in gguf.GGUFReader(source).tensors:
        data = tensors.get(tensor.name, (np.array(tensor.data), tensor.tensor_type))
        if data is not None:
            writer.add_tensor(tensor.name, data[0], raw_dtype=data[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


KEYS = {
    "no blocks": ("llama.block_count", (0, U32, None)),
    "more blocks than there can be": ("llama.block_count", (2**31, U32, None)),
    "a count that is a text": ("llama.block_count", ("2", TEXT, None)),
    "an epsilon below 0": (EPSILON, (-1e-5, F32, None)),
    "an epsilon of infinity": (EPSILON, (float("inf"), F32, None)),
    "an epsilon that is whole": (EPSILON, (0, U32, None)),
    "a block without keys": ("llama.attention.head_count_kv", ([2, 0], LIST, U32)),
    "sections wider than a head": ("llama.rope.dimension_sections", ([999] * 4, LIST, U32)),
    "experts that nobody asks": ("llama.expert_count", (4, U32, None)),
    "experts without a count": ("llama.expert_used_count", (2, U32, None)),
    "an unknown stretching": ("llama.rope.scaling.type", ("llama3", TEXT, None)),
    "a base that is no number": ("llama.rope.freq_base", (float("nan"), F32, None)),
    "no vocabulary": ("tokenizer.ggml.model", ("none", TEXT, None)),
    "no tokens": ("tokenizer.ggml.tokens", ("x", TEXT, None)),
    "tokens that are numbers": ("tokenizer.ggml.tokens", ([1, 2, 3], LIST, U32)),
    "types of bytes": ("tokenizer.ggml.token_type", ([1] * 600, LIST, Type.UINT8)),
    "types of a few": ("tokenizer.ggml.token_type", ([1] * 6, LIST, Type.INT32)),
    "scores of texts": ("tokenizer.ggml.scores", (["a"] * 600, LIST, TEXT)),
    "an architecture of numbers": ("general.architecture", (5, U32, None)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", KEYS)
def test_a_key_that_would_end_the_process_is_named(what, files, tmp_path):
    key, value = KEYS[what]
    path = changed(files[0], tmp_path / "bad.gguf", {key: value})
    with pytest.raises(EdgepackError, match=r"bad\.gguf: ") as caught:
        check_model(path)
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "\0more"])
def test_a_token_that_is_there_twice_is_named(end, files, tmp_path):
    tokens = list(GgufHeader(files[0]).metadata["tokenizer.ggml.tokens"][0])
    tokens[-1] = tokens[-5] + end
    path = changed(files[0], tmp_path / "t.gguf", {"tokenizer.ggml.tokens": (tokens, LIST, TEXT)})
    with pytest.raises(EdgepackError, match="is there twice"):
        check_model(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "BF16", "I32", "F64"])
@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", WEIGHT])
def test_a_tensor_of_a_type_without_kernels_is_named(kind, name, files, tmp_path):
    (tensor,) = (t for t in gguf.GGUFReader(files[0]).tensors if t.name == name)
    values = np.array(tensor.data).astype(np.float32)
    floats = kind in ("F16", "BF16")
    plain = {"I32": np.int32, "F64": np.float64}
    data = gguf.quants.quantize(values, Kind[kind]) if floats else values.astype(plain[kind])
    path = changed(files[0], tmp_path / "t.gguf", None, {name: (data, Kind[kind])})
    if name == WEIGHT and floats:
        check_model(path)
        return
    with pytest.raises(EdgepackError, match=rf"{name} is {kind}"):
        check_model(path)


ADAPTERS = {
    "type a number": ({"adapter.type": (1, U32, None)}, {}),
    "another type": ({"adapter.type": ("dora", TEXT, None)}, {}),
    "a model": ({"general.type": ("model", TEXT, None)}, {}),
    "alpha whole": ({"adapter.lora.alpha": (4, U32, None)}, {}),
    "alpha no number": ({"adapter.lora.alpha": (float("nan"), F32, None)}, {}),
    "no rank": (
        {},
        {A: (np.zeros((0, 96), "f2"), Kind.F16), B: (np.zeros((64, 0), "f2"), Kind.F16)},
    ),
    "ranks that differ": ({}, {A: (np.zeros((3, 96), "f2"), Kind.F16)}),
    "a third dimension of 0": ({}, {B: (np.zeros((0, 64, 4), "f2"), Kind.F16)}),
    "several matrices": ({}, {B: (np.zeros((2, 64, 4), "f2"), Kind.F16)}),
    "a vector": ({}, {A: (np.zeros(96, "f2"), Kind.F16)}),
    "whole numbers": ({}, {A: (np.zeros((4, 96), "i4"), Kind.I32)}),
    "another width": ({}, {A: (np.zeros((4, 64), "f2"), Kind.F16)}),
    "a half": ({}, {A: None}),
    "nothing": ({}, {A: None, B: None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ADAPTERS)
def test_factors_that_would_end_the_process_are_named(what, files, tmp_path):
    model = check_model(files[0])
    path = changed(files[1], tmp_path / "bad.gguf", *ADAPTERS[what])
    with pytest.raises(EdgepackError, match=r"bad\.gguf: ") as caught:
        check_adapter(path, model)
    assert len(caught.value.message) < 300


@pytest.mark.llama
def test_what_llama_cpp_runs_is_not_refused(files, tmp_path):
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.llama_cpp import LlamaCpp

    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(files[0]).tensors}
    odd = {
        "llama.vocab_size": (7, U32, None),
        "llama.rope.scaling.type": ("yarn", TEXT, None),
        "tokenizer.ggml.eos_token_id": (10**6, U32, None),
        "anybody.s.key": ([1.5], LIST, F32),
        "tokenizer.ggml.merges": (["a b c", " "], LIST, TEXT),
    }
    path = changed(
        files[0], tmp_path / "odd.gguf", odd, {WEIGHT: (tensors[WEIGHT][None], Kind.F16)}
    )
    with LlamaCpp(path, files[1], 64, threads=1) as runtime:
        assert np.isfinite(runtime.logits([5, 6, 7])).all()


@pytest.mark.llama
@pytest.mark.parametrize("context", [10**8, 2**32 + 5])
def test_a_context_beyond_the_memory_is_refused_before_it_is_allocated(context, files, monkeypatch):
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.llama_cpp import LlamaCpp

    memory = type("Memory", (), {"available": 2**30})
    monkeypatch.setattr(_base.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(EdgepackError, match=r"a context of .* tokens is too large") as caught:
        LlamaCpp(files[0], context=context)
    assert caught.value.hint == "choose a smaller context"


def test_keys_and_values_are_counted_from_the_header(files):
    header = check_model(files[0])
    assert cache_bytes(header) == 2 * 2 * 2 * (16 + 16)  # float16, blocks, heads, widths


def test_a_text_that_sentencepiece_cannot_say_is_refused(files, tmp_path):
    tokens = ["<unk>", "▁", "a", "b", "é", *(f"<0x{byte:02X}>" for byte in range(0x80))]
    path = changed(
        files[0],
        tmp_path / "s.gguf",
        {
            "tokenizer.ggml.model": ("llama", TEXT, None),
            "tokenizer.ggml.tokens": (tokens, LIST, TEXT),
            "tokenizer.ggml.token_type": None,
        },
    )
    found = read_encodable(check_model(path))
    found.check("ab é\n")
    with pytest.raises(EdgepackError, match="no token for 'ü'"):
        found.check("aü")
    assert read_encodable(check_model(files[0])) == Encodable()
