"""Where the files of a build come to stand, and what stays in the cache."""

import json
import tempfile
from pathlib import Path

import pytest

import edgepack
from tests.support.tiny import TEXT, make_model

OTHER_DISK = Path("/dev/shm")


def write_recipe(folder: Path) -> Path:
    make_model(folder / "model")
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    path = folder / "recipe.yaml"
    path.write_text(
        json.dumps(
            {
                "model": "model",
                "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
                "compress": {"format": "q4_0", "rank": 4, "factors": "f16", "damping": [0.1]},
                "export": {"measure": {"tokens": 0}},
            }
        )
    )
    return path


@pytest.mark.slow
def test_files_are_linked_on_one_disk_and_copied_to_another(tmp_path, monkeypatch):
    if not OTHER_DISK.is_dir() or OTHER_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk here")
    recipe = write_recipe(tmp_path)
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    here = edgepack.build(recipe, out=tmp_path / "out")
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as elsewhere:
        there = edgepack.build(recipe, out=Path(elsewhere) / "out")
        assert here.manifest["files"] == there.manifest["files"]
        assert there.changed_files() == []
    assert here.changed_files() == []
    assert "factors.gguf" in here.manifest["files"]
    for path in here.folder.rglob("*"):
        assert path.is_dir() or path.stat().st_nlink == 1  # the cache has no part in it any more


@pytest.mark.slow
def test_what_is_exported_is_not_kept_a_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    edgepack.build(write_recipe(tmp_path), out=tmp_path / "out")
    assert (tmp_path / "cache/decompose").is_dir()
    assert list((tmp_path / "cache").rglob("*.gguf")) == []
