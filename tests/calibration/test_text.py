"""Texts from elsewhere: rows of any kind, odd bytes, too little of it, changed in the meantime."""

from __future__ import annotations

import json
import os

import pytest

from edgepack.calibration import text as calibration_text
from edgepack.checkpoint import open_checkpoint
from edgepack.errors import CalibrationError
from edgepack.model.decoder import Decoder
from edgepack.recipe.sections import Calibrate
from edgepack.recipe.texts import source_path
from tests.support.tiny import TEXT, make_model

NO_ROWS = {
    "half an emoji": '{"text": "\\ud83d"}',
    "half an emoji in a message": '{"messages": [{"role": "user", "content": "\\uDE00"}]}',
    "deep": '{"prompt": ' + "[" * 5000 + "]" * 5000 + ', "response": "x"}',
    "null for a text": '{"text": null}',
    "a number for a text": '{"text": 1.5}',
    "a list for a text": '{"text": ["a"]}',
    "null for a prompt": '{"prompt": null, "response": "x"}',
    "null for a completion": '{"prompt": "x", "completion": null}',
    "a number for an output": '{"instruction": "x", "output": 5}',
    "a list for an input": '{"instruction": "x", "output": "y", "input": []}',
    "null for a content": '{"messages": [{"role": "user", "content": null}]}',
    "an object for a content": '{"messages": [{"role": "user", "content": {}}]}',
    "a number for a role": '{"messages": [{"role": 1, "content": "x"}]}',
    "an image": '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
    "a null part": '{"messages": [{"role": "user", "content": [null]}]}',
    "null for messages": '{"messages": null}',
    "only a question": '{"instruction": "x"}',
    "a digit too many": '{"text": ' + "1" * 5000 + "}",
    "no JSON": "{'text': 'x'}",
    "a text": '"text"',
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return Decoder(open_checkpoint(str(folder)))


def encode(decoder, path) -> str:
    tokenizer = decoder.checkpoint.tokenizer
    return tokenizer.decode(calibration_text.encode(tokenizer, path))


@pytest.mark.parametrize("what", NO_ROWS)
def test_a_row_of_the_wrong_kind_is_named_by_its_line(what, decoder, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + NO_ROWS[what] + "\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"rows\.jsonl line 3 ") as caught:
        calibration_text.encode(decoder.checkpoint.tokenizer, path)
    assert len(caught.value.message) < 300
    assert "a row is" in caught.value.hint
    assert caught.value.message.isprintable()
    with pytest.raises(CalibrationError, match=r"rows\.jsonl line 3 "):
        calibration_text.check(path, decoder.checkpoint, 1)


def test_rows_as_data_sets_have_them(decoder, tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rows = (
        {"messages": [{"role": "user", "content": parts, "name": "me"}], "id": 7},
        {"prompt": "p", "completion": "c"},
        {"instruction": "i", "input": "on", "output": "o"},
        {"instruction": "i", "input": "", "output": "o"},
        {"text": "t"},
    )
    path = tmp_path / "rows.jsonl"
    lines = "\r\n\r\n".join(json.dumps(row) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())

    def turn(role: str, content: str) -> str:
        return f"<|im_start|>{role}\n{content}<|im_end|>\n"

    assert encode(decoder, path) == "".join(
        [
            turn("user", "ab"),
            turn("user", "p") + turn("assistant", "c"),
            turn("user", "i\n\non") + turn("assistant", "o"),
            turn("user", "i") + turn("assistant", "o"),
            "t",
        ]
    )


def test_lines_of_a_text_end_alike_everywhere(decoder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert encode(decoder, path) == "one\ntwo\nthree\n"


@pytest.mark.parametrize("failing", ["{{ 1 / 0 }}", "{{ messages[9]['x'].y }}", "{% set x %}"])
def test_a_template_that_fails_is_one_line(failing, decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder.checkpoint.tokenizer, "chat_template", failing)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}')
    with pytest.raises(CalibrationError, match=r"line 1 .*template"):
        encode(decoder, path)


@pytest.mark.parametrize("key", ["calibrate.source", "export.measure.text"])
def test_a_text_is_checked_before_it_is_needed(key, decoder, tmp_path):
    path, check = tmp_path / "text.txt", calibration_text.check
    path.write_text("\n".join(TEXT))
    count = len(decoder.checkpoint.tokenizer.encode(path.read_text(), add_special_tokens=False))
    digest = check(path, decoder.checkpoint, count, key)
    assert digest == check(path, decoder.checkpoint, 5, key)
    with pytest.raises(CalibrationError, match=f"{key}: text.txt has {count} tokens") as caught:
        check(path, decoder.checkpoint, count + 1, key)
    assert key.rpartition(".")[0] in caught.value.hint
    for content, message in ((b"\xff\xfe" * 500, "not UTF-8"), (b"", "has 0 tokens")):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match=f"{key}: .*{message}"):
            check(path, decoder.checkpoint, 5, key)


def test_what_is_too_large_or_no_file_is_refused(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_text, "MAX_BYTES", 1000)
    (tmp_path / "large.txt").write_text("x" * 1001)
    os.mkfifo(tmp_path / "pipe.txt")
    for name, message in (("large.txt", "more than"), ("pipe.txt", "not a file")):
        with pytest.raises(CalibrationError, match=message):
            calibration_text.check(tmp_path / name, decoder.checkpoint, 5)


@pytest.mark.parametrize("name", ["none.txt", "x" * 400, "a\0b", "~nobody-of-that-name/x", "."])
def test_a_source_that_is_no_file_is_one_line(name, tmp_path):
    with pytest.raises(CalibrationError, match=r"calibrate\.source: ") as caught:
        source_path(name, tmp_path)
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()


def test_a_text_that_changed_since_planning_is_refused(decoder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXT * 9))
    planned = calibration_text.check(path, decoder.checkpoint, 128)
    options = Calibrate(source=path.name, tokens=256, sequence_length=64)
    assert len(calibration_text.read_tokens(decoder.checkpoint, options, path, planned).train)
    path.write_text(path.read_text().replace("quick", "quirk", 1))
    with pytest.raises(CalibrationError, match=r"text\.txt has changed since"):
        calibration_text.read_tokens(decoder.checkpoint, options, path, planned)
