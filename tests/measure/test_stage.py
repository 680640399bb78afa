"""What KL is measured from: the original as a file for the runtime, or our own pass."""

import json

import pytest

import edgepack
from tests.support.tiny import TEXT, make_model


def test_the_streamed_original_gives_the_figures_of_the_written_one(tmp_path):
    """llama.cpp on the original's float16 stands against our own forward pass on the checkpoint."""
    make_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 30))
    measured = {}
    for reference in ("written", "streamed"):
        measure = {"tokens": 64, "context": 64, "stock": False, "reference": reference}
        recipe = {
            "model": "model",
            "calibrate": {
                "source": "text.txt",
                "tokens": 512,
                "sequence_length": 64,
                "objective": "guided",
            },
            "compress": {"format": "q4_0", "damping": [0.1]},
            "export": {"measure": measure},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        built = edgepack.build(path, out=tmp_path / reference)
        measured[reference] = built.manifest["measured"]
        report = (tmp_path / reference / "report.md").read_text()
        assert ("original (f16)" in report) == (reference == "written")
    written, streamed = measured["written"], measured["streamed"]
    assert streamed["reference"] == "streamed"
    assert "reference_kl" not in streamed
    ours, theirs = (found["results"]["edgepack"] for found in (streamed, written))
    assert ours["kl_mean"] > 0.01
    assert ours["kl_mean"] == pytest.approx(theirs["kl_mean"], rel=0.01)
    assert ours["reference_perplexity"] == pytest.approx(theirs["reference_perplexity"], rel=0.01)
    assert ours["reference_perplexity"] != theirs["reference_perplexity"]
