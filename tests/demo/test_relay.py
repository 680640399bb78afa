"""`edgepack demo` over real HTTP, with the programs for this machine and a small random model."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from hashlib import sha256

import psutil
import pytest

from edgepack.adapters import files
from edgepack.bench.results import read
from tests.demo.asking import ASKED, NOTES, QUICK, text_of
from tests.demo.relaying import Page, relaying
from tests.support.adapters import random_adapter
from tests.support.bases import packed_base
from tests.support.commands import fails

for package in ("llama_cpp", "starlette", "uvicorn"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.llama, pytest.mark.slow]


def test_the_page_hears_what_there_is(page, folder):
    hello = page.last("app", "hello")
    assert hello["host"] == "desktop"
    assert hello["can"] == {"tune": True, "bench": True, "import": True, "share": True}
    (model,) = page.last("app", "models")["models"]
    assert model["name"] == folder.name
    assert model["architecture"] == "llama"
    assert model["factors"]
    assert model["problem"] is None
    assert [one["name"] for one in model["adapters"]] == ["second"]
    assert str(folder.parent) not in json.dumps([hello, model])  # no paths
    device = page.last("app", "device")
    assert device["memory_free"] > 0


def test_chat_streams_and_notes_are_switched_for_one_answer(page, model):
    page.load(model, ["second"])
    plain = page.ask("chat", "chat", **ASKED, scales={})
    noted = page.ask("chat", "chat", **ASKED, scales={"second": 1})
    again = page.ask("chat", "chat", **ASKED, scales={})
    kinds = [event["event"] for event in plain]
    assert kinds[0] == "started"
    assert kinds.count("text") > 1
    assert {event["from"] for event in plain} == {"chat"}
    assert text_of(plain) == text_of(again) != text_of(noted)
    assert plain[-1]["memory"]["peak"] > 0


def test_what_no_request_may_say_is_refused(page, model):
    def refused(to, do, **fields):
        event = page.last(to, do, **fields)
        assert event["event"] == "failed"
        return event["message"]

    assert "no such model" in refused("chat", "load", model="/etc/passwd", adapters=[])
    assert "no such model" in refused("tune", "plan", model="0" * 16, adapter="x", examples=NOTES)
    assert "nothing called" in refused("chat", "load", model=model, adapters=["../../x"])
    assert "list of names" in refused("chat", "load", model=model, adapters={"a": "/etc/passwd"})
    assert "no request of this name" in refused("chat", "inspect", file="/etc/passwd")
    assert "no request of this name" in refused("chat", "write", out="/elsewhere/x")
    assert "no request of this name" in refused("tune", "gradient", out="/elsewhere/x")
    assert "no request of this name" in refused("app", "fly")
    assert "no worker" in refused("moon", "chat")
    bad = refused("tune", "train", model=model, adapter="../x", examples=NOTES, options=QUICK)
    assert "is no name for an adapter" in bad
    assert "command line" in refused("app", "remove", model=model, adapter=None)


def test_only_this_page_is_answered(relay):
    body = json.dumps({"id": "x", "to": "app", "do": "models"})

    def status(path="/api/post", method="POST", **headers):
        data = body if method == "POST" else None
        return relay.request(method, path, data, **headers)[0]

    here = f"127.0.0.1:{relay.port}"
    assert status() == 202
    assert status(authorization="Bearer wrong") == 401
    assert status(authorization="") == 401
    assert status("/api/events", "GET", authorization="Bearer wrong") == 401
    assert status("/api/adapter?model=x&adapter=y", "GET", authorization="") == 401
    assert status("/api/import?id=a&kind=model&name=a", authorization="") == 401
    assert status(host="evil.example:80") == 403
    assert status(host=f"evil.example:{relay.port}") == 403
    assert status(origin="http://evil.example") == 403
    assert status(origin=f"http://localhost:{relay.port}") == 403  # not what Host says
    assert status(origin=f"http://{here}") == 202
    assert status(**{"sec-fetch-site": "cross-site"}) == 403
    assert status("/", "GET", host="evil.example") == 403


def test_files_of_the_page_and_no_others_are_served(relay):
    status, headers, content = relay.request("GET", "/")
    assert status == 200
    assert b'data-host="relay"' in content
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"
    assert relay.request("GET", "/screens/chat.js")[1]["content-type"].startswith("text/javascript")
    for path in ("/screens/", "/screens", "/../relay.py", "/..%2frelay.py", "/relay.py", "/x"):
        assert relay.request("GET", path)[0] == 404, path


def test_it_listens_on_this_machine_only(relay):
    found = [one.laddr.ip for one in psutil.Process(relay.process.pid).net_connections("inet")]
    assert set(found) == {"127.0.0.1"}


def test_too_much_is_refused(relay, page, model):
    status, _, _ = relay.request("POST", "/api/post", b"x" * (5 << 20))
    assert status == 413
    assert relay.request("POST", "/api/post", b"{")[0] == 400
    assert relay.request("POST", "/api/post", b"[" * 100_000)[0] == 400
    page.load(model)
    events = page.ask("chat", "chat", messages=[{"role": "user", "content": "fox " * 250_000}])
    assert events[-1]["event"] == "failed"  # 1 MB, more than any context
    assert text_of(page.ask("chat", "chat", **ASKED, scales={}))


def test_a_request_that_no_line_holds_is_refused(page, model):
    fields = {"model": model, "adapter": "long", "options": QUICK}
    event = page.last("tune", "plan", **fields, examples=[{"text": "x" * ((4 << 20) - 400)}])
    assert event["event"] == "failed"
    assert "more text than a request can have" in event["message"]
    assert page.last("tune", "plan", **fields, examples=NOTES)["event"] == "planned"


def test_half_a_character_is_no_end(page, model):
    notes = [*NOTES, {"prompt": "\ud83d fox?", "completion": "\ud83d dog"}]
    fields = {"model": model, "adapter": "half", "examples": notes, "options": QUICK}
    assert page.last("tune", "train", **fields)["reason"] == "steps"
    assert page.last("app", "remove", model=model, adapter="half")["event"] == "removed"


def test_a_killed_worker_is_told_and_started_again(relay, page, model):
    page.load(model)
    for process in relay.workers("chat"):
        process.suspend()  # a small model would have answered before it is killed
    name = page.post("chat", "chat", **ASKED | {"max_tokens": 400}, scales={})
    for process in relay.workers("chat"):
        process.kill()
    last = page.rest(name)[-1]
    assert last["event"] == "failed"
    assert last["ended"] is True
    page.load(model)
    assert text_of(page.ask("chat", "chat", **ASKED, scales={}))


def test_a_page_gets_what_it_missed(relay, page, model):
    page.load(model)
    first = page.ask("chat", "chat", **ASKED, scales={})
    number = first[0]["number"]
    status, lines = 0, []
    with socket.create_connection(("127.0.0.1", relay.port)) as connection:
        head = f"GET /api/events?next={number} HTTP/1.1\r\nhost: 127.0.0.1:{relay.port}\r\n"
        connection.sendall(f"{head}authorization: Bearer {relay.token}\r\n\r\n".encode())
        file = connection.makefile("rb")
        status = int(file.readline().split()[1])
        while len(lines) < len(first):
            line = file.readline()
            if line.startswith(b'{"number"'):
                lines.append(json.loads(line))
    assert status == 200
    assert lines == first


def test_bench_is_the_harness_s_json(page, model, tmp_path):
    sizes = {"prompt": 16, "decode": 4, "rounds": 2, "threads": 1}
    events = page.ask("bench", "bench", model=model, adapters=["second"], **sizes)
    assert events[-1]["event"] == "benched", events[-1]
    cases = [(e["round"], e["kind"], e["tokens"]) for e in events if e["event"] == "case"]
    assert cases == [(n, *c) for n in (0, 1) for c in (("prompt", 16), ("decode", 4))]
    (tmp_path / "bench.json").write_text(json.dumps(events[-1]["bench"]))
    bench = read(tmp_path / "bench.json")
    assert [len(timing.seconds) for timing in bench.models[0].timings] == [2, 2]
    assert "llama.cpp" in bench.models[0].runtime


def test_imports_are_checked(page, model, folder, tmp_path, relay):
    base = (folder / "base.gguf").read_bytes()
    factors = (folder / "factors.gguf").read_bytes()
    short = page.send("model", {"short.gguf": base[:-1000]})
    assert short["event"] == "failed"
    assert page.send("model", {"notes.txt": b"hello"})["event"] == "failed"
    assert "none of them is a model" in page.send("model", {"f.gguf": factors})["message"]
    taken = page.send("model", {"mine.gguf": base, "factors.gguf": factors})
    assert taken["event"] == "imported", taken
    mine = taken["model"]
    assert mine["name"] == "mine"
    assert mine["factors"]
    page.load(mine["id"])
    assert text_of(page.ask("chat", "chat", **ASKED, scales={}))

    other, _ = packed_base(tmp_path, hidden=32, intermediate=64)
    files.write(tmp_path / "a", random_adapter(other, seed=0), other)
    strange = (tmp_path / "a/adapter.gguf").read_bytes()
    refused = page.send("adapter", {"strange.gguf": strange}, model)
    assert refused["event"] == "failed"
    second = (folder / "adapters/second/adapter.gguf").read_bytes()
    assert page.send("adapter", {"my notes.gguf": second}, model)["event"] == "imported"
    assert page.send("adapter", {"cut.gguf": second[:-500]}, model)["event"] == "failed"
    (known,) = [m for m in page.last("app", "models")["models"] if m["id"] == model]
    assert [one["name"] for one in known["adapters"]] == ["my-notes", "second"]
    page.last("app", "remove", model=model, adapter="my-notes")
    assert page.last("app", "remove", model=mine["id"], adapter=None)["event"] == "removed"
    assert len(page.last("app", "models")["models"]) == 1
    sending = f"POST /api/import?id=z&kind=model&name=a HTTP/1.1\r\nhost: 127.0.0.1:{relay.port}"
    with socket.create_connection(("127.0.0.1", relay.port)) as connection:
        key = f"authorization: Bearer {relay.token}\r\ncontent-length: 1000\r\n\r\nGGUF"
        connection.sendall(f"{sending}\r\n{key}".encode())
    assert len(page.last("app", "models")["models"]) == 1


def test_a_base_alone_does_not_hide_its_factors(page, folder):
    base = (folder / "base.gguf").read_bytes()
    factors = (folder / "factors.gguf").read_bytes()
    alone = page.send("model", {"base.gguf": base})["model"]
    whole = page.send("model", {"base.gguf": base, "factors.gguf": factors})["model"]
    again = page.send("model", {"base.gguf": base, "factors.gguf": factors})["model"]
    assert [one["factors"] for one in (alone, whole, again)] == [False, True, True]
    assert alone["id"] != whole["id"] == again["id"]
    for one in (alone, whole):
        assert page.last("app", "remove", model=one["id"], adapter=None)["event"] == "removed"


def test_what_is_refused_leaves_no_file(page, relay, folder, cache):
    base = (folder / "base.gguf").read_bytes()
    notes = (folder / "adapters/second/adapter.gguf").read_bytes()
    assert page.send("model", {"short.gguf": base[:-1000]})["event"] == "failed"
    failed = page.send("model", {"base.gguf": base, "second.gguf": notes})
    assert "not its factors" in failed["message"]
    query = "/api/import?id=z&kind=model&name=a&of=2&part="
    assert relay.request("POST", f"{query}1", base)[0] == 202
    with socket.create_connection(("127.0.0.1", relay.port)) as connection:
        head = f"POST {query}2 HTTP/1.1\r\nhost: 127.0.0.1:{relay.port}\r\ncontent-length: 1000"
        connection.sendall(f"{head}\r\nauthorization: Bearer {relay.token}\r\n\r\nGGUF".encode())
    end = time.monotonic() + 10
    while list((cache / "demo/sent").iterdir()) and time.monotonic() < end:
        time.sleep(0.1)
    assert list((cache / "demo/sent").iterdir()) == []


def test_a_result_that_cannot_be_taken_holds_up_no_other(folder, own_cache):
    name = sha256(str((folder / "base.gguf").resolve()).encode()).hexdigest()[:16]
    learnt = (folder / "adapters/second/adapter.gguf").read_bytes()
    for adapter, content in {"a-broken": b"GGUF", "b-whole": learnt}.items():
        job = own_cache / "demo/jobs" / name / adapter
        job.mkdir(parents=True)
        request = {"id": "x", "model": name, "adapter": adapter, "examples": NOTES}
        (job / "request.json").write_text(json.dumps({"request": request, "stopped": False}))
        (job / "adapter.gguf").write_bytes(content)
    with relaying(own_cache, folder) as relay:
        page = Page(relay)
        (model,) = page.last("app", "models")["models"]
        assert [one["name"] for one in model["adapters"]] == ["b-whole", "second"]
        assert [job["adapter"] for job in page.last("app", "jobs")["jobs"]] == ["a-broken"]
        page.last("app", "remove", model=name, adapter="b-whole")


def test_what_cannot_be_written_ends_the_training(folder, own_cache, tmp_path):
    out = tmp_path / "no-room"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("adapters"))
    (out / "adapters").write_text("no folder")
    with relaying(own_cache, out) as relay:
        page = Page(relay)
        (model,) = page.last("app", "models")["models"]
        request = {"model": model["id"], "adapter": "lost", "examples": NOTES, "options": QUICK}
        failed = page.last("tune", "train", **request)
        assert failed["event"] == "failed", failed
        assert str(tmp_path) not in failed["message"]
        assert page.last("app", "jobs")["jobs"][0]["running"] is False
    (out / "adapters").unlink()
    with relaying(own_cache, out) as relay:
        page = Page(relay)
        (model,) = page.last("app", "models")["models"]
        assert [one["name"] for one in model["adapters"]] == ["lost"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_its_workers(folder, own_cache, number):
    with relaying(own_cache, folder) as relay:
        page = Page(relay)
        page.load(page.last("app", "models")["models"][0]["id"])
        workers = relay.workers("chat")
        assert workers
        code = relay.end(number)
        assert code in (0, 128 + number, -number)
        end = time.monotonic() + 10
        while any(one.is_running() for one in workers) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(one.is_running() for one in workers)


def test_one_relay_at_a_time(folder, cache, relay, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(cache))
    error, _, _ = fails("demo", folder, "--no-open", "--port", "0")
    assert "another edgepack demo is running" in error
    assert relay.process.poll() is None


def test_onnx_folders_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    from tests.support.training import packed as onnx_packed

    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    onnx_packed(tmp_path)
    error, _, _ = fails("demo", tmp_path / "out", "--no-open", "--port", "0")
    assert "is an ONNX folder" in error
