"""What a GGUF file makes of a vocabulary: exactly what llama.cpp does, and refused where that is
not what the source does."""

import json
import random
import re

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgepack.checkpoint import (
    open_checkpoint,
    pretokenizers,
    probes,
    special,
    templates,
    vocabulary,
)
from edgepack.checkpoint.llama_vocab import LlamaVocab
from edgepack.checkpoint.tokenizer import from_gguf
from edgepack.checkpoint.vocabulary_check import compare
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.pipeline import make_plan as plan
from edgepack.recipe.sections import Recipe
from tests.support.tiny import SPECIAL, make_model, make_tokenizer
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


def added(make, *tokens):
    tokenizer = make()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def plain(content, **flags):
    return AddedToken(content, normalized=False, **flags)


def normalizing(normalizer, make=make_tokenizer):
    tokenizer = make()
    old = tokenizer.backend_tokenizer.normalizer
    both = normalizers.Sequence([normalizer, old]) if old else normalizer
    tokenizer.backend_tokenizer.normalizer = both
    return tokenizer


def metaspace(scheme, *before):
    tokenizer = sentencepiece()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([])
    marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, marks])
    return tokenizer


def ending(single, *, make=make_tokenizer):
    tokenizer = make()
    known = [(t, tokenizer.convert_tokens_to_ids(t)) for t in SPECIAL if t in single]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=known
    )
    return tokenizer


def over_boundaries(name):
    """A splitting, and merges that were learned without it."""
    tokenizer = make_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    content = probes.backend_of(tokenizer)
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    for left, right in (("l", "C"), ("P", "S")):  # CamelCase, HTTPServer
        vocab[left + right] = len(vocab)
        merges.insert(0, [left, right])
    content["model"]["ignore_merges"] = pretokenizers.SPLITTINGS[name].ignore_merges
    backend = Tokenizer.from_str(json.dumps(content))
    backend.pre_tokenizer = splits(name)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[2])


VOCABULARIES = {
    "spaces": lambda: added(make_tokenizer, "  ", "    ", "\n\n"),
    "words": lambda: added(make_tokenizer, "fox", "lazy dog", plain("👍"), "<|odd|>"),
    "overlapping": lambda: added(make_tokenizer, plain("ab"), plain("bcd"), plain("cdefg")),
    "sentencepiece": sentencepiece,
    "sentencepiece words": lambda: added(sentencepiece, plain("the"), plain("ing  x")),
    "sentencepiece marks": lambda: metaspace("never"),
    "bos and eos": lambda: ending(f"{SPECIAL[0]} $A {SPECIAL[2]}"),
    "no prefix": lambda: metaspace("never"),
    "harmony": lambda: added(make_tokenizer, AddedToken("<|start|>", special=True), "<|message|>"),
}
TEXTS = (*probes.EVERYDAY, *probes.RARE, "abcdefg xab", "the  thething  x <s>the</s> <|start|>x")


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_steps_are_llama_cpps(name, tmp_path):
    tokenizer = VOCABULARIES[name]()
    write_vocabulary(tmp_path / "v.gguf", tokenizer, rows=len(tokenizer) + 3)
    vocab = LlamaVocab(fields_of(tokenizer, len(tokenizer) + 3), name)
    runtime = Runtime(tmp_path / "v.gguf")
    for text in (*TEXTS, *(text for text, _ in probes.texts(tokenizer)), fuzz()[:800]):
        for whole in (False, True):
            assert vocab.encode(text, special=whole) == runtime.encode(text, whole), repr(text)


def test_merges_by_score_are_llama_cpps(tmp_path):
    """Scores at random, many of them equal, and merges that no list has."""
    rng = random.Random(3)
    words = {"".join(rng.choices("abc▁", k=rng.randint(1, 5))) for _ in range(120)} | set("abc▁")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *sorted(words)]
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([float(rng.randint(-9, 0)) for _ in pieces])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])
    fields = {key: entry.value for key, entry in writer.kv_data[0].items()}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    vocab, runtime = LlamaVocab(fields, "x"), Runtime(tmp_path / "v.gguf")
    for _ in range(60):
        text = "".join(rng.choices("abc x", k=30))
        assert vocab.encode(text, special=True) == runtime.encode(text, True)


@pytest.mark.slow
def test_ordinary_vocabularies_are_taken_without_a_word():
    for make in (make_tokenizer, sentencepiece, lambda: metaspace("never")):
        tokenizer = make()
        assert compare(fields_of(tokenizer), tokenizer) == ()
    for name in RECOGNISED:
        tokenizer = make_tokenizer(GPT2_STYLE.get(name) or splits(name))
        ignoring = pretokenizers.SPLITTINGS[name].ignore_merges
        tokenizer.backend_tokenizer.model.ignore_merges = ignoring
        approximated = pretokenizers.SPLITTINGS[name].original is not None
        assert compare(fields_of(tokenizer), tokenizer) == () or approximated, name


N = normalizers
REFUSED = {
    "Lowercase": lambda: normalizing(N.Lowercase()),
    "NFD, StripAccents": lambda: normalizing(N.Sequence([N.NFD(), N.StripAccents()])),
    "normalizer .Strip": lambda: normalizing(N.Strip(left=False)),
    "Lowercase.* GGUF has not": lambda: normalizing(N.Lowercase(), sentencepiece),
    r"before merging .Digits": lambda: metaspace("always", pre_tokenizers.Digits(True)),
    r"before merging .Punctuation": lambda: metaspace("always", pre_tokenizers.Punctuation()),
    "'the' is looked for in norm": lambda: added(sentencepiece, AddedToken("the", normalized=True)),
    "around the token 'ab'": VOCABULARIES["overlapping"],
    "would both be '  '": lambda: added(sentencepiece, plain("  "), plain("▁▁")),
    "has a NUL": lambda: added(make_tokenizer, plain("a\0b")),
    "'the' has single_word": lambda: added(make_tokenizer, plain("the", single_word=True)),
    "Unigram": lambda: PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    ),
    "WordPiece": lambda: PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", REFUSED)
def test_what_gguf_cannot_hold_is_one_line_that_says_why(reason):
    tokenizer = REFUSED[reason]()
    with pytest.raises(CheckpointError, match=reason) as caught:
        compare(fields_of(tokenizer), tokenizer)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert caught.value.hint


def test_bytes_that_a_vocabulary_lacks_are_refused():
    """llama.cpp ends the process over a text that needs one."""
    fields = fields_of(sentencepiece())
    at = fields["tokenizer.ggml.tokens"].index("<0xC3>")
    fields["tokenizer.ggml.tokens"][at] = "something"
    with pytest.raises(CheckpointError, match="<0xC3>"):
        LlamaVocab(fields, "x")
    byteless = make_tokenizer()
    tokens = fields_of(byteless)
    tokens["tokenizer.ggml.tokens"][byteless.convert_tokens_to_ids("Ñ")] = "nothing"
    with pytest.raises(CheckpointError, match="GGUF cannot hold"):
        compare(tokens, byteless)


WARNED = {
    "NFC": (lambda: normalizing(N.NFC()), "normalizer .NFC"),
    "NFKC": (lambda: normalizing(N.NFKC()), "normalizer .NFKC.*so too"),
    "sentencepiece NFKC": (lambda: normalizing(N.NFKC(), sentencepiece), "normalizer .NFKC"),
    "first": (lambda: metaspace("first"), "puts a space before"),
    "always": (lambda: metaspace("always"), "puts a space before"),
    "special": (
        lambda: added(sentencepiece, AddedToken("<e>", special=True, normalized=True)),
        "'<e>' is looked for in normalized",
    ),
    "eos": (lambda: ending(f"$A {SPECIAL[2]}"), "ends every text with '<.im_end.>'"),
    "two before": (
        lambda: ending(f"{SPECIAL[1]} {SPECIAL[0]} $A"),
        r"leaves out '<.endoftext.>' .*'a' is \[1, 0, \d+\] in the source, \[1, \d+\] there",
    ),
    "lstrip": (lambda: added(make_tokenizer, plain("<ent>", lstrip=True)), "'<ent>' has lstrip"),
    "rstrip": (lambda: added(sentencepiece, plain("<ent>", rstrip=True)), "'<ent>' has rstrip"),
    "single_word": (
        lambda: added(make_tokenizer, plain("qz", single_word=True)),
        "'qz' has single_word, which GGUF has not; 'aqzb' is .* so too 'qzqz', .*, '1qz2'",
    ),
    "unseen": (
        lambda: added(make_tokenizer, plain("ent", single_word=True)),
        "'ent' has single_word, which GGUF has not; no text of [0-9]+ differs",
    ),
    "late": (
        lambda: added(
            make_tokenizer,
            *(f"<w{i}>" for i in range(300)),
            AddedToken("<unlikely>", special=True, rstrip=True),
        ),
        "'<unlikely>' has rstrip",
    ),
    "cases": (
        lambda: over_boundaries("youtu"),
        "only approximates the expressions by which it splits text; .*CamelCase",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_llama_cpp_is_known_to_do_otherwise_is_a_warning(name):
    make, expected = WARNED[name]
    tokenizer = make()
    found = compare(fields_of(tokenizer), tokenizer)
    assert sum(re.search(expected, warning) is not None for warning in found) == 1, found
    assert len(found) == 1
    assert all("\n" not in warning and len(warning) < 400 for warning in found)


def test_files_without_a_pretokenizers_name_have_llama_cpps_default():
    fields = fields_of(make_tokenizer(splits("default")))
    assert fields.pop("tokenizer.ggml.pre") == "default"
    assert compare(fields, from_gguf(fields, "x")) == ()


def test_tokens_that_only_one_side_finds_whole_are_a_warning():
    """The splitting of Qwen, but pieces that are tokens are taken whole: no name has both."""
    tokenizer = make_tokenizer(splits("qwen2"))
    tokenizer.backend_tokenizer.model.ignore_merges = True
    assert compare(fields_of(tokenizer), tokenizer) == ()  # merges make every token
    content = probes.backend_of(tokenizer)
    content["model"]["vocab"]["Ġunmade"] = len(content["model"]["vocab"])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token=SPECIAL[2]
    )
    (warning,) = compare(fields_of(whole), whole)
    assert "1 tokens that no merges make, 'Ġunmade' first, are kept whole in the source" in warning
    fields, ids = fields_of(whole), whole.encode(" unmade")
    assert len(ids) == 1
    assert LlamaVocab(fields, "x").encode(" unmade") != ids


def test_names_of_control_tokens_in_plain_text_are_a_warning():
    tokenizer = make_tokenizer()
    backend = probes.backend_of(tokenizer)
    backend["model"]["vocab"]["</s>"] = len(backend["model"]["vocab"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token=SPECIAL[2]
    )
    (warning,) = compare(fields_of(tokenizer), tokenizer)
    assert "'</s>' is plain text" in warning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("single", "bos", "eos", "flags"),
    [
        ("$A", 0, 2, (False, False)),
        (f"{SPECIAL[0]} $A", 0, 2, (True, False)),
        (f"{SPECIAL[1]} $A", 1, 2, (True, False)),
        (f"$A {SPECIAL[2]}", 0, 2, (False, True)),
        (f"$A {SPECIAL[0]}", 0, 0, (False, True)),
        (f"{SPECIAL[1]} $A {SPECIAL[0]}", 1, 0, (True, True)),
    ],
)
def test_what_is_put_around_a_text_is_put_around_it_by_llama_cpp(single, bos, eos, flags, tmp_path):
    tokenizer = ending(single)
    fields = fields_of(tokenizer)
    assert fields["tokenizer.ggml.bos_token_id"] == bos
    assert fields["tokenizer.ggml.eos_token_id"] == eos
    assert fields.get("tokenizer.ggml.eot_token_id") == (2 if eos == 0 else None)
    keys = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
    assert tuple(fields[key] for key in keys) == flags
    write_vocabulary(tmp_path / "v.gguf", tokenizer)
    runtime, again = Runtime(tmp_path / "v.gguf"), reread(tmp_path / "v.gguf")
    for text in ("", "a fox", f"{SPECIAL[1]}user\n"):
        assert runtime.encode(text, True) == tokenizer.encode(text) == again.encode(text)


def test_a_template_gets_the_texts_that_it_had():
    """The file's EOS is what ends a text, so the template is told what ends a turn."""
    tokenizer = ending(f"$A {SPECIAL[0]}")
    tokenizer.chat_template = "\n{{ messages[0].content + eos_token }}"
    fields = fields_of(tokenizer)
    stored = fields["tokenizer.chat_template"]
    names = {"eos_token": SPECIAL[fields["tokenizer.ggml.eos_token_id"]]}
    messages = [{"role": "user", "content": "x"}]
    source = templates.render(tokenizer.chat_template, messages, special.names_of(tokenizer))
    assert templates.render(stored, messages, names) == source
    assert source.endswith(SPECIAL[2])
    assert any("sets its" in warning for warning in compare(fields, tokenizer))
    ordinary = make_tokenizer()
    assert fields_of(ordinary)["tokenizer.chat_template"] == ordinary.chat_template


def test_rows_without_a_token_get_names_that_no_token_has():
    n = len(make_tokenizer())
    tokenizer = added(make_tokenizer, f"[PAD{n + 1}]")
    names = fields_of(tokenizer, n + 3)["tokenizer.ggml.tokens"]
    assert names[n:] == [f"[PAD{n + 1}]", f"[[PAD{n + 1}]]", f"[PAD{n + 2}]"]


def test_every_end_of_an_answer_has_a_place_or_a_warning():
    stops = [f"<stop_{i}>" for i in range(5)]
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": stops})
    ids = tokenizer.convert_tokens_to_ids(stops)

    def fields(generation, config):
        writer = gguf.GGUFWriter(None, "llama")
        vocabulary.write(writer, tokenizer, len(tokenizer), config, generation)
        return {key: entry.value for key, entry in writer.kv_data[0].items()}

    two = fields({"eos_token_id": ids[:1]}, {"eos_token_id": ids[1]})
    assert special.gguf_ends(two) == [2, *ids[:2]]
    assert special.MORE_ENDS not in two
    many = fields({"eos_token_id": [2, *ids]}, {})
    assert set(special.gguf_ends(many)) == {2, *ids}
    (warning,) = compare(many, tokenizer)
    assert all(stop in warning for stop in stops[2:])
    assert stops[0] not in warning
    known_by_name = fields({"eos_token_id": [ids[0], ids[1], ids[2], 0]}, {})
    assert special.gguf_ends(known_by_name) == [2, ids[0], ids[1], ids[2]]


def test_the_token_that_closes_an_answer_ends_it():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<over>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <over>\n{% endfor %}"
    assert special.ends(tokenizer) == (2, tokenizer.convert_tokens_to_ids("<over>"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\nover\n{% endfor %}"
    assert special.ends(tokenizer) == (2,)


@pytest.mark.parametrize("value", ["2", [2, "3"], True, {"a": 1}, 2.5])
def test_ends_of_another_type_are_one_line(value):
    with pytest.raises(CheckpointError, match="eos_token_id: should be a number"):
        special.ends(make_tokenizer(), {"eos_token_id": value})


def test_a_tokenizer_that_names_no_end_is_told_what_llama_cpp_does():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    (warning,) = compare(fields_of(tokenizer), tokenizer)
    assert "token 11" in warning


def test_ids_without_a_row_are_left_out(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.chat_template = None
    writer = gguf.GGUFWriter(None, "llama")
    config = {"eos_token_id": [10**6, 2], "pad_token_id": 1 << 40, "sep_token_id": -1}
    vocabulary.write(writer, tokenizer, len(tokenizer), config)
    fields = {key: entry.value for key, entry in writer.kv_data[0].items()}
    assert special.gguf_ends(fields) == [2]
    assert not any("padding" in key or "sep" in key for key in fields)
    assert compare(fields, tokenizer) == ()
    assert LlamaVocab(fields | {"tokenizer.ggml.eos_token_id": 10**6}, "x").eos == 11


def recipe(**sections):
    return Recipe.model_validate({"model": "m", **sections})


@pytest.mark.slow
def test_plans_for_gguf_refuse_what_other_targets_take(tmp_path):
    make_model(tmp_path / "m")
    normalizing(N.Lowercase()).save_pretrained(tmp_path / "m")
    with pytest.raises(EdgepackError, match="Lowercase"):
        plan(recipe(), "gguf", tmp_path)
    assert plan(recipe(), "checkpoint", tmp_path).warnings == []


def test_plans_tell_what_a_file_changes(tmp_path):
    make_model(tmp_path / "m")
    tokenizer = normalizing(N.NFC())
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    tokenizer.save_pretrained(tmp_path / "m")
    warnings = plan(recipe(compress={"format": "q4_0"}), "gguf", tmp_path).warnings
    assert any("NFC" in warning for warning in warnings)
    assert any("documents only" in warning and "not today" in warning for warning in warnings)


def test_more_tokens_than_rows_are_found_while_planning(tmp_path):
    make_model(tmp_path / "m")
    added(make_tokenizer, "<new>").save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"tokens, the embedding has \d+ rows .*'<new>'"):
        plan(recipe(), "gguf", tmp_path)


def test_ends_that_only_config_json_lists_are_kept(tmp_path):
    make_model(tmp_path / "m")
    assert "eos_token_id" not in special.with_ends({}, {"eos_token_id": 2})
    assert special.with_ends({"eos_token_id": 5, "x": 1}, {"eos_token_id": [2, 5]}) == {
        "eos_token_id": [5, 2],
        "x": 1,
    }
    found = open_checkpoint("m", tmp_path)
    assert special.ends(found.tokenizer, found.generation_config()) == (2,)
