"""Chats and their ends through the written files, and tokenizers whose files are broken."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.pieces import Pieces
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.errors import CheckpointError, EdgepackError, ExportError
from edgepack.export.genai import genai_config
from edgepack.export.gguf import write_plain
from edgepack.export.modelfile import modelfile, stops
from edgepack.metrics import multiple_choice
from edgepack.runtimes.agreement import agreement
from edgepack.runtimes.base import Sampling, tokenize_prefix
from edgepack.runtimes.chat import prompt
from edgepack.runtimes.hf_tokenizer import HfTokenizer
from tests.support.ollama import parse
from tests.support.tiny import CHAT, SPECIAL, make_model, make_tokenizer
from tests.support.vocabularies import sentencepiece

QUESTION = [{"role": "user", "content": "the fox?"}]
BOS, START, END = range(3)
NEWLINE = make_tokenizer().convert_tokens_to_ids("Ċ")


def write_model(folder, single="$A", template=CHAT, ends=None, saying=None):
    """A tiny model whose post-processor is `single`; it always says token `saying`."""
    make_model(folder, tied=False)
    tokenizer = make_tokenizer()
    known = [(t, tokenizer.convert_tokens_to_ids(t)) for t in SPECIAL if t in single]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=known
    )
    tokenizer.chat_template = template
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    if ends is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    if saying is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            model.model.embed_tokens.weight.fill_(1.0)
            for name, value in model.model.layers.named_parameters():
                if "norm" not in name:
                    value.zero_()
            model.model.norm.weight.fill_(1.0)
            model.lm_head.weight.zero_()
            model.lm_head.weight[saying] = 1.0
        model.save_pretrained(folder)
    return open_checkpoint(str(folder))


@pytest.fixture
def opening(tmp_path):
    """Opens a checkpoint as llama.cpp runs it."""
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.llama_cpp import LlamaCpp

    loaded = []

    def open_it(checkpoint):
        write_plain(tmp_path / "base.gguf", checkpoint)
        loaded.append(LlamaCpp(tmp_path / "base.gguf", context=128, threads=1))
        return loaded[-1]

    yield open_it
    for runtime in loaded:
        runtime.close()


@pytest.fixture
def served(tmp_path):
    """Opens the file that `opening` has written as `edgepack serve` runs it."""
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.served_llama import ServedLlama

    loaded = []

    def open_it():
        loaded.append(ServedLlama(tmp_path / "base.gguf", context=128, threads=1))
        return loaded[-1]

    yield open_it
    for llama in loaded:
        llama.close()


BEGINS_WITH_BOS = "{{ bos_token }}" + CHAT


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize(
    ("single", "template", "first"),
    [
        ("$A", CHAT, [START]),
        (f"{SPECIAL[0]} $A", CHAT, [BOS, START]),
        (f"{SPECIAL[0]} $A", BEGINS_WITH_BOS, [BOS, START]),
        (f"{SPECIAL[0]} $A", "{{ bos_token }}" + BEGINS_WITH_BOS, [BOS, START]),
        ("$A", BEGINS_WITH_BOS, [BOS, START]),
        (f"{SPECIAL[0]} $A {SPECIAL[2]}", BEGINS_WITH_BOS, [BOS, START]),
        (f"$A {SPECIAL[0]}", CHAT, [START]),
        (f"{SPECIAL[0]} $A", "\n" + BEGINS_WITH_BOS, None),
    ],
)
def test_a_prompt_has_one_bos_and_no_eos(single, template, first, tmp_path, opening, served):
    checkpoint = write_model(tmp_path / "m", single, template)
    tokenizer, runtime = checkpoint.tokenizer, opening(checkpoint)
    ids = prompt(runtime, QUESTION)
    tail = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    assert ids[-len(tail) :] == tail
    assert ids.count(BOS) == (1 if BOS in (first or [BOS]) else 0)
    if first is not None:
        assert ids[: len(first)] == first
    agreement(runtime, tokenizer)
    folder = HfTokenizer(tmp_path / "m")
    text = folder.chat_prompt(QUESTION)
    assert text == runtime.chat_prompt(QUESTION)
    assert folder.tokenize(text, bos=False, special=True) == runtime.tokenize(
        text, bos=False, special=True
    )
    assert folder.bos == runtime.bos
    llama = served()
    text = llama.prompt(QUESTION)
    assert llama.tokenize(text.encode(), add_bos=False, special=True) == ids
    theirs = llama.create_chat_completion(QUESTION, max_tokens=1)["usage"]["prompt_tokens"]
    assert theirs == len(ids)


@pytest.mark.llama
def test_measured_text_gets_no_eos(tmp_path, opening):
    runtime = opening(write_model(tmp_path / "m", f"{SPECIAL[0]} $A {SPECIAL[2]}"))
    assert runtime.tokenize("the fox")[-1] == END
    assert tokenize_prefix(runtime, "the fox")[:1] == [BOS]
    assert END not in tokenize_prefix(runtime, "the fox")
    stem, rest = multiple_choice.encode(runtime, "the fox", " jumps over")
    assert stem == tuple(tokenize_prefix(runtime, "the fox"))
    assert END not in rest
    assert rest


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize("which", range(6))
def test_every_end_ends_an_answer(which, tmp_path, opening, served):
    ends = [2, 300, 301, 302, 303, 304]
    checkpoint = write_model(tmp_path / "m", ends=ends, saying=ends[which])
    assert HfTokenizer(tmp_path / "m").ends == set(ends)
    runtime = opening(checkpoint)
    assert list(runtime.generate([START, 299], 4)) == []
    assert len(list(runtime.generate([START, 299], 4, Sampling(ignore_eos=True)))) == 4
    (choice,) = served().create_completion([START, 299], max_tokens=4)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")


@pytest.mark.slow
@pytest.mark.llama
def test_a_runtime_that_cuts_text_otherwise_is_found(tmp_path, opening):
    runtime = opening(write_model(tmp_path / "m"))
    other = make_tokenizer(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    )
    agreement(runtime, make_tokenizer())
    with pytest.raises(ExportError, match="reads text otherwise") as caught:
        agreement(runtime, other)
    assert "\n" not in str(caught.value)


@pytest.mark.llama
@pytest.mark.parametrize("safe", [True, False])
def test_a_served_model_does_not_use_amx_where_that_kills(
    safe, tmp_path, opening, served, monkeypatch
):
    opening(write_model(tmp_path / "m"))
    monkeypatch.setattr("edgepack.runtimes.served_llama.extra_buffers_are_safe", lambda: safe)
    assert served().model_params.use_extra_bufts == safe


@pytest.mark.llama
def test_named_templates_without_a_default_are_told_by_the_runtime(tmp_path, opening):
    runtime = opening(write_model(tmp_path / "m", template={"rag": CHAT, "tools": CHAT}))
    with pytest.raises(EdgepackError, match="rag, tools"):
        runtime.chat_prompt(QUESTION)


def test_stop_parameters_and_genai_name_all_ends(tmp_path):
    checkpoint = write_model(tmp_path / "m", ends=[0, 300, NEWLINE])
    word = checkpoint.tokenizer.decode([300])
    parameters = [("parameter", "stop", text) for text in (SPECIAL[0], word, SPECIAL[2])]
    assert parse(modelfile(stops=stops(checkpoint)))[2:] == parameters
    found = genai_config(checkpoint, tmp_path / "onnx/model.onnx", ["input_ids"], 64)
    assert found["model"]["eos_token_id"] == [0, 300, NEWLINE, 2]
    alone = write_model(tmp_path / "n")
    assert stops(alone) == []
    assert genai_config(alone, tmp_path / "x/y", [], 64)["model"]["eos_token_id"] == 2


def unigram():
    pieces = [("<unk>", 0.0), ("▁да", -1.0), ("x", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("make", [make_tokenizer, sentencepiece, unigram])
def test_documents_may_begin_with_any_token_that_begins_text(make):
    tokenizer = make()
    found = {tokenizer.convert_ids_to_tokens(i) for i in Pieces(tokenizer).openings(10_000)}
    expected = {
        make_tokenizer: {"Ġthe", "the", "A", "7", "#", "ĠÐ±", "Ð»"},
        sentencepiece: {"▁the", "▁wor", "world", "t"},
        unigram: {"▁да", "x"},
    }[make]
    assert expected & tokenizer.get_vocab().keys() <= found
    assert len(expected & tokenizer.get_vocab().keys()) > 1
    assert not found & {*SPECIAL, "<unk>", "<s>", "<0x41>", "▁", "▁▁", "Ġ", "Ċ", "Ð", "ä"}


def test_openings_in_other_scripts():
    names = ["Ġhello", "ĠÐ´Ð°", "ä½łå¥½", "Ġ×ª", "Ð", "<unused3>", "[PAD4]", "ĠĠ", "<|x|>"]
    tokenizer = make_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    vocab |= {name: len(vocab) + i for i, name in enumerate(n for n in names if n not in vocab)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    tokenizer.add_tokens(["word"])
    known = Pieces(tokenizer)
    found = {tokenizer.convert_ids_to_tokens(i) for i in known.openings(10_000)}
    assert {"Ġhello", "ĠÐ´Ð°", "ä½łå¥½", "Ġ×ª"} <= found
    assert not found & {"Ð", "<unused3>", "[PAD4]", "ĠĠ", "word"}
    assert known.bytes_of(tokenizer.convert_tokens_to_ids("ä½łå¥½")).decode() == "你好"


BROKEN = {
    "tokenizer.json": ["[]", "{}", '"x"', "{", "nul", '{"model": {"type": "BPE", "vocab": 3}}'],
    "tokenizer_config.json": [
        '{"add_eos_token": "yes"}',
        "[]",
        "7",
        '{"added_tokens_decoder": 3}',
        '{"added_tokens_decoder": {"x": {}}}',
        '{"eos_token": 5}',
        '{"eos_token": {"content": 7, "__type": "AddedToken"}}',
        '{"chat_template": "\\ud800"}',
        '{"chat_template": [{"name": 4, "template": "x"}]}',
        '{"chat_template": [3]}',
        '{"bos_token": ["<s>"]}',
    ],
    "special_tokens_map.json": ["[]", '{"eos_token": {"a": 1}}', "\x00"],
    "added_tokens.json": ["3", "[1]"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"), [(name, text) for name, texts in BROKEN.items() for text in texts]
)
def test_tokenizer_files_of_other_types_are_one_line_or_harmless(name, content, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / name).write_text(content)
    try:
        from_folder(tmp_path / "m").encode("the fox", add_special_tokens=False)
    except CheckpointError as error:
        said, hint = str(error), error.hint
    else:
        said, hint = "", "nothing to do"
    assert "\n" not in said
    assert len(said) < 300
    assert hint


def test_a_model_s_own_code_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    make_tokenizer().save_pretrained(tmp_path / "m")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    ran = tmp_path / "ran"
    (tmp_path / "m/own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    config = tmp_path / "m/tokenizer_config.json"
    told = json.loads(config.read_text()) | {"tokenizer_class": "Own"}
    config.write_text(json.dumps(told | {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}))
    assert from_folder(tmp_path / "m").encode("the fox", add_special_tokens=False)
    (tmp_path / "m/tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        from_folder(tmp_path / "m")
    assert "tokenizer.json" in caught.value.hint
    assert not ran.exists()


def test_a_post_processor_that_names_what_it_does_not_define_is_refused(tmp_path, capfd):
    """tokenizers panics over it, with a message of its own on stderr."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIAL[2]}", pair="$A $B", special_tokens=[(SPECIAL[2], END)]
    )
    tokenizer.save_pretrained(tmp_path / "m")
    path = tmp_path / "m/tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="does not define it"):
        from_folder(tmp_path / "m")
    assert "panicked" not in capfd.readouterr().err
