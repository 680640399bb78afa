"""Tokenizers of all kinds, as GGUF vocabularies and back."""

import random
import unicodedata

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import PreTrainedTokenizerFast

from edgepack.checkpoint import pretokenizers, vocabulary
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.checkpoint.tokenizer import from_gguf


def fuzz():
    """Assigned characters only: the tables of the two libraries are of different Unicode ages."""
    rng = random.Random(0)
    ranges = [(32, 127), (0xA0, 0x2000), (0x2000, 0xD7FF), (0x10000, 0x1FFFF)]
    pieces = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(2000)]
    pieces = [p for p in pieces if unicodedata.category(p) != "Cn"]
    return "".join(p + rng.choice(["", "", " ", "\n", "'"]) for p in pieces)


def fields_of(tokenizer, rows=None):
    writer = gguf.GGUFWriter(None, "llama")
    vocabulary.write(writer, tokenizer, rows or len(tokenizer), {})
    return {key: entry.value for key, entry in writer.kv_data[0].items()}


class Runtime:
    """llama.cpp's tokenizer on a vocabulary-only GGUF."""

    def __init__(self, path):
        llama_cpp = pytest.importorskip("llama_cpp")
        self.model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def encode(self, text, special):
        return self.model.tokenize(text.encode(), add_bos=special, special=True)


def splits(name):
    splitting = pretokenizers.SPLITTINGS[name]
    patterns = splitting.original or splitting.patterns
    last = ByteLevel(add_prefix_space=False, use_regex=False)
    return Sequence([*(Split(Regex(any_case(p)), "isolated") for p in patterns), last])


RECOGNISED = [
    name
    for name, splitting in pretokenizers.SPLITTINGS.items()
    if not splitting.raw and name not in ("glm4", "bailingmoe")
]
"""Splittings that are known by their expressions; the others split like one of these."""
GPT2_STYLE = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
}


def write_vocabulary(path, tokenizer, rows=None):
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary.write(writer, tokenizer, rows or len(tokenizer), {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def reread(path):
    return from_gguf({k: v[0] for k, v in GgufHeader(path).metadata.items()}, path.name)


WORDS = ("▁the", "▁then", "he", "▁wor", "world", "ing", "▁▁")


def sentencepiece(words=WORDS, *, special=("<unk>", "<s>", "</s>"), prefix=True):
    """Llama 2's kind of tokenizer: every piece has a way to be merged, bytes for the rest. Gemma's
    has other `special` tokens and no blank before a text (no `prefix`)."""
    pieces = [*special, *(f"<0x{b:02X}>" for b in range(256))]
    merges, known = [], dict.fromkeys([*pieces, *sorted(set("▁thenworldig"))])
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                merges.append((word[: end - 1], word[end - 1]))
            known[word[:end]] = None
    vocab = {piece: index for index, piece in enumerate(known)}
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    blanks = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, blanks]) if first else blanks
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, *last])
    bos, eos = ("<s>", "</s>") if "<s>" in special else ("<bos>", "<eos>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )


def any_case(pattern):
    """The spelling that tokenizer.json has."""
    return pattern.replace(pretokenizers.ANY_CASE, f"(?i:{pretokenizers.CONTRACTION})")
