"""Chat templates of merged models."""

import pytest

from edgepack.checkpoint import templates
from edgepack.checkpoint.tokenizer import from_folder
from edgepack.errors import RecipeError
from edgepack.merge.chat_templates import PRESETS, choose
from edgepack.merge.tokenizers import merge_tokenizers
from edgepack.merge.vocabulary import Vocabulary
from tests.support.tiny import CHAT, make_tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CONVERSATION = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]
RENDERED = {
    "alpaca": "S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n"
    "### Response:\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]S[|endofturn|]\n[|user|]U\n[|assistant|]A[|endofturn|]\n[|user|]V\n"
    "[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
}


def vocabulary(model, template=CHAT):
    tokenizer = make_tokenizer(vocab=300)
    tokenizer.chat_template = template
    return Vocabulary(model, tokenizer, len(tokenizer))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_write_the_markers_of_their_families(name):
    found = templates.render(PRESETS[name], CONVERSATION, NAMES, add_generation_prompt=True)
    assert found == RENDERED[name]
    without = templates.render(PRESETS[name], CONVERSATION[1:2], NAMES)
    assert "U" in without
    assert "S" not in without.replace("INST", "").replace("<s>", "")


def test_auto_is_the_most_common_and_the_first_of_several():
    a, b, c = vocabulary("a"), vocabulary("b", "{{ 'x' }}"), vocabulary("c", "{{ 'x' }}")
    assert choose("auto", [a, b, c], a) == ("{{ 'x' }}", [])
    assert choose("auto", [a, b], a) == (None, [])
    assert choose("auto", [a, b], b)[0] == CHAT
    none = vocabulary("none", None)
    assert choose("auto", [none, b], none)[0] == "{{ 'x' }}"
    assert choose("auto", [none], none) == (
        None,
        ["chat_template: auto, and no model has a template"],
    )


def test_without_the_key_the_first_is_kept_and_a_difference_is_said():
    a, b = vocabulary("a"), vocabulary("b", "{{ 'x' }}")
    template, warnings = choose(None, [a, b], a)
    assert template is None
    assert warnings == ["chat_template: b and a have different ones; that of a is kept"]
    assert choose(None, [a, vocabulary("c")], a) == (None, [])


def test_a_preset_whose_tokens_are_missing_is_a_warning_and_a_wrong_word_an_error():
    a = vocabulary("a")
    assert choose("chatml", [a], a) == (PRESETS["chatml"], [])
    (warning,) = choose("llama3", [a], a)[1]
    assert "<|eot_id|>" in warning
    assert choose("{{ messages }}", [a], a) == ("{{ messages }}", [])
    with pytest.raises(RecipeError, match="'lama3' is no template") as error:
        choose("lama3", [a], a)
    assert "llama3" in error.value.hint


def test_a_chosen_template_is_the_only_one_in_the_files(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    a = vocabulary("a", {"default": CHAT, "tools": "{{ 'tools' }}"})
    a.tokenizer.save_pretrained(source)
    target.mkdir()
    merged = merge_tokenizers([a], chat_template="alpaca")
    merged.write(target, source)
    assert from_folder(target).chat_template == PRESETS["alpaca"]
    assert merge_tokenizers([a]).template is None
