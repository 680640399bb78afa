"""The page and its host over HTTP, for browsers on this machine only.

Whoever can reach 127.0.0.1 can send requests here: other users, and pages of other sites in the
same browser. So every request must come for this very host (DNS rebinding), from this very page,
and those to the host have the token that the terminal shows. Files of the page are a fixed list.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edgepack.core.untrusted import shorten, whole_number
from edgepack.demo import sent
from edgepack.demo.host import Host
from edgepack.errors import EdgepackError

LONGEST = 4 << 20
"""Bytes of a request."""
LARGEST = 64 << 30
"""Bytes of a file that is sent."""
ROOM = 1 << 30
"""Bytes that stay free on the disk."""
ALIVE = 15.0
"""Seconds after which a silent connection says that it is one."""
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Any, Any], Awaitable[None]]


def make_app(host: Host, token: str, port: int) -> Asgi:
    """The app for a host; it answers requests to 127.0.0.1 and localhost at `port`."""
    relay = _Relay(host, token)
    routes = [
        Route("/api/post", relay.post, methods=["POST"]),
        Route("/api/events", relay.events),
        Route("/api/import", relay.receive, methods=["POST"]),
        Route("/api/adapter", relay.adapter),
        *(Route(path, _page_file(*file)) for path, file in page_files().items()),
    ]
    return _Guard(Starlette(routes=routes), port)


def page_files() -> dict[str, tuple[bytes, str]]:
    """Path → content and type of all files of the page; there are no others."""
    found = dict(_files(resources.files("edgepack.demo") / "page", "/"))
    index, kind = found["/index.html"]
    found["/"] = (index.replace(b'data-host=""', b'data-host="relay"'), kind)
    found["/index.html"] = found["/"]
    return found


def _files(folder: Traversable, path: str) -> list[tuple[str, tuple[bytes, str]]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files(entry, f"{path}{entry.name}/")
        elif (suffix := Path(entry.name).suffix) in KINDS:
            found.append((f"{path}{entry.name}", (entry.read_bytes(), KINDS[suffix])))
    return found


def _page_file(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=kind)


class _Guard:
    """Refuses requests that are meant for another host or come from another page, and adds headers
    to every answer."""

    def __init__(self, app: Asgi, port: int) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """As ASGI wants it."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        same = origin is None or origin == f"http://{host}"
        near = headers.get("sec-fetch-site", "none") in ("same-origin", "none")

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        if host in self._hosts and same and near:
            await self._app(scope, receive, answer)
        else:
            await PlainTextResponse("this page is for this machine only", 403)(
                scope, receive, answer
            )


class _Relay:
    """The endpoints of the host."""

    def __init__(self, host: Host, token: str) -> None:
        self._host, self._token = host, token.encode()
        self._parts: dict[str, dict[str, Path]] = {}

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "").encode()
        if hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        return PlainTextResponse("this tab has no key, or an old one", 401)

    async def post(self, request: Request) -> Response:
        """A request of the page, as JSON."""
        if refusal := self._refusal(request):
            return refusal
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST:
                return PlainTextResponse(f"a request has at most {LONGEST >> 20} MB", 413)
        try:
            asked = json.loads(body)
            if b"\\ud" in body.lower():  # half a character, which no line of UTF-8 can have
                text = json.dumps(asked, ensure_ascii=False)
                asked = json.loads(text.encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return PlainTextResponse("this is no JSON", 400)
        await asyncio.to_thread(self._host.post, asked)
        return Response(status_code=202)

    async def events(self, request: Request) -> Response:
        """Events from now on, or from the number `next` on: a line of JSON each, without end."""
        if refusal := self._refusal(request):
            return refusal
        text = request.query_params.get("next", "")
        first = int(text) if re.fullmatch(r"\d{1,15}", text) else self._host.events.next
        return StreamingResponse(self._lines(first), media_type="application/x-ndjson")

    async def _lines(self, number: int) -> AsyncIterator[str]:
        events, loop, news = self._host.events, asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        if number > events.next:  # of a relay that ran before
            number = 0
        events.watch(wake)
        try:
            yield '{"id": null, "event": "alive"}\n'
            while True:
                news.clear()
                found = events.since(number)
                if found:
                    number = found[-1][0] + 1
                    yield "".join(f"{line}\n" for _, line in found)
                    continue
                try:
                    await asyncio.wait_for(news.wait(), ALIVE)
                except TimeoutError:
                    yield '{"id": null, "event": "alive"}\n'
        finally:
            events.unwatch(wake)

    async def receive(self, request: Request) -> Response:
        """A file of an `import`; the last of `of` files lets the host look at them."""
        if refusal := self._refusal(request):
            return refusal
        query = request.query_params
        asked = {key: query.get(key) for key in ("id", "kind", "model")}
        name, part, of = query.get("name", ""), query.get("part", "1"), query.get("of", "1")
        length = whole_number(request.headers.get("content-length", ""))
        if not asked["id"] or len(asked["id"]) > 64 or part not in "12" or of not in "12":
            return PlainTextResponse("this is no import", 400)
        if length is None or length > LARGEST:
            return PlainTextResponse("the file's size is not told, or too large", 413)
        if part == "1":
            self._parts[asked["id"]] = {}
        parts = self._parts.get(asked["id"])
        if parts is None:
            return PlainTextResponse("the first file is missing", 400)
        try:
            path = await self._save(request, asked["id"], part, length)
        except EdgepackError as error:
            sent.drop(self._parts.pop(asked["id"], {}).values())
            return PlainTextResponse(f"{shorten(name, 80)}: {error.message}", 400)
        except BaseException:  # the page went away
            sent.drop(self._parts.pop(asked["id"], {}).values())
            raise
        parts[shorten(name, 200) or f"file {part}"] = path
        if part == of:
            self._host.take(asked, self._parts.pop(asked["id"]))
        return Response(status_code=202)

    async def _save(self, request: Request, name: str, part: str, length: int) -> Path:
        """Write what is sent into a file of the host's; all of it, or an error."""
        folder = sent.folder_for(name, part)
        free = shutil.disk_usage(folder).free
        if length > free - ROOM:
            raise EdgepackError("there is not enough room on the disk")
        path, got = folder / "file.gguf", 0
        try:
            with path.open("wb") as file:
                async for chunk in request.stream():
                    got += len(chunk)
                    if got > length:
                        break
                    await asyncio.to_thread(file.write, chunk)
        except BaseException:
            sent.drop([path])
            raise
        if got != length:
            sent.drop([path])
            raise EdgepackError("was not sent whole")
        return path

    async def adapter(self, request: Request) -> Response:
        """The file of an adapter, for the person to keep."""
        if refusal := self._refusal(request):
            return refusal
        query = request.query_params
        try:
            path = self._host.adapter_file(query.get("model"), query.get("adapter"))
        except EdgepackError as error:
            return PlainTextResponse(error.message, 404)
        return FileResponse(path, media_type="application/octet-stream")
