"""Tokenizers of the families on phones, as their folders hold them: small, with the real steps."""

import json

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from edgepack.checkpoint import pretokenizer_names, probes, vocabulary
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.tokenizer import from_folder, from_gguf
from edgepack.checkpoint.vocabulary_check import compare
from edgepack.errors import CheckpointError
from tests.support.tiny import SPECIAL, make_tokenizer
from tests.support.tokenizer_files import (
    LOWER,
    START,
    TEKKEN,
    UPPER,
    write_sentencepiece,
    write_tekken,
)
from tests.support.tricky import TRICKY
from tests.support.vocabularies import Runtime, sentencepiece

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST
O200K = (
    f"{START}{UPPER}*{LOWER}+{CONTRACTIONS}?|{START}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (  # with line ends as characters, not as escapes
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def split(pattern):
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def kept(pattern):
    """The same, as converters from tiktoken write it."""
    return split(pattern) | {"behavior": "Removed", "invert": True}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
FAMILIES = {
    "SmolLM3": ("llama-bpe", True, [split(CL100K), BYTES]),
    "Ministral 3": ("tekken", True, [split(TEKKEN), BYTES]),
    "Granite 3": ("smollm", False, [{"type": "Digits", "individual_digits": True}, GPT2]),
    "Granite 4": ("dbrx", False, [split(CL100K), BYTES]),
    "OLMo 2": ("dbrx", False, [kept(CL100K), BYTES]),
    "MiniCPM5": (
        "minicpm5", True, [split(r"\p{N}{1,3}"), split(CL100K.replace("{1,3}", "+")), BYTES]
    ),
    "Phi-4-mini": ("gpt-4o", False, [kept(O200K), BYTES]),
    "gpt-oss": ("gpt-4o", False, [split(O200K), BYTES]),
    "Qwen3.5": ("qwen35", False, [split(QWEN35), BYTES]),
    "LFM2": ("llama-bpe", True, [split(CL100K), BYTES]),
    "GLM-4": ("dbrx", False, [split(CL100K), BYTES]),
    "Hunyuan": (
        "deepseek-v3", False,
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3), BYTES],
    ),
    "EXAONE 4": ("gpt-2", False, [GPT2]),
    "Falcon": (
        "falcon", False,
        [{"type": "Punctuation", "behavior": "Contiguous"}, GPT2, split("[0-9][0-9][0-9]")],
    ),
}  # fmt: skip
"""Family → name in GGUF without a known checksum, `ignore_merges`, and steps of tokenizer.json."""


def with_steps(steps, ignoring):
    content = probes.backend_of(make_tokenizer())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    content["model"]["ignore_merges"] = ignoring
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
    )


def fields_of(tokenizer, architecture="llama", path=None, name=None):
    writer = gguf.GGUFWriter(path, architecture)
    if name is not None:
        writer.add_name(name)
    vocabulary.write(writer, tokenizer, len(tokenizer), {})
    if path is not None:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    return {key: entry.value for key, entry in writer.kv_data[0].items()}


def check_runtime(tokenizer, path, architecture="llama", *, name=None, texts=TRICKY):
    """llama.cpp, our own reading of the file, and the source give the same ids."""
    fields = fields_of(tokenizer, architecture, path, name)
    runtime, again = Runtime(path), from_gguf(fields, "x")
    for text in texts:
        ids = tokenizer.encode(text)
        assert runtime.encode(text, True) == ids, repr(text)
        assert again.encode(text) == ids, repr(text)
        assert LlamaVocab(fields, "x").encode(text, special=True) == ids, repr(text)
    return fields


@pytest.mark.parametrize("family", FAMILIES)
def test_byte_level_families(family, tmp_path):
    name, ignoring, steps = FAMILIES[family]
    with_steps(steps, ignoring).save_pretrained(tmp_path)
    tokenizer = from_folder(tmp_path)
    assert pretokenizer_names.find(tokenizer) == name
    fields = fields_of(tokenizer, path=tmp_path / "v.gguf")
    assert compare(fields, tokenizer) == ()
    runtime = Runtime(tmp_path / "v.gguf")
    for text in probes.EVERYDAY:
        assert runtime.encode(text, True) == tokenizer.encode(text), repr(text)


def gemma(*, bos=True):
    """Gemma's steps: blanks are marked before a splitting at blanks that finds none."""
    tokenizer = sentencepiece(("▁the", "▁then", "he", "world", "▁▁"))
    content = probes.backend_of(tokenizer)
    content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
        "invert": False,
    }  # fmt: skip
    content["decoder"]["decoders"].pop()
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=bos,
    )


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "gemma4"])
def test_gemma(architecture, tmp_path):
    gemma().save_pretrained(tmp_path)
    tokenizer = from_folder(tmp_path)
    tokenizer.add_tokens([AddedToken("<start_of_turn>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<|channel>", special=True, normalized=False)])
    texts = (*TRICKY, "<start_of_turn>the\n\n<|channel>  the")
    fields = check_runtime(tokenizer, tmp_path / "v.gguf", architecture, texts=texts)
    assert compare(fields, tokenizer) == ()
    kinds = dict(
        zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    )
    assert kinds["<start_of_turn>"] == gguf.TokenType.CONTROL
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    if architecture == "gemma4":
        assert fields["tokenizer.ggml.model"] == "gemma4"
        assert "tokenizer.ggml.pre" not in fields
        assert set(fields["tokenizer.ggml.scores"]) == {-1000.0}
        assert kinds["<|channel>"] == gguf.TokenType.USER_DEFINED
        assert fields["tokenizer.ggml.merges"][0] == "▁ t"
    else:
        assert fields["tokenizer.ggml.model"] == "llama"
        assert kinds["<|channel>"] == gguf.TokenType.CONTROL


def test_gemma4_without_its_first_token_is_refused():
    """llama.cpp puts BOS before every text of Gemma 4, whatever the file says."""
    tokenizer = gemma(bos=False)
    with pytest.raises(CheckpointError, match="puts other tokens around a text"):
        compare(fields_of(tokenizer, "gemma4"), tokenizer)
    assert compare(fields_of(tokenizer, "gemma3"), tokenizer) == ()


def phi3():
    tokenizer = sentencepiece()
    flags = {"special": True, "normalized": False}
    tokenizer.add_tokens(
        [AddedToken(token, **flags) for token in ("<|endoftext|>", "<unk>", "<s>")]
        + [AddedToken(token, rstrip=True, **flags) for token in ("</s>", "<|user|>", "<|end|>")]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("name", "settled"),
    [
        (None, "Phi-3"),
        ("Phi 3 Mini 4k Instruct", "Phi-3 Mini 4k Instruct"),
        ("My Chat Model", "My Chat Model (Phi-3)"),
        ("phi3-mini", "phi3-mini"),
    ],
)
def test_phi3_drops_blanks_after_special_tokens(name, settled, tmp_path):
    """llama.cpp does so for models of that name, so the name says it."""
    tokenizer = phi3()
    texts = ("<|user|>\n the<|end|>\n", "</s>  the <s>  the", "the <|end|>\t\t", "<|endoftext|>  x")
    fields = check_runtime(tokenizer, tmp_path / "v.gguf", name=name, texts=texts)
    assert fields["general.name"] == settled
    assert compare(fields, tokenizer) == ()


def test_other_models_are_not_called_phi3(tmp_path):
    """llama.cpp would look for Phi-3's tokens, and end with an error without them."""
    tokenizer = make_tokenizer()
    fields = fields_of(tokenizer, path=tmp_path / "v.gguf", name="Notes on phi-3")
    assert fields["general.name"] == "Notes on Phi 3"
    assert Runtime(tmp_path / "v.gguf").encode("the fox", True) == tokenizer.encode("the fox")
    with pytest.raises(CheckpointError, match=r"no token </s>; llama\.cpp cannot load"):
        LlamaVocab(fields | {"general.name": "phi-3"}, "x")


def test_glms_two_tokens_before_a_text_are_one_in_gguf(tmp_path):
    tokenizer = with_steps([split(CL100K), BYTES], True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    first, second = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", first), ("<sop>", second)]
    )
    fields = fields_of(tokenizer, path=tmp_path / "v.gguf")
    assert fields["tokenizer.ggml.bos_token_id"] == first
    (warning,) = compare(fields, tokenizer)
    assert "leaves out '<sop>' (chat templates may write them)" in warning
    bare = tokenizer.encode("the", add_special_tokens=False)
    assert Runtime(tmp_path / "v.gguf").encode("the", True) == [first, *bare]


def test_a_folder_with_only_tekken_json(tmp_path):
    tokens = write_tekken(tmp_path / "tekken.json")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}[INST]{{ messages[0].content }}")
    tokenizer = from_folder(tmp_path)
    assert len(tokenizer) == len(tokens) + 10
    assert tokenizer.encode("[INST] a")[:3] == [1, 3, 10 + tokens.index(b" a")]
    assert tokenizer.convert_tokens_to_ids("<SPECIAL_9>") == 9
    assert pretokenizer_names.find(tokenizer) == "tekken"
    assert tokenizer.chat_template.startswith("{{ bos_token }}[INST]")
    fields = check_runtime(tokenizer, tmp_path / "v.gguf", texts=probes.EVERYDAY)
    assert compare(fields, tokenizer) == ()
    content = json.loads((tmp_path / "tekken.json").read_text())
    content["vocab"][-1]["token_bytes"] = "A" * 10_000
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tekken\.json: a piece of the vocabulary is"):
        from_folder(tmp_path)
    (tmp_path / "tekken.json").write_text('{"config": {}}')
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded") as caught:
        from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_folder_with_only_sentencepieces_model(prefix, tmp_path):
    """ERNIE 4.5, Phi-3, Gemma …: flags of the model, and tokens of tokenizer_config.json."""
    size = write_sentencepiece(tmp_path, prefix=prefix)
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False}
    listed = {
        str(size + i): flags | {"content": token} for i, token in enumerate(["<|user|>", "<|end|>"])
    }
    config = {"chat_template": "<|user|>{{ messages[0].content }}<|end|>", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"added_tokens_decoder": listed, "tokenizer_class": "LlamaTokenizer"})
    )
    tokenizer = from_folder(tmp_path)
    the = tokenizer.convert_tokens_to_ids("▁the" if prefix else "he")
    assert the in tokenizer.encode("the")
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == size + 1
    assert tokenizer.encode("<|user|>", add_special_tokens=False) == [size]
    assert (
        tokenizer.decode(tokenizer.encode("the wing 狐"), skip_special_tokens=True) == "the wing 狐"
    )
    fields = check_runtime(tokenizer, tmp_path / "v.gguf")
    assert fields["tokenizer.ggml.add_space_prefix"] is prefix
    assert compare(fields, tokenizer) == ()


def test_config_and_added_tokens_go_before_the_model(tmp_path):
    size = write_sentencepiece(tmp_path, config={"add_prefix_space": False, "add_bos_token": False})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": size, "<b>": size + 1}))
    tokenizer = from_folder(tmp_path)
    assert tokenizer.encode("he<b>") == [tokenizer.convert_tokens_to_ids("he"), size + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": size + 7}))
    with pytest.raises(CheckpointError, match=f"'<a>' should be {size + 7}, and would be {size}"):
        from_folder(tmp_path)


def test_sentencepiece_that_is_no_bpe_or_squeezes_blanks(tmp_path):
    write_sentencepiece(tmp_path, squeeze=True)
    tokenizer = from_folder(tmp_path)
    assert tokenizer.encode("  he   he ") == tokenizer.encode("he he")
    with pytest.raises(CheckpointError, match=r"normalizer .Replace., which GGUF has not"):
        compare(fields_of(tokenizer), tokenizer)
    write_sentencepiece(tmp_path, kind=1)
    with pytest.raises(CheckpointError, match="sentencepiece's, and no BPE") as caught:
        from_folder(tmp_path)
    assert caught.value.hint
    write_sentencepiece(tmp_path, more=["a" * 2000])
    with pytest.raises(CheckpointError, match=r"a piece of more than 1024 characters"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded") as caught:
        from_folder(tmp_path)
    assert "\n" not in str(caught.value)
