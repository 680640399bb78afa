"""GGUF files with keys of other types, sizes beyond reason and tensors where none can be."""

import struct

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as T

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import CheckpointError
from tests.support.tiny import make_model

ARRAY, STRING, UINT32, FLOAT32 = T.ARRAY, T.STRING, T.UINT32, T.FLOAT32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    make_model(folder / "m")
    return open_checkpoint(str(folder / "m"))


def write(path, source, changes=None, extra=(), data=None, endianness=gguf.GGUFEndian.LITTLE):
    """A GGUF of `source` whose keys are changed (None: left out), with `extra` tensors."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianness)
    for key, entry in (dict(source.gguf_metadata()) | (changes or {})).items():
        if key != "general.architecture" and entry is not None:
            writer.add_key_value(key, *entry)
    for name, spec in source.specs.items():
        stored = source.architecture.gguf_name(spec.role, spec.block)
        writer.add_tensor(stored, (data or {}).get(stored, source.tensor(name).numpy()))
    for name, values, kind in extra:
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(str(path)).tokenizer
    text = str(caught.value)
    assert len(text) < 300
    assert "\n" not in text
    assert caught.value.hint
    return text


def text(value):
    return value, STRING, None


def number(value, kind=UINT32):
    return value, kind, None


def array(values, kind):
    return values, ARRAY, kind


N = 509
"""Tokens of the tiny vocabulary."""
SPM = {
    "tokenizer.ggml.model": text("llama"),
    "tokenizer.ggml.scores": array([-float(i) for i in range(N)], FLOAT32),
}
LONG = [f"t{i}" for i in range(N - 1)] + ["a" * 100_000]
TWICE = [f"t{i}" for i in range(N - 1)] + ["t0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "entry", "named"),
    [
        ("general.alignment", text("32"), "general.alignment"),
        ("general.alignment", array([32], UINT32), "general.alignment"),
        ("general.alignment", number(0), "general.alignment"),
        ("general.alignment", number(48), "general.alignment"),
        ("general.alignment", number(True, T.BOOL), "general.alignment"),
        ("split.count", text("2"), "split.count"),
        ("split.count", number(-1, T.INT32), "split.count"),
        ("llama.block_count", number(2**32 - 1), "llama.block_count"),
        ("llama.block_count", number(90_000), "90000 blocks"),
        ("llama.block_count", number(0), "llama.block_count"),
        ("llama.block_count", number(2.0, FLOAT32), "llama.block_count"),
        ("llama.block_count", text("2"), "llama.block_count"),
        ("llama.context_length", number(0), "llama.context_length"),
        ("llama.context_length", number(2**63, T.UINT64), "llama.context_length"),
        ("llama.embedding_length", array([64, 32], UINT32), "differs from block to block"),
        ("llama.attention.head_count", number(0), "llama.attention.head_count"),
        ("llama.attention.head_count", array(["4"], STRING), "llama.attention.head_count"),
        ("llama.attention.head_count_kv", number(3), "3 key-value heads"),
        ("llama.attention.layer_norm_rms_epsilon", number(0.0, FLOAT32), "epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", number(-1e-5, FLOAT32), "epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", number(float("nan"), FLOAT32), "epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", None, "epsilon is missing"),
        ("llama.rope.freq_base", number(0.0, FLOAT32), "llama.rope.freq_base"),
        ("llama.rope.freq_base", number(float("inf"), FLOAT32), "llama.rope.freq_base"),
        ("llama.rope.scaling.factor", text("x"), "llama.rope.scaling.factor"),
        ("llama.rope.scaling.factor", number(-2.0, FLOAT32), "llama.rope.scaling.factor"),
        ("llama.rope.scaling.type", array(["linear"], STRING), "llama.rope.scaling.type"),
        ("llama.expert_count", number(8), "llama.expert_count"),
        ("llama.attention.causal", number(False, T.BOOL), "llama.attention.causal"),
        ("llama.logit_scale", number(8.0, FLOAT32), "llama.logit_scale"),
        ("tokenizer.ggml.tokens", number(3), "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.tokens", array([1, 2], UINT32), "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.tokens", array(LONG, STRING), "100000 characters"),
        ("tokenizer.ggml.tokens", array(TWICE, STRING), "more than once"),
        ("tokenizer.ggml.tokens", array(TWICE[:-1], STRING), "tokenizer.ggml.token_type has"),
        ("tokenizer.ggml.merges", array([1, 2], UINT32), "tokenizer.ggml.merges"),
        ("tokenizer.ggml.pre", array(["smollm"], STRING), "tokenizer.ggml.pre"),
        ("tokenizer.ggml.model", array(["gpt2"], STRING), "tokenizer.ggml.model"),
        ("tokenizer.ggml.model", text("x" * 3000), "tokenizer.ggml.model"),
        ("tokenizer.ggml.pre", text("x" * 3000), "tokenizer.ggml.pre"),
        ("tokenizer.ggml.token_type", array([1] * 5, T.INT32), "token_type has 5 entries"),
        ("tokenizer.ggml.token_type", array([99] * N, T.INT32), "tokenizer.ggml.token_type"),
        ("tokenizer.ggml.scores", array(["x"] * N, STRING), "tokenizer.ggml.scores"),
        ("tokenizer.ggml.scores", array([float("nan")] * N, FLOAT32), "tokenizer.ggml.scores"),
        ("tokenizer.ggml.bos_token_id", text("0"), "tokenizer.ggml.bos_token_id"),
        ("tokenizer.ggml.eos_token_id", number(N), "tokenizer.ggml.eos_token_id"),
        ("tokenizer.ggml.eot_token_id", number(-1, T.INT32), "tokenizer.ggml.eot_token_id"),
        ("tokenizer.ggml.padding_token_id", array([0], UINT32), "padding_token_id"),
        ("tokenizer.ggml.add_bos_token", text("yes"), "tokenizer.ggml.add_bos_token"),
        ("tokenizer.ggml.add_space_prefix", number(1), "tokenizer.ggml.add_space_prefix"),
        ("tokenizer.chat_template", number(3), "tokenizer.chat_template"),
        ("tokenizer.chat_template.tool", number(3), "tokenizer.chat_template.tool"),
    ],
)
def test_keys_of_other_types_and_sizes(tmp_path, source, key, entry, named):
    assert named in refusal(write(tmp_path / "m.gguf", source, {key: entry}))


def test_more_heads_than_columns(tmp_path, source):
    left_out = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    changes = {f"llama.{key}": None for key in left_out}
    changes["llama.attention.head_count"] = number(4000)
    changes["llama.attention.head_count_kv"] = number(4000)
    assert "4000 attention heads for 64" in refusal(write(tmp_path / "m.gguf", source, changes))


def test_an_unknown_token_that_is_not_there(tmp_path, source):
    changes = SPM | {"tokenizer.ggml.unknown_token_id": number(10**6)}
    assert "unknown_token_id" in refusal(write(tmp_path / "m.gguf", source, changes))


def test_values_that_are_the_same_for_every_block_are_one_value(tmp_path, source):
    changes = {
        "llama.attention.head_count_kv": array([2, 2], UINT32),
        "llama.feed_forward_length": array([96, 96], UINT32),
    }
    checkpoint = open_checkpoint(str(write(tmp_path / "m.gguf", source, changes)))
    assert checkpoint.dimensions == source.dimensions


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros(8, np.int8), gguf.GGMLQuantizationType.I8),
        (np.ones(7, np.float32), None),
        (np.zeros(8, np.float32), None),
        (np.full(8, np.nan, np.float32), None),
    ],
)
def test_rotary_divisors_that_are_none(tmp_path, source, values, kind):
    extra = [("rope_freqs.weight", values, kind)]
    assert "rope_freqs.weight" in refusal(write(tmp_path / "m.gguf", source, extra=extra))


# The bytes themselves


def field(kind, value):
    return struct.pack("<" + kind, value)


def string(value):
    data = value if isinstance(value, bytes) else value.encode()
    return field("Q", len(data)) + data


def tensor(name="t", dims=(32,), kind=0, offset=0):
    return (
        string(name)
        + field("I", len(dims))
        + b"".join(field("Q", n) for n in dims)
        + field("I", kind)
        + field("Q", offset)
    )


V3 = b"GGUF" + struct.pack("<I", 3)


def header(keys=(), tensors=(), counts=None, magic=V3):
    count = counts or (len(tensors), len(keys))
    data = magic + field("Q", count[0]) + field("Q", count[1]) + b"".join((*keys, *tensors))
    return data + bytes(4096)


def key(name, kind, value):
    return string(name) + field("I", kind) + value


U32, STR, ARR = 4, 8, 9


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (header(magic=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
        (header(magic=b"GGUF" + struct.pack("<I", 1)), "version 1"),
        (header(counts=(2**60, 0)), "counts"),
        (header(counts=(0, 2**60)), "counts"),
        (header([key("a", U32, field("I", 1))] * 2), "is there twice"),
        (header([key("a", 77, field("I", 1))]), "a has the unknown type 77"),
        (header([key("a", STR, field("Q", 2**40))]), "a has"),
        (header([key("a", STR, field("Q", 2**20))]), "ends inside its header"),
        (header([key("a", STR, string(b"\xff\xfe"))]), "a is not valid UTF-8"),
        (header([key("a" * 5000, U32, field("I", 1))]), "a key has 5000 bytes"),
        (header([key("a", ARR, field("I", U32) + field("Q", 2**61))]), "elements"),
        (header([key("a", ARR, field("I", U32) + field("Q", 2**21))]), "ends inside"),
        (header([key("a", ARR, field("I", STR) + field("Q", 2**21))]), "ends inside"),
        (header([key("a", ARR, field("I", ARR) + field("Q", 1))]), "array of arrays"),
        (header([key("a", ARR, field("I", 50) + field("Q", 1))]), "unknown type 50"),
        (header(tensors=[tensor(), tensor()]), "t is there twice"),
        (header(tensors=[tensor(), tensor("u")]), "u overlaps"),
        (header(tensors=[tensor(offset=3)]), "multiple of 32"),
        (header(tensors=[tensor(dims=())]), "0 dimensions"),
        (header(tensors=[tensor(dims=(1,) * 5)]), "5 dimensions"),
        (header(tensors=[tensor(dims=(0, 4))]), "is empty"),
        (header(tensors=[tensor(dims=(2**62, 2**62))]), "ends before the data of t"),
        (header(tensors=[tensor(dims=(33,), kind=8)]), "33 columns, Q8_0 goes by 32"),
        (header(tensors=[tensor(kind=4)]), "t has type 4, Q4_2"),
        (header(tensors=[tensor(offset=2**62)]), "ends before the data of t"),
        (header(), "general.architecture is missing"),
        (header([key("general.architecture", U32, field("I", 1))]), "general.architecture"),
        (header([key("general.architecture", STR, string("x" * 900))]), "is not supported"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_headers_that_cannot_be(tmp_path, data, named):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert named in refusal(path)


def test_a_file_written_for_the_other_byte_order(tmp_path, source):
    path = write(tmp_path / "m.gguf", source, endianness=gguf.GGUFEndian.BIG)
    assert "big-endian" in refusal(path)


def test_capital_letters_in_the_suffix(tmp_path, source):
    write(tmp_path / "m.gguf", source).rename(tmp_path / "M.GGUF")
    assert open_checkpoint("M.GGUF", tmp_path).dimensions == source.dimensions
