"""What is in an output folder is what its manifest says, or one line says what is not."""

import json
import shutil

import pytest

from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.errors import EdgepackError
from tests.support.commands import fails, run, write
from tests.support.tiny import TEXT, make_model

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two models of the same shapes, packed with factors."""
    place = tmp_path_factory.mktemp("artifact")
    (place / "text.txt").write_text("\n".join(TEXT * 30))
    for seed, name in enumerate(("ours", "other"), 70):
        make_model(place / name, intermediate=128, seed=seed)
        recipe = write(place / f"{name}.yaml", model=name, export={"measure": {"tokens": 0}})
        result = run("build", recipe, "--target", "gguf", "--out", place / f"{name}-out")
        assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def folder(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(built / "ours-out", tmp_path / "out")


CHAT = ("--prompt", "Hi", "--max-tokens", "2")
COMMANDS = {
    "show": lambda folder: ("show", folder),
    "chat": lambda folder: ("chat", folder, *CHAT),
    "evaluate": lambda folder: ("evaluate", folder, "--tokens", "64"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "chat", "evaluate"])
@pytest.mark.parametrize("name", ["base.gguf", "factors.gguf", "adapter/adapter_model.safetensors"])
def test_a_file_of_another_model_is_noticed(built, folder, name, command):
    assert run(*COMMANDS["show"](folder)).exit_code == 0
    shutil.copy(built / "other-out" / name, folder / name)
    error, hint, code = fails(*COMMANDS[command](folder))
    assert f"{name} is not the file that manifest.json describes" in error
    assert hint
    assert code == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "chat"])
def test_a_file_that_is_gone_is_named(folder, command):
    (folder / "base.gguf").unlink()
    assert "base.gguf is missing" in fails(*COMMANDS[command](folder))[0]


def changes(manifest):
    """Damaged manifests by what is wrong."""
    name, weight = next(iter(manifest["weights"].items()))
    entry = manifest["files"]["base.gguf"]
    yield "a list", []
    yield "a text", "x"
    yield "no number", float("nan")
    for key in ("files", "target", "weights", "measured", "bytes", "bits_per_weight", "model"):
        yield f"no {key}", {k: v for k, v in manifest.items() if k != key}
        yield f"{key} null", manifest | {key: None}
        yield f"{key} a number", manifest | {key: 3}
        yield f"{key} a list of lists", manifest | {key: [[[]]]}
    for key in weight:
        if key not in ("damping", "dtype", "error_train"):
            yield f"weight: {key}", manifest | {"weights": {name: weight | {key: {"x": []}}}}
    yield "an error that is not finite", manifest | {"weights": {name: weight | {"error": 1e999}}}
    for path in (
        "../elsewhere.gguf",
        "/etc/passwd",
        "a/../../x",
        "",
        ".",
        "a\0b",
        "C:\\x",
        "x" * 5000,
    ):
        yield f"file {path[:20]!r}", manifest | {"files": {path: entry}}
    yield "a digest that is none", manifest | {"files": {"base.gguf": {"sha256": 3, "bytes": 1}}}
    yield "bytes below zero", manifest | {"files": {"base.gguf": entry | {"bytes": -1}}}
    yield "measured of nothing", manifest | {"measured": {"results": {"x": {}}}}


@pytest.mark.slow
def test_damaged_manifests_are_one_line_each(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    for what, content in changes(manifest):
        (folder / MANIFEST).write_text(json.dumps(content))
        try:
            Artifact.open(folder)
        except EdgepackError as error:
            refused = error
        else:
            pytest.fail(f"taken: {what}")
        message = str(refused)
        assert "\n" not in message, what
        assert len(message) < 500, what
        assert refused.hint, what


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_a_manifest_that_is_no_json_is_one_line(folder, content):
    (folder / MANIFEST).write_bytes(content)
    for command in ("show", "chat"):
        error, _, code = fails(*COMMANDS[command](folder))
        assert "manifest.json" in error
        assert code == 1


def test_what_is_not_needed_may_be_missing_as_in_older_versions(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    for key in ("sources", "slice", "rft", "allocation", "requires", "recovered"):
        manifest.pop(key, None)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    result = run("show", folder)
    assert result.exit_code == 0, result.stderr
