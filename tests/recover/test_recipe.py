"""The section `recover` of a recipe, end to end."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

import edgepack
from edgepack.core.artifact import Artifact
from edgepack.errors import CalibrationError, RecipeError
from edgepack.pipeline import make_plan
from edgepack.recipe.read import parse
from tests.support.tiny import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recover")
    make_model(folder / "model", layers=2)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return folder


def built(folder: Path, name: str, **sections: object) -> Artifact:
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 1024, "sequence_length": 64},
        "compress": {"format": "q4_0", "damping": [0.1]},
        "export": {"measure": {"tokens": 0}},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(given))
    return edgepack.build(path, out=folder / name)


@pytest.mark.slow
def test_scales_and_norms_move_and_nothing_else(folder: Path):
    before = built(folder, "before")
    steps = {"steps": 6, "tokens": 256, "evaluate_every": 2}
    after = built(folder, "after", recover=steps)
    assert before.manifest["recovered"] is None
    found = after.manifest["recovered"]
    assert found["best"] <= found["start"]
    assert list(after.manifest["stages"]) == [
        "check",
        "grids",
        "calibrate",
        "decompose",
        "recover",
        "export",
        "measure",
    ]
    assert "recover: " in (after.folder / "report.md").read_text()

    files = [artifact.folder / "base.gguf" for artifact in (before, after)]
    assert len({file.stat().st_size for file in files}) == 1
    tensors = [{t.name: t for t in GGUFReader(file).tensors} for file in files]
    moved = {n for n, t in tensors[0].items() if (t.data != tensors[1][n].data).any()}
    if found["best_step"]:
        assert any(name.endswith("norm.weight") for name in moved)
        assert "blk.0.ffn_down.weight" in moved
    assert "token_embd.weight" not in moved
    a, b = (t["blk.0.ffn_down.weight"].data.reshape(-1, 18)[:, 2:] for t in tensors)
    assert (a == b).all()  # the codes


@pytest.mark.slow
@pytest.mark.parametrize("source", ["own.txt", "self", None])
def test_a_longer_text_of_its_own(folder: Path, source: str | None):
    """From a file, written by the model, or more of what calibrates."""
    (folder / "own.txt").write_text("Pack my box with five dozen liquor jugs. " * 400)
    options = {"steps": 2, "tokens": 128, "evaluate_every": 2, "tokens_total": 2048}
    found = built(folder, f"own-{source}", recover=options | {"source": source}).manifest
    assert found["recovered"]["text_tokens"] == 2048
    assert ("text for recover" in found["stages"]) == (source == "self")
    assert ("recover.source" in found["sources"]) == (source == "own.txt")
    assert found["recipe"]["recover"]["source"] == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "recover.source: no.txt: there is no such file"),
        ("few words", "recover.source: no.txt has 6 tokens, fewer than 128"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(folder: Path, tmp_path: Path, text, message: str):
    if text is not None:
        (tmp_path / "no.txt").write_text(text)
    calibrate = {"source": str(folder / "text.txt"), "sequence_length": 64}
    given = {"model": str(folder / "model"), "calibrate": calibrate, "compress": {}}
    with pytest.raises(CalibrationError) as error:
        make_plan(parse(given | {"recover": {"source": "no.txt"}}), "gguf", tmp_path)
    assert message in str(error.value)
    assert text is None or "calibrate.sequence_length" in error.value.hint


def test_nothing_to_recover_is_refused(folder: Path):
    with pytest.raises(RecipeError, match="nothing is quantized"):
        make_plan(parse({"model": "model", "recover": {}}), "gguf", folder)
    assert torch.is_grad_enabled()
