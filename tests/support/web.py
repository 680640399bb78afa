"""The page of the demo in a headless browser, and a web server for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgepack.demo.web_npm import packages

DRIVER = Path(__file__).parents[1] / "demo" / "web_driver.mjs"
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
LAST = ["failed", "hello", "models", "loaded", "adapters", "ended", "rendered", "inspected"]
LAST += ["imported", "cancelled", "removed", "shared", "jobs", "forgotten", "device", "benched"]
LAST += ["done"]


def node():
    """node's path; the test is skipped where there is none."""
    found = shutil.which("node")
    if not found:
        pytest.skip("node is not installed")
    return found


def modules():
    """The folder where npm installed playwright-core and what a page runs."""
    found = os.environ.get("EDGEPACK_NODE")
    if not found:
        pytest.skip("EDGEPACK_NODE is not set; name a folder where npm installed playwright-core")
    for name in ("playwright-core", *packages()):
        if not (Path(found) / "node_modules" / name).is_dir():
            pytest.skip(f"npm has not installed {name} in {found}")
    return Path(found)


@contextmanager
def served(folder, *, isolated=True, port=0):
    """Address of a folder on a plain web server, and the paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(folder))

        def end_headers(self):
            for name, value in (ISOLATION if isolated else {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, form, *values):
            asked.append(self.path)

    Handler.extensions_map = {**Handler.extensions_map, ".mjs": "text/javascript"}
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()


class Browser:
    """A page in Chromium, and its host, which is asked in JSON."""

    def __init__(self, process):
        self._process, self._number = process, 0

    def command(self, **command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the browser has ended"
        found = json.loads(line)
        assert "error" not in found, found
        return found["value"]

    def goto(self, address):
        """Open the page; whether it is isolated."""
        return self.command(goto=address)

    def start(self, to, do, **fields):
        """Send a request; its id."""
        self._number += 1
        request = {"id": f"r{self._number}", "to": to, "do": do, **fields}
        self.command(start=request)
        return request["id"]

    def wait(self, name, *until):
        """All events of a request, once one of `until` (or its last one) has come."""
        return self.command(wait=name, until=[*until] if until else LAST)

    def ask(self, to, do, *until, **fields):
        """All events of a request."""
        return self.wait(self.start(to, do, **fields), *until)

    def evaluate(self, text):
        return self.command(evaluate=text)


@contextmanager
def browser(profile):
    """A Chromium with that profile; the test is skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("Chromium is not installed")
    command = [node(), str(DRIVER), str(modules()), chromium, str(profile)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        yield Browser(process)
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
