"""What listens: the API, the demo's relay and its workers; and what asks, the hub's client.

No sockets: apps are called as a server calls them (ASGI), the hub's client gets a transport.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.fuzz.harness import Refused

PORT, TOKEN = 8123, "key"
SECONDS = 20.0


def ask(
    app: Any, method: str, path: str, body: bytes, headers: Mapping[str, str], query: str = ""
) -> tuple[int, str]:
    """The status and the text that an app answers."""
    status, parts, sent = [0], list[bytes](), [False]

    async def receive() -> dict[str, Any]:
        if sent[0]:
            await asyncio.sleep(SECONDS)
            return {"type": "http.disconnect"}
        sent[0] = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            status[0] = message["status"]
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", PORT),
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    return status[0], b"".join(parts).decode(errors="replace")


def _object(path: Path) -> dict[str, Any]:
    """What a file of ours says, or nothing if it was spoiled."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def expect_refusal(status: int, said: str) -> None:
    """An answer is good, or names what is wrong; 500 is a defect."""
    if status >= 500:
        raise AssertionError(f"answered {status}: {said[:200]}")
    if status >= 400:
        raise Refused(f"error: {' '.join(said[:900].split())}\nhint: see the answer", 1)


# ---------------------------------------------------------------------------- the API

API = {"host": "x", "content-type": "application/json"}


def serve(folder: Path) -> None:
    """A chat and a text, each with a token of an answer."""
    app = _served(folder)
    for path, name in (("chat/completions", "chat.request"), ("completions", "text.request")):
        body = (folder / name).read_bytes()
        expect_refusal(*ask(app, "POST", f"/v1/{path}", body, API))


@cache
def _served(folder: Path) -> Any:
    from edgepack.runtimes.serve import Models, make_app
    from edgepack.runtimes.served_llama import ServedLlama

    out = folder / "out-gguf"
    llama = ServedLlama(out / "base.gguf", out / "factors.gguf", {}, 64, 1)
    return make_app(Models(llama, "m", {}))


# ---------------------------------------------------------------------------- the demo

REFUSES = """import json, sys
for line in sys.stdin.buffer:
    event = {"id": json.loads(line)["id"], "event": "failed", "message": "no"}
    print(json.dumps(event), flush=True)
"""
"""A program that answers every request so; the real ones are tested in tests/native."""
PAGE = {"host": f"127.0.0.1:{PORT}", "authorization": f"Bearer {TOKEN}"}


def demo(folder: Path) -> None:
    """Requests of a page, in order, and a file that it sends; then all that came of them."""
    host, app = _demo(folder)
    first = host.events.next
    for line in (folder / "page.requests").read_bytes().split(b"\n"):
        status, said = ask(app, "POST", "/api/post", _with_id(line, host), PAGE)
        if status != 400 or said != "this is no JSON":
            expect_refusal(status, said)
    asked = _object(folder / "import.request")
    query = asked.get("query")
    pairs = [(str(k), str(v)) for k, v in query.items()] if isinstance(query, dict) else []
    length = str(asked.get("length")).encode("ascii", "replace").decode()
    headers = PAGE | {"content-length": length}
    text = urlencode(pairs, errors="replace")
    status, said = ask(app, "POST", "/api/import", b"GGU", headers, text)
    status = 400 if "room on the disk" in said else status
    host._thread.submit(int).result(SECONDS)
    for _, event in host.events.since(first):
        told = json.loads(event)
        if str(told.get("message", "")).startswith("defect:"):
            raise AssertionError(event)
    expect_refusal(status, said)


def _with_id(line: bytes, host: Any) -> bytes:
    """The model's id is known only here."""
    return line.replace(b'"model": "0"', f'"model": "{next(iter(host.store.models))}"'.encode())


@cache
def _demo(folder: Path) -> tuple[Any, Any]:
    from edgepack.demo.host import Host
    from edgepack.demo.programs import Programs
    from edgepack.demo.relay import make_app
    from edgepack.demo.store import Store

    program = folder.parent / "home/refuses"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable} -IS\n{REFUSES}")
    program.chmod(0o755)
    programs = Programs({"chat": program, "tune": program}, {"bench": "no"})
    host = Host(Store([folder / "out-gguf"]), programs)
    return host, make_app(host, TOKEN, PORT)


def worker_lines(folder: Path) -> None:
    """A program's events, each of a request that waits for it, and the program's end."""
    import threading

    from edgepack.demo.worker import Worker

    program = folder.parent / "home/program"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\nread a\nread b\ncat {folder / 'worker.lines'}\n")
    program.chmod(0o755)
    failed: list[BaseException] = []
    ended = {name: threading.Event() for name in "ab"}
    threading.excepthook, usual = lambda args: failed.append(args.exc_value), threading.excepthook
    worker = Worker("chat", program)
    try:
        for name, do in (("a", "load"), ("b", "chat")):

            def hear(event: Any, name: str = name, last: str = worker_last(do)) -> None:
                if event["event"] in (last, "failed"):
                    ended[name].set()

            worker.ask({"id": name, "do": do}, hear)
        for event in ended.values():
            while not event.wait(0.01) and not failed:
                pass
    finally:
        worker.close()
        threading.excepthook = usual
    if failed:
        raise failed[0]


def worker_last(do: str) -> str:
    """The event that ends a request."""
    from edgepack.demo.worker import LAST

    return LAST[do]


# ---------------------------------------------------------------------------- the hub


def hub_headers(folder: Path) -> None:
    """A model of the hub, opened from its headers; ``answers.json`` says how the hub answers."""
    import huggingface_hub
    from huggingface_hub import constants

    from edgepack.checkpoint.hub_headers import open_headers

    place = folder.parent / "home/hub"
    shutil.rmtree(place, ignore_errors=True)
    httpx = sys.modules[huggingface_hub.get_session().__class__.__module__.partition(".")[0]]
    answer = _Hub(folder / "hub", httpx)
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_CACHE = str(place)
    make = lambda: httpx.Client(transport=httpx.MockTransport(answer))  # noqa: E731
    huggingface_hub.set_client_factory(make)
    with open_headers("ann/tiny") as checkpoint:
        checkpoint.gguf_metadata()
        assert checkpoint.dimensions.hidden_size


class _Hub:
    """Answers as the hub does, but for what ``answers.json`` says."""

    def __init__(self, folder: Path, httpx: Any) -> None:
        self._folder, self._httpx = folder, httpx
        self._said = _object(folder / "answers.json")

    def __call__(self, request: Any) -> Any:
        path, sha = request.url.path, "0" * 40
        if self._said.get("fail") and "range" in request.headers:
            raise self._httpx.ConnectError(str(self._said["fail"])[:100], request=request)
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                for f in self._folder.iterdir()
            ]
            return self._httpx.Response(200, json=tree)
        if path.startswith("/api/models/"):
            files = [{"rfilename": file.name} for file in self._folder.iterdir()]
            return self._httpx.Response(200, json={"id": "ann/tiny", "sha": sha, "siblings": files})
        file = self._folder / Path(path).name
        if not file.is_file():
            return self._httpx.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        span = request.headers.get("range", "").removeprefix("bytes=").split("-")
        headers = {"etag": f'"{file.name}"', "x-repo-commit": sha, "content-length": str(len(data))}
        if len(span) == 2 and request.method == "GET" and file.suffix == ".safetensors":
            return self._part(data, int(span[0]), int(span[1]), headers)
        content = b"" if request.method == "HEAD" else data
        return self._httpx.Response(200, headers=headers, content=content)

    def _part(self, data: bytes, first: int, last: int, headers: dict[str, str]) -> Any:
        said, cut = self._said, self._said.get("cut")
        part = data[first : last + 1]
        if isinstance(cut, int) and not isinstance(cut, bool) and abs(cut) < len(part):
            part = part[: len(part) - cut]
        span = str(said.get("range", ""))
        for mark, value in (("{0}", first), ("{1}", last), ("{2}", len(data))):
            span = span.replace(mark, str(value))
        headers["content-range"] = span.encode("ascii", "replace").decode().translate(_NO_LINES)
        headers["content-length"] = str(len(part))
        status = said.get("status")
        status = status if isinstance(status, int) and 200 <= status < 600 else 206
        return self._httpx.Response(int(status), headers=headers, content=part)


_NO_LINES = dict.fromkeys([*range(32), 127])
