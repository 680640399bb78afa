"""edgepack-chat and files that are no model for chat: each is a sentence, the worker goes on."""

from __future__ import annotations

import os
import random
import re
import shutil

import gguf
import numpy as np
import psutil
import pytest

from edgepack.adapters import files
from tests.support.adapters import random_adapter
from tests.support.bases import packed_base
from tests.support.ggufs import Type, rewritten
from tests.support.native import host_program, running

pytestmark = [pytest.mark.slow, pytest.mark.llama]

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("base"))[0]


@pytest.fixture(scope="module")
def worker():
    with running([host_program("chat")]) as found:
        found.next()
        yield found
        assert found.close() == 0


def refused(worker, path):
    """What `inspect` and `load` both say; `load` calls the file the model."""
    found = worker.ask("inspect", file=str(path))[-1]
    loaded = worker.ask("load", model=str(path), threads=1)[-1]
    assert (found["event"], loaded["event"]) == ("failed", "failed")
    for event in (found, loaded):
        assert "/" not in event["message"].replace("and/or", "")
        assert "\n" not in event["message"]
    assert found["message"].removeprefix("the file") == loaded["message"].removeprefix("the model")
    return found["message"]


def test_what_is_no_gguf_file(worker, tmp_path):
    empty, text, folder = tmp_path / "empty", tmp_path / "text", tmp_path / "folder"
    empty.touch()
    text.write_text("hello " * 100)
    folder.mkdir()
    assert refused(worker, tmp_path / "none") == "the file is not there"
    assert refused(worker, folder) == "the file is no file"
    assert refused(worker, empty) == "the file is no GGUF file"
    assert refused(worker, text) == "the file is no GGUF file"
    if os.geteuid():
        text.chmod(0)
        assert refused(worker, text) == "the file cannot be read"


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_model_that_is_cut_off(worker, base, tmp_path, share):
    path = tmp_path / "cut.gguf"
    data = base.file.read_bytes()
    path.write_bytes(data[: max(5, int(share * len(data)))])
    message = refused(worker, path)
    assert "damaged header, or is cut off" in message or "its tensors need more" in message


METADATA = {
    "architecture": ({"general.architecture": "brainfog"}, "of the architecture brainfog"),
    "no architecture": ({"general.architecture": None}, "names no architecture"),
    "eye": ({"general.architecture": "clip"}, "sees or hears, which cannot chat alone"),
    "mmproj": ({"general.type": "mmproj"}, "sees or hears, which cannot chat alone"),
    "imatrix": ({"general.type": "imatrix"}, "a matrix of importances, no model"),
    "part": ({"split.count": (3, Type.UINT16, None)}, "split into several files"),
    "embeddings": (
        {"llama.attention.causal": (False, Type.BOOL, None)},
        "makes embeddings, it does not write",
    ),
    "pooling": ({"llama.pooling_type": (1, Type.UINT32, None)}, "makes embeddings"),
    "blocks": ({"llama.block_count": (4_000_000_000, Type.UINT32, None)}, "block_count should be"),
    "no blocks": ({"llama.block_count": (0, Type.UINT32, None)}, "block_count should be 1 to 512"),
    "type": ({"llama.block_count": "two"}, "block_count should be 1 to 512"),
    "epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": (float("nan"), Type.FLOAT32, None)},
        "should be a number ≥ 0",
    ),
    "scaling": ({"llama.rope.scaling.type": "sideways"}, "none, linear, yarn or longrope"),
    "template": ({"tokenizer.chat_template": (5, Type.UINT32, None)}, "should be a text"),
    "experts": ({"llama.expert_count": (3, Type.UINT32, None)}, "expert_used_count should be"),
    "no vocabulary": ({"tokenizer.ggml.model": "no_vocab"}, "has no vocabulary"),
    "tokens": (
        {"tokenizer.ggml.tokens": (["a", "b", "a"], Type.ARRAY, Type.STRING)},
        "a is there twice",
    ),
    "token types": (
        {"tokenizer.ggml.token_type": ([1, 2], Type.ARRAY, Type.INT32)},
        "a number of 32 bits for each token",
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_llama_cpp_would_die_of_or_cannot_run(worker, base, tmp_path, name):
    changes, message = METADATA[name]
    path = rewritten(base.file, tmp_path / "model.gguf", changes)
    if name == "architecture":
        assert message in worker.ask("inspect", file=str(path))[-1]["message"]
        assert worker.ask("load", model=str(path))[-1]["event"] == "failed"
    else:
        assert message in refused(worker, path)


def test_a_vocabulary_alone(worker, base, tmp_path):
    path = rewritten(base.file, tmp_path / "vocabulary.gguf", {}, tensors=False)
    assert refused(worker, path) == "the file has no weights, only a vocabulary"


def test_a_model_without_one_of_its_weights(worker, base, tmp_path):
    path = rewritten(base.file, tmp_path / "m.gguf", {"llama.block_count": (3, Type.UINT32, None)})
    message = worker.ask("load", model=str(path), threads=1)[-1]["message"]
    assert message.startswith("llama.cpp cannot load the model (")
    assert "blk.2.attn_norm.weight" in message


def test_a_model_larger_than_the_memory_is_refused_with_both_numbers(worker, base, tmp_path):
    path = tmp_path / "large.gguf"
    shutil.copy(base.file, path)
    os.truncate(path, 10**12)  # which takes no room
    event = worker.ask("load", model=str(path), context=128)[-1]
    found = re.fullmatch(
        r"the model needs (\d+) MB of memory for its weights and 128 tokens, and (\d+) MB are free",
        event["message"],
    )
    assert found is not None, event
    assert 1_000_000 <= int(found[1]) < 1_000_002
    assert 0 < int(found[2]) < psutil.virtual_memory().total / 1e6
    assert "smaller model" in event["hint"]


def test_noise_in_a_header(worker, base, tmp_path):
    """Bytes of the header are changed. What is still a model may be loaded; nothing may crash."""
    data = base.file.read_bytes()
    reader = gguf.GGUFReader(base.file)
    draw = random.Random(3)
    path = tmp_path / "noise.gguf"
    events = set()
    for _ in range(60):
        noisy = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            noisy[draw.randrange(4, reader.data_offset)] = draw.randrange(256)
        path.write_bytes(noisy)
        event = worker.ask("inspect", file=str(path))[-1]
        events.add(event["event"])
    assert events == {"inspected", "failed"}
    assert worker.ask("load", model=str(base.file), threads=1)[-1]["event"] == "loaded"
    assert worker.ask("chat", **CHAT)[-1]["event"] == "ended"


def test_weights_that_are_not_finite(worker, base, tmp_path):
    path = tmp_path / "nan.gguf"
    data = bytearray(base.file.read_bytes())
    embedding = next(t for t in gguf.GGUFReader(base.file).tensors if t.name == "token_embd.weight")
    start = int(embedding.data_offset)  # of a block, which begins with its scale
    data[start : start + 2] = np.float16("nan").tobytes()
    path.write_bytes(data)
    assert worker.ask("load", model=str(path), threads=1)[-1]["event"] == "loaded"
    event = worker.ask("chat", **CHAT)[-1]
    assert event["event"] == "failed", event
    assert event["message"] == "the model predicts NaN"
    assert worker.ask("render", messages=CHAT["messages"])[-1]["event"] == "rendered"


ADAPTERS = {
    "one": (lambda n: n != "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight has one factor only"),
    "none": (lambda n: False, "it has no factors"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_not_whole(worker, base, tmp_path, name):
    keep, message = ADAPTERS[name]
    place = files.place(base.folder, "whole")
    files.write(place, random_adapter(base), base)
    path = tmp_path / "adapter.gguf"
    reader, writer = gguf.GGUFReader(place / files.FILE), gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for tensor in reader.tensors:
        if keep(tensor.name):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    worker.ask("load", model=str(base.file), threads=1)
    event = worker.ask("adapters", adapters={"mine": str(path)})[-1]
    assert event["message"] == f"the adapter mine: {message}"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((place / files.FILE).read_bytes()[:-1000])
    event = worker.ask("adapters", adapters={"mine": str(cut)})[-1]
    assert event["message"].startswith("the adapter mine is cut off")
    assert worker.ask("chat", **CHAT)[-1]["event"] == "ended"
