"""A stand-in for the hub: what huggingface_hub asks of it to upload and download a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN, READER, USER = "hf_writer", "hf_reader", "ann"
LARGE = (".gguf", ".safetensors", ".onnx", ".onnx_data", ".bin")


@dataclass
class Repo:
    """`branches`: name → file name → content, of the last commit."""

    private: bool
    branches: dict = field(default_factory=lambda: {"main": {}})
    commits: list = field(default_factory=list)


@dataclass
class Hub:
    """What it holds, and what it was asked. `stall`: the number of the upload that never ends, so
    that whoever waits for it can be killed; `stalled` is set once it hangs."""

    address: str = ""
    repos: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)
    uploads: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    stall: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    counting: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    fail: dict = field(default_factory=dict)
    """Part of a path → status that it is answered with."""
    sent: dict = field(default_factory=dict)
    """File name → bytes of it that were downloaded."""

    def files(self, name, branch="main"):
        return self.repos[name].branches[branch]

    @property
    def environment(self):
        """Variables under which huggingface_hub comes here. Storage in chunks has another
        protocol, in a library of its own."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}


def _oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status, content=None, **headers):
            data = json.dumps({} if content is None else content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status, code=None):
            self.reply(
                status, {"error": f"error {status}"}, **({"X_Error_Code": code} if code else {})
            )

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def handle_any(self):
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            if self.command == "PUT":
                self.upload(path)
                return
            data = self.body()
            for part, status in hub.fail.items():
                if part in path:
                    self.refuse(status)
                    return
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in (TOKEN, READER):
                self.refuse(401)
            elif self.command == "POST" and token == READER:
                self.refuse(403)
            else:
                self.answer(path, data)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def file(self, _, name, revision, path):
            """A file, or the part of it that is asked for."""
            if not (repo := self.repo(name)):
                return
            content = repo.branches["main"].get(path)
            if content is None:
                self.refuse(404, "EntryNotFound")
                return
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            first, last = map(int, wanted.groups()) if wanted else (0, len(content) - 1)
            part = content[first : last + 1]
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{_oid(content)}"')
            self.send_header("X-Repo-Commit", f"{len(repo.commits):040x}")
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command == "GET":
                hub.sent[path] = hub.sent.get(path, 0) + len(part)
                self.wfile.write(part)

        def answer(self, path, data):
            for pattern, function in ROUTES:
                if found := re.fullmatch(pattern, path):
                    function(self, data, *found.groups())
                    return
            self.refuse(404, "RepoNotFound")

        def repo(self, name):
            if name not in hub.repos:
                self.refuse(404, "RepoNotFound")
            return hub.repos.get(name)

        def create(self, data):
            asked = json.loads(data)
            name = f"{asked.get('organization') or USER}/{asked['name']}"
            content = {"url": f"{hub.address}/{name}", "name": name}
            if asked.get("organization") not in (None, USER, "team"):
                self.refuse(404)
            elif name in hub.repos:
                self.reply(409, {**content, "error": "You already created this model repo"})
            else:
                hub.repos[name] = Repo(asked.get("visibility") == "private")
                self.reply(200, content)

        def info(self, _, name):
            if repo := self.repo(name):
                files = [{"rfilename": path} for path in repo.branches["main"]]
                about = {"id": name, "private": repo.private, "siblings": files, "tags": []}
                self.reply(200, {**about, "sha": f"{len(repo.commits):040x}"})

        def tree(self, _, name, revision):
            if repo := self.repo(name):
                found = []
                for path, content in repo.branches["main"].items():
                    one = {"type": "file", "path": path, "size": len(content)}
                    one["oid"] = _oid(content)
                    if path.endswith(LARGE):
                        oid = self.known(content, path)
                        one["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
                    found.append(one)
                self.reply(200, found)

        def branch(self, _, name, branch):
            if repo := self.repo(name):
                if branch in repo.branches:
                    self.refuse(409)
                    return
                repo.branches[branch] = dict(repo.branches["main"])
                self.reply(200)

        def check_card(self, data):
            content = json.loads(data)["content"]
            self.reply(200 if content.startswith("---\n") else 400, {"errors": [], "warnings": []})

        def modes(self, data, name, branch):
            if repo := self.repo(name):
                if branch not in repo.branches:
                    self.refuse(404, "RevisionNotFound")
                    return
                here = repo.branches[branch]
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": self.known(here.get(file["path"]), file["path"]),
                    }
                    for file in json.loads(data)["files"]
                ]
                self.reply(200, {"files": files})

        def known(self, content, path):
            if content is None:
                return None
            return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _oid(content)

        def batch(self, data, _):
            found = []
            for wanted in json.loads(data)["objects"]:
                one = {"oid": wanted["oid"], "size": wanted["size"]}
                if wanted["oid"] not in hub.blobs:
                    upload = {"href": f"{hub.address}/blobs/{wanted['oid']}"}
                    one["actions"] = {"upload": upload, "verify": {"href": f"{hub.address}/verify"}}
                found.append(one)
            self.reply(200, {"transfer": "basic", "objects": found})

        def upload(self, path):
            with hub.counting:
                hub.uploads.append(path)
                number = len(hub.uploads)
            if number == hub.stall:
                self.rfile.read(1000)
                hub.stalled.set()
                hub.over.wait(60)
                self.close_connection = True
                return
            data = self.body()
            oid = path.rpartition("/")[2]
            if hashlib.sha256(data).hexdigest() != oid:
                self.refuse(400)
                return
            hub.blobs[oid] = data
            self.reply(200)

        def verify(self, data):
            self.reply(200 if json.loads(data)["oid"] in hub.blobs else 404)

        def commit(self, data, name, branch):
            repo, files = self.repo(name), {}
            if repo is None:
                return
            header, *lines = (json.loads(line) for line in data.splitlines())
            for line in lines:
                value = line["value"]
                lfs = line["key"] == "lfsFile"
                content = hub.blobs.get(value["oid"]) if lfs else base64.b64decode(value["content"])
                if content is None:
                    self.refuse(400)
                    return
                files[value["path"]] = content
            repo.branches[branch].update(files)
            repo.commits.append((branch, header["value"]["summary"]))
            oid = f"{len(repo.commits):040x}"
            url = f"{hub.address}/{name}/commit/{oid}"
            self.reply(200, {"commitUrl": url, "commitOid": oid, "hookOutput": ""})

    name = r"([^/]+/[^/]+)"
    ROUTES = (
        (r"/api/repos/create", Handler.create),
        (r"/api/validate-yaml", Handler.check_card),
        (r"/verify", Handler.verify),
        (rf"/api/models/{name}", Handler.info),
        (rf"/api/models/{name}/revision/[^/]+", Handler.info),
        (rf"/api/models/{name}/tree/([^/]+)", Handler.tree),
        (rf"/api/models/{name}/branch/([^/]+)", Handler.branch),
        (rf"/api/models/{name}/preupload/([^/]+)", Handler.modes),
        (rf"/api/models/{name}/commit/([^/]+)", Handler.commit),
        (rf"/{name}/resolve/([^/]+)/(.+)", Handler.file),
        (rf"/{name}\.git/info/lfs/objects/batch", Handler.batch),
    )
    return Handler


@contextmanager
def served():
    """A hub on a port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
