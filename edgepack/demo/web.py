"""The page for a browser alone: a folder for any web server (docs/browser.md).

Everything but the models is one *version* of the page. The service worker keeps it in a cache of
that version, and takes only files whose sha256 it knows; models are kept by the sha256 of their
pieces. So no two versions mix.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgepack.core.disk import sha256, sync_tree
from edgepack.core.progress import Progress, Steps
from edgepack.core.untrusted import shorten
from edgepack.demo.web_models import Training, identifier, write_model
from edgepack.demo.web_npm import copy_runtimes
from edgepack.errors import EdgepackError

PAGE = Path(__file__).with_name("page")
STEP = "demo"
OTHER_HOSTS = {"host-android.js", "host-relay.js"}
"""Hosts that this page does not have."""
WORKER, START, MODELS = "sw.js", "index.html", "models.json"
UNBUILT = 'const PAGE = { version: "unbuilt", files: [], later: [] };'
LATER = ("vendor/wllama-compat/",)
"""Files that only some browsers need: kept once they were used."""
MANIFEST = '<link rel="manifest" href="manifest.webmanifest">'
HEADERS = """\
/*
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
"""
"""In the form that Netlify and Cloudflare Pages read."""


def write_web(
    folders: Sequence[Path],
    out: Path,
    *,
    modules: Path | None = None,
    training: Training | None = Training(),  # noqa: B008 (frozen)
) -> Steps[list[str]]:
    """Write the page with the models of some output folders (GGUF) into the new folder `out`.

    `modules` is where npm installed what the page runs (None: npm is called). `training` says how
    models learn in the page, None: not at all. What a person should know comes back as sentences.
    A killed run leaves `out` absent.
    """
    if out.exists() or out.is_symlink():
        raise EdgepackError(f"{shorten(str(out), 100)}: exists", hint="name another folder")
    work = out.with_name(f".{out.name}.{secrets.token_hex(8)}.partial")
    try:
        work.mkdir(parents=True)
        remarks = yield from _write(folders, work, modules, training)
        sync_tree(work)
        work.rename(out)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EdgepackError(
            f"{shorten(str(out), 100)}: cannot be written ({reason})", hint="name another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return remarks


def _write(
    folders: Sequence[Path], out: Path, modules: Path | None, training: Training | None
) -> Steps[list[str]]:
    yield Progress(STEP, 0, len(folders) + 1, "programs from npm")
    copy_runtimes(out / "vendor", modules)
    _copy_page(out)
    entries: list[dict[str, Any]] = []
    remarks: list[str] = []
    for done, folder in enumerate(folders, 1):
        yield Progress(STEP, done, len(folders) + 1, folder.name)
        place = f"models/{identifier(folder, (entry['id'] for entry in entries))}"
        written = yield from write_model(folder, out, place, training)
        entries.append(written.entry)
        remarks += written.remarks
    text = json.dumps({"edgepack": version("edgepack"), "models": entries})
    (out / MODELS).write_text(text, encoding="utf-8")
    (out / "_headers").write_text(HEADERS, encoding="utf-8")
    _seal(out, entries)
    return remarks


def _copy_page(out: Path) -> None:
    for path in sorted(PAGE.rglob("*")):
        name = path.relative_to(PAGE)
        if path.is_file() and str(name) not in OTHER_HOSTS:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
    start = out / START
    text = start.read_text(encoding="utf-8")
    start.write_text(text.replace("</head>", f"  {MANIFEST}\n</head>", 1), encoding="utf-8")


def _seal(out: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the list of the page's files into the service worker."""
    pieces = {file["path"] for entry in entries for file in _in_pieces(entry)}
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    own = sorted(names - pieces - {WORKER, "_headers"})
    listed = [{"path": name, "sha256": sha256(out / name)} for name in own]
    worker = (out / WORKER).read_text(encoding="utf-8")
    if UNBUILT not in worker:
        raise ValueError(f"{WORKER} has no line for the version")
    whole = hashlib.sha256(json.dumps([listed, worker]).encode()).hexdigest()
    page = {
        "version": whole[:16],
        "files": [file for file in listed if not file["path"].startswith(LATER)],
        "later": [file for file in listed if file["path"].startswith(LATER)],
    }
    worker = worker.replace(UNBUILT, f"const PAGE = {json.dumps(page)};")
    (out / WORKER).write_text(worker, encoding="utf-8")


def _in_pieces(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of a model that a browser keeps in pieces."""
    training = entry["training"]
    every = [*entry["files"].values(), *(adapter["file"] for adapter in entry["adapters"])]
    return [file for file in (*every, *(training["files"].values() if training else ())) if file]
