"""H that is not kept: the same weights on less disk, whatever stops the run; what plans say."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edgepack
from edgepack import pipeline
from edgepack.allocate.stage import Allocate
from edgepack.calibration import stage as calibration_stage
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.streamed import PLACE
from edgepack.cli import app
from edgepack.core.hardware import LIMIT
from edgepack.core.progress import finish
from edgepack.decompose.stage import Decompose
from edgepack.errors import EdgepackError, RecipeError
from edgepack.pipeline import run
from edgepack.planning import room
from edgepack.planning.plan import PROCESS
from edgepack.planning.room import disk
from tests.support.dying import dies_before
from tests.support.tiny import TEXT, make_model

FORMAT = {"format": "q4_0", "rank": 4, "damping": [0.1]}
SIZE = {"bits_per_weight": 6, "ranks": [0], "damping": [0.1]}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "llama", "llama", layers=3)
    make_model(folder / "lfm2_moe", "lfm2_moe", layers=2)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    return folder


def write_recipe(
    place: Path, compress: dict, model: str = "llama", keep: bool | None = None, **more
) -> Path:
    calibrate = {"source": "text.txt", "tokens": 512, "sequence_length": 64}
    given = {
        "model": model,
        "calibrate": calibrate if keep is None else {**calibrate, "keep": keep},
        "compress": compress,
        "export": {"measure": {"tokens": 0}},
        **more,
    }
    path = place / f"{model}.yaml"
    path.write_text(json.dumps(given))
    return path


def packed(cache: Path, monkeypatch, recipe: Path) -> dict[str, dict[str, str]]:
    """Stage → file → sha256 of what is there after packing."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(cache))
    plan = edgepack.plan(recipe)
    finish(run(plan, until="decompose"))
    return {
        stage.name: {
            name: digest for name, digest in stage.files().items() if not name.startswith("all/")
        }
        for stage in plan.stages
        if stage.is_done and isinstance(stage, (Calibrate, Allocate, Decompose))
    }


@pytest.mark.parametrize(
    ("model", "compress"),
    [("llama", FORMAT), ("llama", SIZE), ("lfm2_moe", FORMAT)],
    ids=["formats", "a size", "experts"],
)
def test_weights_are_those_packed_with_h_that_is_kept(
    tmp_path, monkeypatch, place, model, compress
):
    kept = packed(tmp_path / "kept", monkeypatch, write_recipe(place, compress, model, keep=True))
    assert kept.pop("calibrate")
    recipe = write_recipe(place, compress, model, keep=False)
    assert packed(tmp_path / "streamed", monkeypatch, recipe) == kept
    assert not list((tmp_path / "streamed").rglob(PLACE))
    said = [line for line in edgepack.plan(recipe).warnings if "is not kept" in line]
    assert len(said) == 1
    assert ("twice" in said[0]) == (compress is SIZE)
    if model == "lfm2_moe":
        assert edgepack.plan(recipe).facts["experts"]["experts"]


@pytest.mark.slow
@pytest.mark.parametrize("compress", [FORMAT, SIZE], ids=["formats", "a size"])
def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path, monkeypatch, place, compress):
    recipe = write_recipe(place, compress, keep=False)
    whole = packed(tmp_path / "whole", monkeypatch, recipe)
    again, operations, kills = tmp_path / "again", 2, 0
    while dies_before(operations, partial(packed, again, monkeypatch, recipe)):
        operations, kills = operations + 11, kills + 1
    assert kills > 5
    assert packed(again, monkeypatch, recipe) == whole
    assert not list(again.rglob(PLACE))


def test_begun_without_h_it_ends_with_h_that_is_kept(tmp_path, monkeypatch, place):
    whole = packed(tmp_path / "whole", monkeypatch, write_recipe(place, FORMAT, keep=True))
    recipe = write_recipe(place, FORMAT, keep=False)
    assert dies_before(75, partial(packed, tmp_path / "again", monkeypatch, recipe))
    assert list((tmp_path / "again").rglob(PLACE))
    recipe = write_recipe(place, FORMAT, keep=True)
    assert packed(tmp_path / "again", monkeypatch, recipe) == whole
    assert not list((tmp_path / "again").rglob(PLACE))
    kept = edgepack.plan(write_recipe(place, FORMAT, keep=False)).find(Calibrate)
    assert not kept.streams  # H that is there is read


def test_h_is_kept_where_the_disk_has_room_for_it(tmp_path, monkeypatch, place):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    recipe = write_recipe(place, FORMAT)
    plan = edgepack.plan(recipe)
    size = sum(plan.find(Calibrate).sizes.hessians)
    assert plan.find(Calibrate).kept
    monkeypatch.setattr(calibration_stage, "free_space", lambda: 3 * size - 1)
    assert not edgepack.plan(recipe).find(Calibrate).kept
    assert edgepack.plan(write_recipe(place, FORMAT, keep=True)).find(Calibrate).kept
    layer = write_recipe(place, FORMAT)
    layer.write_text(layer.read_text().replace('"tokens": 512', '"objective": "layer"'))
    assert not edgepack.plan(layer).find(Calibrate).streams


def test_eora_needs_h_that_is_kept(tmp_path, monkeypatch, place):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    (place / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 8)
    finetune = {"data": "rows.jsonl", "init_lora_weights": "eora"}
    with pytest.raises(RecipeError, match="eora needs H when the weights are packed"):
        edgepack.plan(write_recipe(place, FORMAT, keep=False, finetune=finetune))


# ---------------------------------------------------------------------------- what is said before


def written(cache: Path) -> int:
    return sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())


@pytest.mark.parametrize("keep", [True, False])
def test_a_build_writes_what_its_plan_says(tmp_path, monkeypatch, place, keep):
    """Within a quarter, beside small files of JSON: the peak, which is before a file goes away."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(place, FORMAT, keep=keep)
    plan = edgepack.plan(recipe)
    said, seen = disk(plan), [0]

    def noted(operation):
        def call(*args, **kwargs):
            with suppress(FileNotFoundError):
                seen.append(written(tmp_path / "cache"))
            return operation(*args, **kwargs)

        return call

    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, noted(getattr(Path, name)))
    finish(pipeline.write_output(plan, out=tmp_path / "out"))
    seen, small = max(seen), 60_000
    assert seen - small < 1.25 * said
    assert said < 1.25 * seen + small
    assert disk(edgepack.plan(recipe)) < said / 2  # what is there need not be written again


def test_a_disk_without_room_is_refused_before_the_first_byte(tmp_path, monkeypatch, place):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(room, "free_space", lambda *_: 1000)
    recipe = write_recipe(place, FORMAT)
    with pytest.raises(EdgepackError, match=r"the build needs .* of disk there, and 1\.0 kB"):
        edgepack.build(recipe, out=tmp_path / "out")
    assert not list((tmp_path / "cache").iterdir())
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- --memory


def test_a_plan_keeps_to_the_memory_that_is_allowed_or_is_refused(tmp_path, monkeypatch, place):
    """A model with wide blocks: less memory is more passes, and no other key."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    wide = {"hidden": 1024, "intermediate": 4096, "heads": 8, "kv_heads": 8, "layers": 1}
    make_model(place / "wide", "llama", **wide)
    recipe = write_recipe(place, FORMAT, "wide")
    monkeypatch.setenv(LIMIT, str(64 << 30))
    plan = edgepack.plan(recipe)
    stage, keys = plan.find(Calibrate), [stage.key for stage in plan.stages]
    assert stage.passes == 1
    least = stage.memory() * 7 // 10
    monkeypatch.setenv(LIMIT, str(PROCESS + least))
    assert stage.passes > 1
    assert stage.memory() <= least
    assert [stage.key for stage in edgepack.plan(recipe).stages] == keys
    monkeypatch.setenv(LIMIT, str(PROCESS + least // 8))
    with pytest.raises(RecipeError, match=r"--memory: .* takes about .*, and .* are allowed"):
        edgepack.plan(recipe)


def test_the_command_line_says_what_a_plan_takes(tmp_path, monkeypatch, place):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(LIMIT, "")
    recipe, command = str(write_recipe(place, FORMAT)), CliRunner()
    said = command.invoke(app, ["plan", recipe, "--memory", "8GB"])
    assert "expected use of disk:" in said.output
    facts = json.loads(command.invoke(app, ["plan", recipe, "--json"]).output)
    assert 0 < facts["disk"]["needed"] < facts["disk"]["free"]
    said = command.invoke(app, ["plan", recipe, "--memory", "100MB"])
    assert said.exit_code == 2
    assert "error: --memory: " in said.output
    said = command.invoke(app, ["build", recipe, "--memory", "much"])
    assert "--memory: 'much' is not a size" in said.output
