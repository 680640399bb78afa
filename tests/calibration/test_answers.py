"""Which tokens of conversations are answers, and gradients of these only."""

import hashlib
import json

import pytest
import torch

from edgepack.calibration import answers
from edgepack.calibration.moments import load_hessian
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.text import encode, encode_answers, read_tokens
from edgepack.calibration.text_stage import FileText
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.recipe.sections import Calibrate as Options
from tests.support.tiny import make_model, make_tokenizer

ROWS = [{"prompt": f"the lazy dog {i}?", "response": f"The {i}th fox jumps"} for i in range(40)]


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_the_tokens_before_those_of_answers_count(text):
    tokenizer = make_tokenizer()
    ids, counted = encode_answers(tokenizer, text)
    assert torch.equal(ids, encode(tokenizer, text))
    following = [ids[i + 1] for i in counted.nonzero().flatten()]
    said = tokenizer.decode(following)
    assert said == "".join(f"{row['response']}<|im_end|>" for row in ROWS)


def test_every_turn_of_the_assistant_is_an_answer(tmp_path):
    turns = [("system", "Be brief"), ("user", "one?"), ("assistant", "two"), ("user", "three?")]
    turns.append(("assistant", "four"))
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(row))
    tokenizer = make_tokenizer()
    ids, counted = encode_answers(tokenizer, path)
    said = tokenizer.decode([ids[i + 1] for i in counted.nonzero().flatten()])
    assert said == "two<|im_end|>four<|im_end|>"


def test_of_texts_and_of_templates_that_change_what_was_said_all_counts(tmp_path):
    tokenizer = make_tokenizer()
    plain, row = tmp_path / "plain.txt", tmp_path / "rows.jsonl"
    plain.write_text("the quick brown fox\n" * 5)
    row.write_text(json.dumps({"text": "the quick brown fox"}) + "\n")
    for path in (plain, row):
        ids, counted = encode_answers(tokenizer, path)
        assert len(ids) == len(counted)
        assert int(counted.sum()) >= len(ids) - 1
    shown = answers.spans(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "other",
        lambda messages, start: f"{len(messages)} messages",
    )
    assert shown == [(0, len("other"))]


def test_positions_stay_with_their_tokens_when_sequences_are_held_out(text, tmp_path):
    make_model(tmp_path / "m")
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    options = Options(tokens=256, sequence_length=32, source=str(text))
    whole = read_tokens(checkpoint, options, text)
    marked = read_tokens(checkpoint, options, text, only_answers=True)
    assert whole.counted is None
    assert torch.equal(marked.all, whole.all)
    assert marked.counted.shape == marked.all.shape
    counted = marked.counted[:, :-1]
    said = checkpoint.tokenizer.decode(marked.all[:, 1:][counted])
    assert "fox jumps" in said
    assert "lazy" not in said


def test_only_labels_of_answers_have_gradients(text, tmp_path):
    """At the last block's output a position has a gradient only of its own label, so that the rank
    of H there is the number of positions that count."""
    make_model(tmp_path / "m", dtype=torch.float32)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    text.write_text("\n".join([json.dumps(ROWS[0] | {"prompt": "x" * 99})] * 2))
    options = Options(tokens=256, sequence_length=32, source=str(text), objective="guided")
    ranks = {}
    for only_answers in (True, False):
        source = FileText(
            checkpoint, options, text, hashlib.sha256(text.read_bytes()).hexdigest(), only_answers
        )
        stage = Calibrate(checkpoint, source, options)
        finish(stage.complete(Threads()))
        H = load_hessian(stage.folder / "1", "ffn_down").train
        ranks[only_answers] = int(torch.linalg.matrix_rank(H.double(), rtol=1e-6))
        counted = source.tokens.counted
        if counted is not None:
            expected = int(counted[: len(source.tokens.train)].sum())
    assert 0 < ranks[True] == expected < ranks[False]
