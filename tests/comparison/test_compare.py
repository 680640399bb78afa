"""`edgepack compare`: recipes at several sizes beside every stock type."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edgepack
from edgepack.cli import app
from edgepack.comparison.compare import OTHERS, Point, frontier
from edgepack.metrics.speed import Speed
from edgepack.planning.target import get
from tests.support.tiny import make_model

STOCK, PLAIN = get("gguf").maker, get("onnx").maker


def point(nbytes: int, kl: float) -> Point:
    return Point("", STOCK, nbytes, kl, 0.0, 1.0, 1.0, Speed(1.0, 1.0))


def test_the_frontier_is_what_nothing_smaller_betters():
    points = [point(30, 0.2), point(10, 0.5), point(20, 0.6), point(20, 0.3), point(40, 0.2)]
    assert [(p.nbytes, p.kl_mean) for p in frontier(points)] == [(10, 0.5), (20, 0.3), (30, 0.2)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    make_model(folder / "model", layers=2)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"damping": [0.1], "candidates": ["q4_0", "iq4_nl", "q8_0"], "ranks": [0, 8]},
        "export": {"measure": {"text": "text.txt", "tokens": 256, "context": 64}},
    }
    (folder / "other.yaml").write_text(json.dumps(given | {"compress": {"format": "q4_1"}}))
    edgepack.build(folder / "other.yaml", out=folder / "other")
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(given | {"compress": given["compress"] | {"bits_per_weight": 6}}))
    return path


@pytest.mark.slow
def test_stock_has_all_types_that_fit_and_both_kinds_of_embeddings(recipe: Path):
    made = edgepack.plan(recipe)
    types = list(made.target.all_baselines(made.model, made.formats).values())
    blocks = {next(f for n, f in t.items() if ".layers." in n) for t in types}
    assert {"q4_0", "q5_1", "q8_0", "iq4_nl"} <= blocks
    assert not {"f16", "q4_k", "iq2_xs"} & blocks
    assert {t["model.embed_tokens.weight"] for t in types if "q4_0" in t.values()} == {
        "q8_0",
        "q4_0",
    }


def test_stock_takes_a_type_where_it_fits_and_llama_cpps_substitute_elsewhere(tmp_path: Path):
    """SmolLM2's own case: rows of 576 and of 1536 columns."""
    make_model(tmp_path / "model", hidden=288, heads=4, head_dim=72, intermediate=512, layers=1)
    (tmp_path / "r.yaml").write_text('{"model": "model", "compress": {"format": "q4_0"}}')
    plan = edgepack.plan(tmp_path / "r.yaml")
    found = plan.target.all_baselines(plan.model, plan.formats)
    small = found["stock iq3_s or iq4_nl + imatrix, embeddings iq4_nl"]
    down = {name for name, form in small.items() if form == "iq3_s"}
    assert down == {"model.layers.0.mlp.down_proj.weight"}
    assert set(small.values()) == {"iq3_s", "iq4_nl"}
    assert "stock q4_k or q5_0 + imatrix, embeddings q8_0" in found
    assert "stock q4_0 + imatrix, embeddings q8_0" in found


@pytest.mark.slow
@pytest.mark.llama
def test_table_picture_and_figures(recipe: Path, tmp_path: Path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("matplotlib")
    files = 2000 + sum(edgepack.plan(recipe).bytes_by_part().values())  # 6 bits of matrices
    sizes = [files + 20_000, files + 40_000]
    out = tmp_path / "out"
    command = ["compare", str(recipe), "--sizes", ",".join(map(str, sizes)), "--out", str(out)]
    copa = {"query": "The fox rests, because", "choices": ["it is lazy.", "dogs."], "gold": 0}
    (tmp_path / "copa_dev.jsonl").write_text("\n".join([json.dumps(copa)] * 4))
    command += ["--tasks", "copa", "--data", str(tmp_path)]
    other = next(recipe.parent.glob("other/*.gguf"))
    command += ["--against", str(other)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    points = json.loads((out / "compare.json").read_text())
    ours = [p for p in points if p["maker"] == "edgepack, tiny"]
    assert [p["nbytes"] for p in points] == sorted(p["nbytes"] for p in points)
    assert len(ours) == 2
    assert all(p["speed"]["prompt"] > 0 and p["speed"]["decode"] > 0 for p in points)
    assert all(p["nbytes"] <= wanted for p, wanted in zip(ours, sizes, strict=True))
    for p in ours:
        folder = next(out.glob(f"tiny-{sizes[ours.index(p)] / 1e6:g}MB"))
        assert p["nbytes"] == sum(f.stat().st_size for f in folder.glob("*.gguf"))
    assert {"stock q8_0 + imatrix, embeddings q8_0"} <= {p["label"] for p in points}
    assert [p["maker"] for p in points if p["label"] == str(other)] == [OTHERS]
    assert all(p["accuracy"]["value"] in (0.0, 1.0) for p in points)  # the items are all alike
    assert "zero-shot" in shown.output
    mixed = [p for p in points if "in the types of tiny" in p["label"]]
    assert len(mixed) == 2
    assert all(p["maker"] == STOCK for p in mixed)
    assert {p["nbytes"] for p in mixed} <= {p["nbytes"] for p in ours}  # no factors were bought
    assert "stock iq4_nl + imatrix, embeddings iq4_nl" in shown.output
    assert (out / "compare.png").read_bytes()[1:4] == b"PNG"
    assert "<svg" in (out / "compare.svg").read_text()
    assert "mean KL" in (out / "compare.md").read_text()


@pytest.mark.slow
def test_a_size_that_is_none(recipe: Path, tmp_path: Path):
    command = ["compare", str(recipe), "--sizes", "big", "--out", str(tmp_path / "x")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 1
    assert "'big' is not a size" in shown.output


@pytest.mark.slow
def test_onnx_stands_beside_plain_rounding(recipe: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    given = json.loads(recipe.read_text())
    given["compress"] |= {"candidates": ["int3_g32", "q4_0", "q8_0"]}
    path = recipe.with_name("graph.yaml")
    path.write_text(json.dumps(given))
    asked = ["compare", str(path), "--sizes", "150kB", "--out", str(tmp_path), "--target", "onnx"]
    found = CliRunner().invoke(app, [*asked, "--json"])
    points = json.loads(found.stdout)
    labels = {p["label"] for p in points}
    assert {"plain q4_0, embeddings q8_0", "plain int3_g32, embeddings int3_g32"} <= labels
    assert "plain rounding, in the types of graph-0.15MB" in labels
    (ours,) = (p for p in points if p["maker"] != PLAIN)
    assert ours["nbytes"] <= 150_000
    assert (tmp_path / "compare.svg").is_file()
    wrong = CliRunner().invoke(app, [*asked[:-1], "checkpoint"])
    assert "'checkpoint' cannot be compared" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compare.json", "compare.md", "compare.png"])
def test_files_of_somebody_elses_are_not_overwritten(recipe: Path, tmp_path: Path, name: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('[{"mine": 1}]')
    arguments = ["compare", str(recipe), "--sizes", "100KB", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "was not written by edgepack compare" in result.output
    assert (tmp_path / "out" / name).read_text() == '[{"mine": 1}]'
