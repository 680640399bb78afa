"""Every pre-tokenizer that llama.cpp names, through llama.cpp: one toy vocabulary under each name."""

from itertools import combinations

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgepack.checkpoint import pretokenizers
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.tokenizer import from_gguf
from edgepack.errors import CheckpointError
from tests.support.vocabularies import Runtime, fuzz

SPECIAL = ["<|endoftext|>", "<|user|>"]
TRICKY = (
    "I'VE we'll they're It'S 'tis ''quoted'' don\u2019t x's'y O'Reilly'd",
    "1 12 123 1234 12345 123456 1234567 a12 a  1234 3.14159 2,718 1e-9 \u0661\u0662\u0663 \u2167 \u00bd\u00b2",
    "CamelCaseHTTPServer snake_case __init__ x.y(z)[0]{1}<2> a/b//c \\n #tag @you $5 100% f(x)/2\n/3",
    "--==>>~~$$++``^^||&&!!??;;::,,.. ....\u2026 \u201cquotes\u201d \u2018single\u2019 \u2014dash\u2013 \u00ab\u00bb",
    "\u4eca\u65e5\u306f\u5929\u6c17\u304c\u3044\u3044\u3002\u30ab\u30bf\u30ab\u30ca\u4f60\u597d\uff0c\u4e16\u754c\uff01 \ud55c\uad6d\uc5b4 \uc624\ub298 \u3131\u3134 \u3105\u3106 \uff76\uff85 \uff21\uff22 \u2f00 \U00020000\U0002a6d6\uf900\u8c48",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a \u179f\u17bd\u179f\u17d2\u178f\u17b8 \u1019\u103c\u1014\u103a\u0938\u0947 \u0928\u092e\u0938\u094d\u0924\u0947\u0964 \u09ac\u09be\u0982\u09b2\u09be \u0645\u0631\u062d\u0628\u0627\u060c \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u06d4 \u05e9\u05dc\u05d5\u05dd",
    "\u0421\u0435\u0433\u043e\u0434\u043d\u044f \u0425\u043e\u043b\u043e\u0434\u043d\u044b\u0439\u0412\u0435\u0447\u0435\u0440 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u00c9COLE\u00e9cole Gr\u00f6\u00dfe \u01c5 \u02b0 \u017f \u1e9e \u0130\u0131",
    "e\u0301a\u0308 n\u0303\u0303 \u0301x a\u0301b\u0302C\u0303D \u1100\u1161\u11a8",
    "a\u00a0b\u00a0\u00a0c\u3000d \u3000e\u2003\u2028f\x85g\u200bh\ufeffi\u200dj",
    "\u3000\u3001\u3002\u3000 \u2000x \u1680y",
    "tab\tb\t\tc \t d\r\ne\r\n\r\nf\rg\n\n\nh \n  \n i  \n\n  j   ",
    "    return  x\n        if y:\n\t\tpass\n" + " " * 70 + "z" + " " * 9 + "\n" + " " * 513 + "w",
    "\x00\x01\x07\x0b\x0c\x1b\x1c\x1f\x7f \x01 a\x02b",
    "\U0001f917\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd\U0001f44d \u2122\u00a9 \u00a3\u20ac\u00a5 \u2211\u222b",
    "<sentinel:12> IMGIMGABZ IMGIMGABCDEFZ x<|user|>  y <|endoftext|>\n the whole wholes",
    "", " ", "  ", "\n", "\n\n", "x", " x", "'", " '", "1", " 1",
)  # fmt: skip
"""Texts at which splittings differ."""


def merged(alphabet, texts, extra=()):
    """Merges learned without any splitting, so that nearly every cut changes the ids."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 2500, initial_alphabet=alphabet, show_progress=False,
        limit_alphabet=10_000, min_frequency=1, max_token_length=12,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return backend.get_vocab(), eval_merges(backend)


def eval_merges(backend):
    import json

    return [tuple(m) for m in json.loads(backend.to_str())["model"]["merges"]]


def pieces(texts):
    """Parts of the texts that overlap, so that pairs over every boundary are frequent."""
    for text in texts:
        yield from (text[start : start + 5] for start in range(len(text)))


@pytest.fixture(scope="module")
def byte_level():
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [level.pre_tokenize_str(text)[0][0] for text in pieces(TRICKY)]
    vocab, merges = merged(pre_tokenizers.ByteLevel.alphabet(), spelled)
    return vocab | {"Ġwhole": len(vocab)}, merges


@pytest.fixture(scope="module")
def raw():
    spelled = [text.replace(" ", "▁") for text in pieces(TRICKY)]
    vocab, merges = merged(sorted(set("".join(spelled)) - {"\0"}), spelled)
    vocab.pop("\0", None)
    merges = [m for m in merges if "\0" not in "".join(m)]
    vocab = [token for token in sorted(vocab, key=vocab.get) if "\0" not in token]
    vocab += [f"<0x{byte:02X}>" for byte in range(256)]
    return {token: index for index, token in enumerate(vocab)}, merges


def fields_for(name, vocab, merges):
    """The keys of a vocabulary under a name; gemma4 also as a model of its own."""
    tokens = sorted(vocab, key=vocab.get) + SPECIAL
    types = [6 if token.startswith("<0x") else 1 for token in tokens[:-2]] + [3, 3]
    raw = pretokenizers.BY_NAME.get(name, pretokenizers.BY_NAME["gemma4"]).raw
    kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}
    return (kind if name != "model" else {"tokenizer.ggml.model": "gemma4"}) | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(m if raw else (p.replace(" ", "Ġ") for p in m)) for m in merges],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }  # fmt: skip


def store(path, fields):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        add = writer.add_array if isinstance(value, list) else None
        add = add or (writer.add_string if isinstance(value, str) else writer.add_uint32)
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("name", [*pretokenizers.BY_NAME, "model"])
def test_every_splitting_is_llama_cpps(name, byte_level, raw, tmp_path):
    is_raw = name == "model" or pretokenizers.BY_NAME[name].raw
    fields = fields_for(name, *(raw if is_raw else byte_level))
    store(tmp_path / "v.gguf", fields)
    runtime, exact, fast = (
        Runtime(tmp_path / "v.gguf"),
        LlamaVocab(fields, name),
        from_gguf(fields, name),
    )
    for text in (*TRICKY, fuzz()):
        for special in (False, True):
            ids = runtime.encode(text, special)
            assert exact.encode(text, special=special) == ids, repr(text)
            if not is_raw or "\n\n" not in text:
                assert fast.encode(text, add_special_tokens=special) == ids, repr(text)
        assert "\0" in text or fast.decode(fast.encode(text, add_special_tokens=False)) == text
