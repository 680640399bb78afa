"""The recipes of mergekit's tutorial, from small stand-ins for models to text in llama.cpp."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from edgepack.cli import app
from tests.support.tiny import TEXT, make_model

EXAMPLES = sorted((Path(__file__).parents[2] / "edgepack/recipe/examples").glob("merge-*.yaml"))
MODELS = ("Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct", "Qwen2.5-Coder-0.5B-Instruct")
LAYERS = {"merge-frankenmerge": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    for seed, name in enumerate(MODELS):
        make_model(
            folder / "Qwen" / name, "qwen2", layers=24, seed=seed, max_position_embeddings=512
        )
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    return folder


def test_all_four_are_there():
    methods = [yaml.safe_load(path.read_text())["merge"]["merge_method"] for path in EXAMPLES]
    assert sorted(methods) == ["dare_ties", "passthrough", "slerp", "ties"]


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_becomes_a_gguf_that_answers(example, place, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(place / "cache"))
    recipe = yaml.safe_load(example.read_text()) | {
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": "q4_0", "damping": [0.1]},
        "export": {"measure": {"tokens": 0}},
    }
    path = place / example.name
    path.write_text(yaml.safe_dump(recipe))
    out = place / example.stem
    built = CliRunner().invoke(app, ["build", str(path), "--out", str(out)])
    assert built.exit_code == 0, built.output
    shown = CliRunner().invoke(app, ["show", str(out / "base.gguf")]).stdout
    assert f"qwen2.block_count  {LAYERS.get(example.stem, 24)}" in " ".join(shown.split()).replace(
        "block_count ", "block_count  "
    )
    arguments = ["chat", str(out), "--max-tokens", "16"]
    said = CliRunner().invoke(app, arguments, input="Hello\n/exit\n")
    assert said.exit_code == 0, said.output
    assert said.stdout.strip()
