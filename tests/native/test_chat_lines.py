"""edgepack-chat's requests: whatever comes in, each line has its answer and the worker goes on."""

from __future__ import annotations

import json
import random

import pytest

from tests.support.bases import packed_base
from tests.support.native import host_program, running

pytestmark = [pytest.mark.slow, pytest.mark.llama]

HELLO = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": HELLO, "max_tokens": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("base"))[0]


@pytest.fixture(scope="module")
def worker(base):
    with running([host_program("chat")]) as found:
        found.next()
        event = found.ask("load", model=str(base.file), threads=1)[-1]
        assert event["event"] == "loaded"
        yield found
        assert found.close() == 0


def answer(worker, line):
    """The event that answers a line; ours is not written as text, for it may be no text."""
    worker.process.stdin.flush()
    worker.process.stdin.buffer.write(line + b"\n")
    worker.process.stdin.buffer.flush()
    return worker.next()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"hello", "a line is not valid JSON in UTF-8"),
        (b'{"id": "a", "do": "chat"', "a line is not valid JSON in UTF-8"),
        (b'{"id": "a\xff", "do": "chat"}', "a line is not valid JSON in UTF-8"),
        (b'{"id": "\\ud800", "do": "chat"}', "a line is not valid JSON in UTF-8"),
        (b'{"id": "a", "do": "chat", "top_p": NaN}', "a line is not valid JSON in UTF-8"),
        (b'{"id": "a", "do": "chat", "top_p": 1e999}', "a line is not valid JSON in UTF-8"),
        (b"[" * 100_000, "a line is nested too deeply"),
        (
            b'{"id": "a", "do": "chat", "x": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
            "nested too deeply",
        ),
        (b"[]", "a line is no JSON object"),
        (b'"text"', "a line is no JSON object"),
        (b"{}", "id is missing"),
        (b'{"id": null, "do": "chat"}', "id is missing"),
        (b'{"id": 5, "do": "chat"}', "id should be a text, not 5"),
        (b'{"id": "", "do": "chat"}', "an id has 1 to 64 characters"),
        ('{"id": "' + "é" * 65 + '", "do": "chat"}', "an id has 1 to 64 characters"),
        (
            b'{"id": "a", "do": "chat", "x": "' + b"y" * (4 << 20) + b'"}',
            "a line has more than 4 MB",
        ),
    ],
)
def test_a_line_that_is_no_request_is_refused_without_an_id(worker, line, message):
    event = answer(worker, line if isinstance(line, bytes) else line.encode())
    assert (event["id"], event["event"]) == (None, "failed")
    assert message in event["message"]
    assert worker.ask("chat", **CHAT)[-1]["event"] == "ended"


def test_empty_lines_are_none(worker):
    assert answer(worker, b'\n \n\r\n{"id": "x", "do": "nothing"}\r')["id"] == "x"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"do": "dance"}, 'this program cannot do "dance"'),
        ({"do": 3}, "do should be a text, not 3"),
        ({}, "do is missing"),
        ({"do": "cancel"}, "request is missing"),
        ({"do": "inspect", "file": ""}, "file names no file"),
        ({"do": "inspect", "file": "a\0b"}, "file names no file"),
        ({"do": "inspect", "file": ["a"]}, "file should be a text, not array"),
        ({"do": "load"}, "model is missing"),
        ({"do": "load", "model": "m", "context": 1e12}, "context should be a whole number, 0 to"),
        ({"do": "load", "model": "m", "context": 2.5}, "context should be a whole number"),
        ({"do": "load", "model": "m", "context": -1}, "context should be a whole number"),
        ({"do": "load", "model": "m", "threads": 10**9}, "threads should be a whole number"),
        ({"do": "load", "model": "m", "adapters": ["a"]}, "adapters should be an object"),
        ({"do": "load", "model": "m", "adapters": {"a": 1}}, "adapters.a should be a text, not 1"),
        ({"do": "load", "model": "m", "adapters": {"a": None}}, "adapters.a is missing"),
        ({"do": "chat"}, "messages is missing"),
        ({"do": "chat", "messages": "Hi"}, "messages should be a list"),
        ({"do": "chat", "messages": []}, "there are no messages"),
        ({"do": "chat", "messages": ["Hi"]}, "messages[0] should be an object"),
        ({"do": "chat", "messages": [{"role": "user"}]}, "messages[0].content is missing"),
        (
            {"do": "chat", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content should be a text, not array",
        ),
        (
            {"do": "chat", "messages": [{"role": "<|im_end|>", "content": "Hi"}]},
            "messages[0].role should be user, assistant or system",
        ),
        ({"do": "chat", "max_tokens": -1}, "max_tokens should be a whole number, 1 to"),
        ({"do": "chat", "max_tokens": 10**30}, "max_tokens should be a whole number, 1 to"),
        ({"do": "chat", "temperature": -0.1}, "temperature should be a number, 0 to 100"),
        (
            {"do": "chat", "temperature": "hot"},
            'temperature should be a number, 0 to 100, not "hot"',
        ),
        ({"do": "chat", "temperature": True}, "temperature should be a number"),
        ({"do": "chat", "top_k": 1.5}, "top_k should be a whole number"),
        ({"do": "chat", "top_p": 2}, "top_p should be a number, 0 to 1"),
        ({"do": "chat", "min_p": -1}, "min_p should be a number, 0 to 1"),
        ({"do": "chat", "repeat_penalty": 0}, "repeat_penalty should be a number"),
        ({"do": "chat", "seed": -1}, "seed should be a whole number"),
        ({"do": "chat", "stop": "x"}, "stop should be a list"),
        ({"do": "chat", "stop": [1]}, "stop should be a list of texts, not 1"),
        ({"do": "chat", "stop": [""]}, "stop should be texts of 1 to 1024 bytes"),
        ({"do": "chat", "stop": ["x"] * 17}, "stop has more than 16 texts"),
        ({"do": "chat", "scales": {"none": 1}}, "there is no adapter none"),
        ({"do": "chat", "scales": {"none": 0}}, "there is no adapter none"),
        ({"do": "chat", "scales": {"none": 1e6}}, "scales.none should be a number, -100 to 100"),
        ({"do": "chat", "scales": {"none": None}}, "scales.none should be a number"),
        ({"do": "chat", "scales": [1]}, "scales should be an object"),
        (
            {"do": "render", "add_generation_prompt": 1},
            "add_generation_prompt should be true or false",
        ),
        ({"do": "write"}, "out is missing"),
        ({"do": "write", "out": "o", "count": 0}, "count should be a whole number, 1 to"),
        ({"do": "write", "out": "o", "tokens": 1}, "tokens should be a whole number, 2 to"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(worker, request_, message):
    given = {"messages": HELLO} if request_.get("do") in {"chat", "render"} else {}
    if request_ in ({"do": "chat"}, {"do": "render"}):
        given = {}
    event = answer(worker, json.dumps({"id": "it"} | given | request_).encode())
    assert (event["id"], event["event"]) == ("it", "failed")
    assert message in event["message"]


def test_nothing_is_answered_without_a_model():
    with running([host_program("chat")]) as worker:
        worker.next()
        for do in ("chat", "render", "write", "adapters"):
            event = worker.ask(do, **CHAT)[-1]
            assert (event["message"], event["hint"]) == ("no model is loaded", "load one first")
        assert worker.close() == 0


def test_an_id_can_be_used_again_but_not_twice_at_once(worker):
    line = {"do": "chat", "messages": HELLO, "max_tokens": 60, "temperature": 3, "seed": 1}
    for _ in range(3):
        worker.write(json.dumps({"id": "same"} | line))
        while (event := worker.next())["event"] != "ended":
            assert event["id"] == "same"
    for name in ("one", "two", "two", "one"):
        worker.write(json.dumps({"id": name} | line))
    seen = [worker.next()]
    while [event["event"] for event in seen].count("ended") < 2:
        seen.append(worker.next())
    refused = [event for event in seen if event["id"] is None]
    assert {event["message"] for event in refused} <= {"a request with this id is being handled"}
    assert worker.ask("chat", **CHAT)[-1]["event"] == "ended"


def broken(draw, whole):
    """A request with something wrong in it, as bytes."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[at] = draw.randrange(256)
            case 1:
                del data[at : at + draw.randint(1, 20)]
            case 2:
                data[at:at] = draw.choice(
                    [b'"', b"{", b"]", b"null", b"-1e300", b"\\u0000", b"\xf0"]
                )
            case _:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        data = data or bytearray(b"x")
    return bytes(data).replace(b"\n", b" ")


def test_broken_lines_are_each_answered(worker, base, tmp_path):
    draw = random.Random(17)
    wholes = [
        {"do": "chat", **CHAT, "temperature": 0.5, "stop": ["a"], "scales": {}, "seed": 1},
        {"do": "render", "messages": HELLO, "add_generation_prompt": True},
        {"do": "inspect", "file": str(base.file)},
        {"do": "adapters", "adapters": {"a": str(base.file)}},
        {"do": "write", "count": 1, "tokens": 2, "out": str(tmp_path / "out")},
        {"do": "cancel", "request": "f"},
    ]
    last = {"failed", "ended", "rendered", "inspected", "adapters", "written", "done"}
    for _ in range(300):
        line = broken(draw, json.dumps({"id": "f"} | draw.choice(wholes)).encode())
        if not line.strip(b" \t\r"):
            continue
        event = answer(worker, line)
        while event["event"] not in last:
            event = worker.next()
        if event["event"] == "failed":
            assert event["message"]
            assert "\n" not in event["message"]
            assert str(tmp_path) not in event["message"]
    assert worker.ask("chat", **CHAT)[-1]["event"] == "ended"
