"""`edgepack serve` over real HTTP on this machine, with a tiny model and two adapters."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.core.artifact import Artifact
from tests.support.adapters import changed_factors, packed, random_adapter
from tests.support.commands import fails

for package in ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.llama, pytest.mark.slow]

MESSAGES = [{"role": "user", "content": "the quick brown fox?"}]
ASKED = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, float32_products):
    """A packed llama with factors, an adapter that takes their place and one beside them."""
    out = packed(tmp_path_factory.mktemp("place"), export={"measure": {"tokens": 0}})
    base = PackedBase.open(out)
    files.write(files.place(out, "notes"), changed_factors(base), base)
    files.write(files.place(out, "second"), random_adapter(base, seed=1, size=0.6), base)
    return out


class Server:
    """A running server and its client."""

    def __init__(self, url, process):
        self.url, self.process = url, process

    @property
    def address(self):
        parts = urllib.parse.urlsplit(self.url)
        return parts.hostname, parts.port

    def get(self, path, key=None):
        return self._send(urllib.request.Request(self.url + path), key)

    def post(self, path, body, key=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json"}
        return self._send(urllib.request.Request(self.url + path, data, kind), key)

    def chat(self, model=None, messages=MESSAGES, **more):
        named = {"model": model} if model else {}
        status, text = self.post("/chat/completions", {"messages": messages} | ASKED | named | more)
        assert status == 200, text
        return json.loads(text)

    def answer(self, model=None, **more):
        """What a model answers, with the logarithms of the probabilities of its tokens."""
        (choice,) = self.chat(model, logprobs=True, top_logprobs=3, **more)["choices"]
        return choice["message"]["content"], choice["logprobs"]["content"]

    def end(self):
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        assert "Traceback" not in err

    def _send(self, request, key):
        if key:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                return found.status, found.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def serving(*arguments):
    """A server of its own, once it answers."""
    command = [sys.executable, "-m", "edgepack", "serve", *map(str, arguments)]
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--port", "0", "--threads", "1"], **options) as process:
        try:
            line = process.stderr.readline()
            assert " at http://127.0.0.1:" in line, line + process.stderr.read()
            yield Server(line.split(" at ")[1].strip(), process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, "--context", 128) as started:
        yield started
        started.end()


def test_all_names_are_listed(server):
    status, text = server.get("/models")
    assert status == 200
    assert [m["id"] for m in json.loads(text)["data"]] == [
        *("packed", "packed:notes", "packed:second")
    ]


def test_an_adapter_is_for_one_request_and_leaves_nothing_behind(server):
    """Not even in the cache of keys and values: the prompts begin alike."""
    plain = server.answer()
    notes = server.answer("packed:notes")
    assert server.answer() == plain
    second = server.answer("packed:second")
    assert server.answer("packed") == plain
    assert server.answer("packed:notes") == notes
    both = server.answer("packed:notes+second")
    assert server.answer("packed:second") == second
    for _ in range(2):  # without logprobs the cache of a prompt that begins alike is used
        for name, said in (("packed", plain), ("packed:notes", notes), ("packed:second", second)):
            assert server.chat(name)["choices"][0]["message"]["content"] == said[0]
    answers = [plain, notes, second, both]
    assert all(answers.count(one) == 1 for one in answers)


def test_requests_at_once_get_the_answers_of_their_own_models(server):
    names = ["packed", "packed:notes", "packed:second"] * 3
    alone = {name: server.answer(name) for name in set(names)}
    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(server.answer, names)) == [alone[name] for name in names]


def test_answers_are_those_of_edgepack_chat(folder, server):
    from edgepack.runtimes import chat
    from edgepack.runtimes.models import Model

    artifact = Artifact.open(folder)
    notes = folder / "adapters/notes/factors.gguf"
    system = [{"role": "system", "content": "x"}, *MESSAGES]
    model = Model("x", artifact.base, artifact.factors, ((notes, 0.0),))
    with model.open(128) as runtime:
        for name, scale in (("packed", 0.0), ("packed:notes", 1.0)):
            runtime.set_scales([scale])
            expected = "".join(chat.chat(runtime, system, ASKED["max_tokens"]))
            found = server.chat(name, system, repeat_penalty=1)
            content = found["choices"][0]["message"]["content"]
            last = "\ufffd"  # where bytes are missing at the end, this one may be left out
            assert content.removesuffix(last) == expected.removesuffix(last)
            count = len(chat.prompt(runtime, system))
            assert found["usage"]["prompt_tokens"] == count
    assert server.chat()["model"] == "packed"


def test_chunks_of_a_stream_are_the_answer(server):
    for name in ("packed", "packed:notes"):
        body = {"model": name, "messages": MESSAGES, "stream": True} | ASKED
        status, text = server.post("/chat/completions", body)
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line[:5] == "data:"]
        assert status == 200
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert len(parts) > 4
        assert "".join(parts) == server.chat(name)["choices"][0]["message"]["content"]
        assert {chunk["model"] for chunk in chunks} == {name}


def test_logprobs_of_a_prompt_are_its_own_whatever_came_before(server):
    def completed(prompt, **more):
        found = json.loads(server.post("/completions", {"prompt": prompt} | ASKED | more)[1])
        assert found["usage"]["completion_tokens"] == 8
        return found["choices"][0]["logprobs"]

    every = {"logprobs": 2, "echo": True}
    expected = completed("the quick brown", **every)
    assert len(expected["tokens"]) > 8
    completed("lazy dog, in 1969", **every)
    completed("the quick brown")  # without them: what it leaves in the cache has none
    assert completed("the quick brown", **every) == expected


def test_a_client_that_goes_away_leaves_nothing_behind(folder):
    endless = {"max_tokens": 19_000, "logit_bias": {"0": -100, "2": -100}, "stream": True}
    body = json.dumps({"model": "packed:second", "messages": MESSAGES} | endless).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    with serving(folder, "--context", 20_000) as server:
        plain = server.answer()
        with socket.create_connection(server.address) as client:
            client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
            client.recv(1)
        assert server.answer() == plain
        server.end()


def test_grammars_and_seeds_are_heeded(server):
    for model in ("packed", "packed:second"):
        (choice,) = server.chat(model, grammar='root ::= "yes" | "no"')["choices"]
        assert choice["message"]["content"] in ("yes", "no")
    (choice,) = server.chat(response_format={"type": "json_object"})["choices"]
    assert choice["message"]["content"].lstrip()[:1] == "{"
    drawn = [server.answer(seed=seed, temperature=1.5) for seed in (7, 8, 7)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_text_in_parts_is_text(server):
    parts = [{"type": "text", "text": "the quick "}, {"type": "text", "text": "brown fox?"}]
    assert server.answer(messages=[{"role": "user", "content": parts}]) == server.answer()


WRONG = [
    ({"model": "other"}, 404, "there is no model 'other'; there are: packed, packed:notes"),
    ({"model": "packed:x"}, 404, "there is no model 'packed:x'"),
    ({"model": "packed:notes+x", "stream": True}, 404, "there is no model"),
    ({"messages": [{"role": "user", "content": "fox " * 200}], "stream": True}, 400, "--context"),
    ({"messages": [{"role": "cook"}]}, 400, "messages"),
    ({"temperature": "hot"}, 400, "temperature: "),
    ({"n": 2}, 400, "n is 1"),
    ({"grammar": "no grammar"}, 400, "cannot read the grammar"),
    ({"logit_bias": {"100000": 1}}, 400, "logit_bias"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, 400, "tools"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        "no text",
    ),
    (b"{", 400, ""),
]


@pytest.mark.parametrize(("change", "status", "words"), WRONG)
def test_what_is_wrong_with_a_request_is_said_as_openai_says_it(server, change, status, words):
    body = change if isinstance(change, bytes) else {"messages": MESSAGES} | ASKED | change
    found, text = server.post("/chat/completions", body)
    assert found == status, text
    error = json.loads(text)["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("model_not_found" if status == 404 else None)


def test_a_key_is_asked_for_at_every_endpoint(folder):
    body = {"messages": MESSAGES} | ASKED
    with serving(folder, "--api-key", "secret", "--adapter", "second=0.5") as server:
        for key, status in ((None, 401), ("secre", 401), ("secret", 200)):
            listed = server.get("/models", key)
            for found, text in (listed, server.post("/chat/completions", body, key)):
                assert found == status
                if status == 401:
                    assert json.loads(text)["error"]["code"] == "invalid_api_key"
        assert [m["id"] for m in json.loads(listed[1])["data"]] == ["packed", "packed:second"]
        server.end()


def test_ctrl_c_ends_a_long_answer(folder):
    ends = {"0": -100, "2": -100}
    long = {"max_tokens": 19_000, "logit_bias": ends}  # a minute
    body = {"messages": MESSAGES} | long
    with (
        serving(folder / "base.gguf", "--context", 20_000) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        assert json.loads(server.get("/models")[1])["data"][0]["id"] == "base"
        asked = pool.submit(server.post, "/chat/completions", body)
        time.sleep(0.5)
        assert not asked.done(), asked.result()
        server.end()
        status, text = asked.result()
    assert status == 200
    assert json.loads(text)["usage"]["completion_tokens"] < 15_000


def test_what_cannot_be_served_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error, hint, _ = fails("serve", folder, "--port", port)
        assert f"cannot listen at 127.0.0.1, port {port}" in error
        assert "--port" in hint
    assert "is a single file" in fails("serve", folder / "base.gguf", "--adapter", "x")[0]
    assert "has no adapter 'x'" in fails("serve", folder, "--adapter", "x")[0]
    assert "no manifest.json" in fails("serve", tmp_path)[0]
    onnx = tmp_path / "onnx"
    shutil.copytree(folder, onnx)
    manifest = json.loads((onnx / "manifest.json").read_text()) | {"target": "onnx"}
    (onnx / "manifest.json").write_text(json.dumps(manifest))
    error, hint, _ = fails("serve", onnx)
    assert "onnx folders cannot be served" in error
    assert f"edgepack chat {onnx}" in hint
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    error, hint, _ = fails("serve", folder)
    assert error == "error: llama-cpp-python's server is not installed"
    assert hint == "hint: pip install 'edgepack[serve]'"
