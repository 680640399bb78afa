"""A page in a headless browser that runs a folder by Transformers.js, and what it found."""

import io
import json
import re
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

PAGE = Path(__file__).with_name("browser.html")


def reader(folder):
    """What a folder's card has pages read its factors with; of none, where there are none."""
    lines = re.search(
        r"^async function factors.*?^}$", (folder / "README.md").read_text(), re.M | re.S
    )
    if not lines:
        return "export const factors = async () => ({});"
    place = "/modules/@huggingface/transformers/dist/transformers.min.js"
    return f'import {{ Tensor }} from "{place}";\nexport {lines[0]}'


@contextmanager
def served(modules, folder):
    """Address of the page, and a list where what it reports will be; `modules` is where npm
    installed Transformers.js and onnxruntime-web."""
    found, done = [], threading.Event()
    places = {"modules": Path(modules) / "node_modules", folder.name: folder}

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
            return str(places[first] / rest) if first in places else str(PAGE)

        def send_head(self):
            if self.path != "/factors.js":
                return super().send_head()
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.end_headers()
            return io.BytesIO(reader(folder).encode())

        def do_POST(self):
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_):
            pass

    Handler.extensions_map = {**Handler.extensions_map, ".wasm": "application/wasm"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", found, done
    finally:
        server.shutdown()
        server.server_close()


def said(browser, modules, folder, patience=600, **query):
    """What the page reports; `query` are its parameters."""
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # it ends in its own time
    with served(modules, folder) as (address, found, done), profile as own:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={own}"]
        url = address + "?" + urlencode({"folder": folder.name, **query})
        running = subprocess.Popen(
            [*command, "--remote-debugging-port=0", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert done.wait(patience), "the page has not answered"
        finally:
            running.terminate()
            running.wait()
    return found[0]
