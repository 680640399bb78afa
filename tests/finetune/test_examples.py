"""Rows become tokens through the model's own template, and only answers are learnt."""

from __future__ import annotations

import json

import pytest

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.finetune.examples import IGNORED, read_examples
from edgepack.runtimes import chat
from edgepack.runtimes.llama_cpp import LlamaCpp
from tests.support.bases import packed_base
from tests.support.tiny import make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("base"))[0]


@pytest.fixture
def write(tmp_path):
    def rows(*rows, name="notes.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return path

    return rows


def told(base, example):
    """(all text, the text that is learnt)."""
    tokenizer = base.checkpoint.tokenizer
    learnt = [t for t in example.labels.tolist() if t != IGNORED]
    return tokenizer.decode(example.ids), tokenizer.decode(learnt)


ASKED = {"role": "user", "content": "the dog"}
SAID = {"role": "assistant", "content": "a fox"}
MORE = {"role": "user", "content": "the rest"}
LAST = {"role": "assistant", "content": "lazy"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID]},
        {"prompt": "the dog", "completion": "a fox"},
        {"prompt": "the dog", "response": "a fox"},
        {"instruction": "the dog", "output": "a fox"},
    ],
)
def test_every_layout_of_a_chat(base, write, row):
    found = read_examples(write(row), base.checkpoint, 128)
    (example,) = found.examples
    text, learnt = told(base, example)
    assert learnt == "a fox<|im_end|>"
    assert text.index("the dog") < text.index("a fox")
    assert example.answers == len(base.checkpoint.tokenizer.encode("a fox<|im_end|>"))


def test_labels_are_the_next_tokens(base, write):
    (example,) = read_examples(write({"messages": [ASKED, SAID]}), base.checkpoint, 128).examples
    for here, label in zip(example.ids[1:].tolist(), example.labels.tolist(), strict=False):
        assert label in (here, IGNORED)
    assert example.labels[-1] == IGNORED


@pytest.mark.llama
def test_the_prompt_is_the_one_that_a_chat_sends(base, write):
    pytest.importorskip("llama_cpp")
    (example,) = read_examples(write({"messages": [ASKED, SAID]}), base.checkpoint, 128).examples
    with LlamaCpp(base.file) as runtime:
        sent = chat.prompt(runtime, [ASKED])
    first = (example.labels != IGNORED).nonzero()[0].item() + 1
    assert example.ids[:first].tolist() == sent


def test_all_answers_of_a_conversation_are_learnt(base, write):
    row = {"messages": [ASKED, SAID, MORE, LAST]}
    (example,) = read_examples(write(row), base.checkpoint, 128).examples
    assert told(base, example)[1] == "a fox<|im_end|>lazy<|im_end|>"


def test_an_answer_that_the_template_changes_later_is_an_example_of_its_own(tmp_path, write):
    """Templates of thinking models show earlier answers without their thoughts."""
    make_model(tmp_path / "m")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} "
        "{% if loop.last or m.role == 'user' %}{{ m.content }}{% else %}short{% endif %}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    checkpoint.tokenizer.chat_template = template
    row = {"messages": [ASKED, SAID, MORE, LAST]}
    found = read_examples(write(row), checkpoint, 128).examples
    texts = [checkpoint.tokenizer.decode([t for t in e.labels if t != IGNORED]) for e in found]
    assert sorted(texts) == ["a fox<|im_end|>", "lazy<|im_end|>"]


def test_a_text_is_learnt_as_a_whole_and_cut_into_pieces(base, write):
    words = " ".join(["the quick brown fox"] * 40)
    whole = read_examples(write({"text": words}), base.checkpoint, 1024).examples
    assert len(whole) == 1
    pieces = read_examples(write({"text": words}), base.checkpoint, 32).examples
    assert max(len(piece.ids) for piece in pieces) <= 32
    assert sum(piece.answers for piece in pieces) == whole[0].answers
    end = base.checkpoint.tokenizer.eos_token_id
    assert pieces[-1].labels[-1] == whole[0].labels[-1] == end


def test_lists_and_plain_texts(base, write, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": "the", "input": "dog", "output": "fox"}] * 2))
    assert len(read_examples(path, base.checkpoint, 128).examples) == 2
    text = tmp_path / "plain.txt"
    text.write_text("the quick brown fox\n")
    assert read_examples(text, base.checkpoint, 128).examples[0].answers > 3
    path.write_text('{"prompt": 1}')
    with pytest.raises(EdgepackError, match=r"rows\.json is no JSON list of rows"):
        read_examples(path, base.checkpoint, 128)


BAD = [
    ("{", "line 2"),
    ({"prompt": "x"}, "line 2"),
    ({"messages": [ASKED]}, "line 2 is no chat .*no answer of the assistant"),
    ({"messages": [ASKED, {"role": "assistant", "content": ""}]}, "line 2"),
    ({"prompt": "the dog " * 80, "completion": "fox"}, "line 2 has .* tokens, more than the 64"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_row_is_named_by_its_line_and_skipped_only_if_asked(base, write, bad, message):
    good = {"prompt": "the dog", "completion": "a fox"}
    path = write(good, bad, good)
    with pytest.raises(EdgepackError, match=message) as refused:
        read_examples(path, base.checkpoint, 64)
    assert refused.value.hint
    found = read_examples(path, base.checkpoint, 64, skip=True)
    assert len(found.examples) == 2
    assert len(found.skipped) == 1
    assert "line 2" in found.skipped[0]


def test_files_with_nothing_to_learn(base, write):
    with pytest.raises(EdgepackError, match="it has no rows"):
        read_examples(write(""), base.checkpoint, 64)
    with pytest.raises(EdgepackError, match="all 1 rows are skipped"):
        read_examples(write("{"), base.checkpoint, 64, skip=True)
