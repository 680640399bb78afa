"""Every pre-tokenizer that llama.cpp names, through llama.cpp: one toy vocabulary under each."""

import json
import os
import re
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from edgepack.checkpoint import pretokenizers
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.pretokenizer_hashes import CHECK_HASHES, CHECK_TEXT
from edgepack.checkpoint.tokenizer import from_gguf
from edgepack.errors import CheckpointError
from tests.support.tricky import TRICKY
from tests.support.vocabularies import Runtime, fuzz

SPECIAL = ["<|endoftext|>", "<|user|>"]
LLAMA_CPP = Path(os.environ.get("LLAMA_CPP", "/nonexistent"))
NAMES = [*pretokenizers.BY_NAME, "model"]
"""The names, and Gemma 4's own `tokenizer.ggml.model`."""


def is_raw(name):
    return name == "model" or pretokenizers.BY_NAME[name].raw


def learn(alphabet, texts):
    """Merges over every boundary: nothing is split, so that nearly every cut changes the ids."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 2500,
        initial_alphabet=alphabet,
        min_frequency=1,
        max_token_length=12,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    vocab = backend.get_vocab()
    return sorted(vocab, key=vocab.get), merges


def pieces():
    """Parts of the texts that overlap, so that pairs over every boundary are frequent."""
    for text in TRICKY:
        yield from (text[start : start + 5].replace("\0", "") for start in range(len(text)))


@pytest.fixture(scope="module")
def byte_level():
    """Tokens and merges of bytes; one token is made by no merge."""
    level = ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [level.pre_tokenize_str(text)[0][0] for text in pieces()]
    tokens, merges = learn(ByteLevel.alphabet(), spelled)
    return [*tokens, "Ġwhole"], merges


@pytest.fixture(scope="module")
def raw():
    """Tokens and merges of text, and a token for each byte."""
    spelled = [text.replace(" ", "▁") for text in pieces()]
    tokens, merges = learn(sorted(set("".join(spelled))), spelled)
    return [*tokens, *(f"<0x{byte:02X}>" for byte in range(256))], merges


def fields_for(name, tokens, merges):
    kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}
    types = [6 if re.fullmatch("<0x..>", token) else 1 for token in tokens]
    return (kind if name != "model" else {"tokenizer.ggml.model": "gemma4"}) | {
        "tokenizer.ggml.tokens": [*tokens, *SPECIAL],
        "tokenizer.ggml.token_type": [*types, 3, 3],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens),
    }


def store(path, fields):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        kind = {list: writer.add_array, str: writer.add_string, int: writer.add_uint32}
        kind[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_splitting_is_llama_cpps(name, byte_level, raw, tmp_path):
    fields = fields_for(name, *(raw if is_raw(name) else byte_level))
    store(tmp_path / "v.gguf", fields)
    runtime = Runtime(tmp_path / "v.gguf")
    exact, fast = LlamaVocab(fields, name), from_gguf(fields, name)
    for text in (*TRICKY, fuzz()):
        for special in (False, True):
            ids = runtime.encode(text, special)
            assert exact.encode(text, special=special) == ids, repr(text)
            assert fast.encode(text, add_special_tokens=special) == ids, repr(text)
        assert fast.decode(fast.encode(text, add_special_tokens=False)) == text


SAME = [
    {"llama-bpe", "glm4"},  # they differ in BOS only
    {"qwen2", "bailingmoe"},  # "\\s*" takes all line ends but one anyway
    {"gemma4", "sarvam-moe"},  # see test_line_ends_that_no_merge_makes_are_whole_in_gemma4
]


def test_the_texts_tell_the_other_splittings_apart(byte_level, raw):
    """Without this the test above could not fail."""
    found = {}
    for name, splitting in pretokenizers.SPLITTINGS.items():
        vocab = LlamaVocab(fields_for(name, *(raw if splitting.raw else byte_level)), name)
        found.setdefault(str([vocab.encode(text) for text in TRICKY]), set()).add(name)
    assert [names for names in found.values() if len(names) > 1] == SAME


def test_line_ends_that_no_merge_makes_are_whole_in_gemma4(raw, tmp_path):
    tokens, merges = raw
    tokens = [*tokens, "\n" * 7]
    for name, whole in (("model", True), ("sarvam-moe", False)):
        fields = fields_for(name, tokens, merges)
        store(tmp_path / f"{name}.gguf", fields)
        runtime, vocab = Runtime(tmp_path / f"{name}.gguf"), LlamaVocab(fields, name)
        for text in ("a" + "\n" * 7 + "b", "\n" * 7, "\n" * 8):
            ids = vocab.encode(text)
            assert ids == runtime.encode(text, False)
        assert (tokens.index("\n" * 7) in vocab.encode("\n" * 7)) == whole


def test_gemma4_needs_a_token_before_every_text(raw):
    fields = fields_for("model", *raw)
    del fields["tokenizer.ggml.bos_token_id"]
    with pytest.raises(CheckpointError, match="no token begins a text"):
        LlamaVocab(fields, "x")


def test_other_kinds_are_refused_by_name():
    for kind, what in (("bert", "WordPiece"), ("t5", "Unigram"), ("rwkv", "RWKV")):
        with pytest.raises(CheckpointError, match=f"'{kind}' .{what}") as caught:
            from_gguf({"tokenizer.ggml.model": kind}, "x")
        assert "gemma4" in str(caught.value.hint)


def test_checksums_name_known_pretokenizers():
    others = set(CHECK_HASHES.values()) - set(pretokenizers.BY_NAME)
    assert others == {"bert-bge-large", "jina-v2-en"}  # WordPiece
    assert len(CHECK_HASHES) == 95


@pytest.mark.skipif(not LLAMA_CPP.is_dir(), reason="set LLAMA_CPP to a checkout of llama.cpp")
def test_the_tables_are_llama_cpps():
    source = (LLAMA_CPP / "src/llama-vocab.cpp").read_text(encoding="utf-8")
    names = set(re.findall(r'tokenizer_pre == "([^"]+)"', source))
    assert names - {"whitespace"} == set(pretokenizers.BY_NAME)
    conversion = (LLAMA_CPP / "conversion/base.py").read_text(encoding="utf-8")
    pairs = re.findall(r'chkhsh == "(\w{64})":\n.*\n +res = "([^"]+)"', conversion)
    assert dict(pairs) == CHECK_HASHES
    text = re.search(r"chktxt = ('.*')", conversion)
    assert eval(text[1]) == CHECK_TEXT
