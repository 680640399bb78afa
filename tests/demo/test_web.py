"""The folder of the browser variant: what is refused before anything is written."""

from __future__ import annotations

import json

import pytest

from edgepack.core.progress import finish
from edgepack.demo import web_npm
from edgepack.demo.web import MODELS, WORKER, write_web
from edgepack.demo.web_models import PIECE, Training, identifier, pieces_of
from edgepack.errors import EdgepackError
from tests.support.adapters import packed
from tests.support.web import modules


def test_without_npm_the_line_to_type_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EdgepackError) as failed:
        finish(write_web([], tmp_path / "out"))
    assert "there is no npm here" in failed.value.message
    assert web_npm.npm_line() in failed.value.hint
    assert "--node-modules" in failed.value.hint
    assert not (tmp_path / "out").exists()


def test_an_npm_that_fails_is_told_of(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EdgepackError, match="npm cannot fetch what the page needs: npm error"):
        finish(write_web([], tmp_path / "out"))
    assert [path.name for path in (tmp_path / "cache" / "npm").iterdir()] == []


@pytest.mark.parametrize(
    ("version", "message"), [(None, "jinja is missing"), ("0.1.0", "is version 0.1.0, not")]
)
def test_packages_of_other_versions_are_refused(version, message, tmp_path):
    for name, right in web_npm.packages().items():
        folder = tmp_path / "node_modules" / name
        folder.mkdir(parents=True)
        wrong = name == "@huggingface/jinja"
        if version or not wrong:
            given = {"version": version if wrong else right}
            (folder / "package.json").write_text(json.dumps(given))
    with pytest.raises(EdgepackError, match=message):
        finish(write_web([], tmp_path / "out", modules=tmp_path))
    for name, right in web_npm.packages().items():
        about = tmp_path / "node_modules" / name / "package.json"
        about.write_text(json.dumps({"version": right}))
    with pytest.raises(EdgepackError, match=r"index\.min\.js: is missing"):
        finish(write_web([], tmp_path / "out", modules=tmp_path))


def test_the_lock_pins_what_the_package_names():
    lock = json.loads((web_npm.HERE / web_npm.LOCK).read_text())["packages"]
    for name, version in web_npm.packages().items():
        entry = lock[f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
    files = json.loads((web_npm.HERE / web_npm.FILES).read_text())
    assert {package for package, *_ in files.values()} == set(web_npm.packages())


def test_names_in_addresses_differ(tmp_path):
    assert identifier(tmp_path / "my model!", []) == "my-model"
    assert identifier(tmp_path / "a", ["a"]) == "model-a-2"
    assert identifier(tmp_path / "own-1", []) == "model-own-1-2"


def test_pieces_cover_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * (PIECE + 5))
    found = pieces_of(tmp_path / "f")
    assert (found["bytes"], len(found["pieces"])) == (PIECE + 5, 2)


def test_the_folder_lists_all_of_its_page(tmp_path):
    folder = packed(tmp_path / "model", export={"measure": {"tokens": 0}})
    pytest.importorskip("onnx")
    out = tmp_path / "web"
    assert finish(write_web([folder], out, modules=modules(), training=Training(2, 16))) == []
    with pytest.raises(EdgepackError, match="exists"):
        finish(write_web([folder], out, modules=modules()))
    line = next(
        line for line in (out / WORKER).read_text().splitlines() if line.startswith("const PAGE")
    )
    page = json.loads(line.removeprefix("const PAGE = ").rstrip(";"))
    kept = {file["path"] for file in page["files"] + page["later"]}
    (model,) = json.loads((out / MODELS).read_text())["models"]
    pieces = {file["path"] for file in model["files"].values() if file}
    pieces |= {file["path"] for file in model["training"]["files"].values()}
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert present == kept | pieces | {WORKER, "_headers"}
    assert "manifest.webmanifest" in (out / "index.html").read_text()
    for name in ("wllama", "wllama-compat", "ort", "jinja", "tokenizers"):
        assert list((out / "vendor" / name).glob("LICEN*")), name


def test_a_folder_for_another_runtime_is_refused(tmp_path):
    pytest.importorskip("onnx")
    folder = packed(tmp_path / "model", target="onnx", export={"measure": {"tokens": 0}})
    with pytest.raises(EdgepackError, match="is for onnx, and the page runs GGUF"):
        finish(write_web([folder], tmp_path / "web", modules=modules()))
