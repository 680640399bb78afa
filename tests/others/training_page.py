"""The page train.html of a training graph in a headless browser, and what it reports."""

import io
import json
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

import psutil

ROWS, REPORT = "/rows.json", "/report"


@contextmanager
def served(modules, folder, rows, port=0):
    """Address of a folder with onnxruntime-web as ``ort/``; a dictionary where what the page
    reports will be by its kind, and the event that all of it is there."""
    found, done = {}, threading.Event()
    ort = Path(modules) / "node_modules/onnxruntime-web/dist"

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            inside = path.partition("?")[0].lstrip("/")
            place = ort / inside[4:] if inside.startswith("ort/") else Path(folder) / inside
            return str(place)

        def send_head(self):
            if self.path != ROWS:
                return super().send_head()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            data = [{"ids": list(ids), "labels": list(labels)} for ids, labels in rows]
            return io.BytesIO(json.dumps(data).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found[self.path.partition("kind=")[2]] = body
            self.send_response(204)
            self.end_headers()
            if "result" in found:
                done.set()

        def log_message(self, *_):
            pass

    Handler.extensions_map = {**Handler.extensions_map, ".wasm": "application/wasm"}
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/train.html", found, done
    finally:
        server.shutdown()
        server.server_close()


def trained(browser, modules, folder, rows, profile=None, port=0, patience=600, **query):
    """(what the page reports, the bytes of its factors). `query` are parameters of its address.
    `profile` is the browser's folder, where it keeps a page's state by address and port (0: any);
    None: one for this call."""
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    query = {"rows": ROWS, "report": REPORT, "threads": 1, **query}
    with served(modules, folder, rows, port) as (address, found, done), temporary as own:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
        command += [f"--user-data-dir={profile or own}", "--remote-debugging-port=0"]
        running = subprocess.Popen(
            [*command, f"{address}?{urlencode(query)}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        most, waited = 0, 0.0
        try:
            while not done.wait(0.2):
                waited, most = waited + 0.2, max(most, _memory(running.pid))
                assert waited < patience, "the page has not answered"
        finally:
            running.terminate()
            running.wait()
    return json.loads(found["result"]) | {"peak": most}, found.get("factors")


def _memory(pid):
    """Bytes of a process and of those that it started, what they share counted once."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_full_info().pss
    except psutil.Error:  # one of them has just ended
        pass
    return total
