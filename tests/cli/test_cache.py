"""`edgepack cache`: what it lists, what it removes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import time

import pytest
from typer.testing import CliRunner

from edgepack.cli import app
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from tests.support.stages import Made, writing

DAY = 86400.0


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stages():
    """Two calibrations and a text, used 40, 35 and 1 days ago, and a calibration that was begun."""
    found = {
        days: Made(name, given={"days": days})
        for days, name in ((40, "calibrate"), (35, "calibrate"), (1, "text"))
    }
    for days, stage in found.items():
        finish(stage.complete(Threads()))
        then = time.time() - days * DAY
        os.utime(stage.folder / "stage.json", (then, then))
    found[0] = Made(given={"days": 0})
    found[0].partial.mkdir()
    (found[0].partial / "made-0").write_text("half")
    return found


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["cache", *arguments])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def left(stages):
    return {days for days, stage in stages.items() if stage.is_done or stage.partial.exists()}


def test_it_lists_what_is_there(stages, cache_root):
    (cache_root / "places").mkdir()
    (cache_root / "places/x.json").write_text("{}")
    lines = run("ls").stdout.splitlines()
    assert lines[0].split() == ["stage", "key", "size", "made", "used", "state", "model"]
    assert {line.split()[0] for line in lines[1:5]} == {"calibrate", "text"}
    assert [
        word for word in ("whole", "partial", "40 d", "1 d") if word not in "\n".join(lines)
    ] == []
    assert lines[5].startswith("4 results, ")
    assert lines[6] == "beside them: places 2 B"
    found = json.loads(run("ls", "--json").stdout)
    assert found["path"] == str(cache_root)
    assert [one["state"] for one in found["results"]].count("partial") == 1
    assert found["bytes"] == sum(
        path.stat().st_size
        for stage in stages.values()
        for folder in (stage.folder, stage.partial)
        for path in folder.glob("*")
    )


def test_an_empty_cache_is_no_error():
    assert "0 results, 0 B" in run("ls").stdout
    run("verify")
    run("prune", "--older-than", "30d")


@pytest.mark.parametrize("name", ["calibrate", "text"])
def test_a_stage_is_removed_by_its_name(stages, name):
    done = run("rm", name)
    assert left(stages) == {days for days, stage in stages.items() if stage.name != name}
    assert " freed" in done.stdout


def test_a_result_is_removed_by_the_beginning_of_its_key(stages):
    run("rm", stages[40].key[:8], f"calibrate/{stages[0].key}")
    assert left(stages) == {35, 1}


def test_a_name_that_nothing_has_is_refused_before_anything_is_removed(stages):
    done = run("rm", "text", "calibration", code=2)
    assert "neither a stage nor a key" in done.stderr
    assert run("rm", stages[40].key[:3], code=2)
    assert left(stages) == {40, 35, 1, 0}


def test_what_is_in_use_stays_and_is_told(stages):
    with stages[40].in_use(), writing(stages[0]):
        assert f"in use (process {os.getpid()})" in run("ls").stdout
        done = run("rm", "calibrate", code=1)
        assert done.stderr.count(f"stays: it is in use by process {os.getpid()}, since ") == 2
        run("prune", "--older-than", "0m")
        assert left(stages) == {40, 0}


def test_only_what_edgepack_wrote_is_removed(stages, cache_root):
    (stages[40].folder / "mine").write_text("keep")
    (cache_root / "calibrate" / "mine").mkdir()
    (cache_root / "calibrate" / ("0" * 32)).symlink_to(stages[1].folder)
    done = run("rm", "calibrate", code=1)
    assert "did not write: mine" in done.stderr
    assert left(stages) == {40, 1}
    kept = {stages[40].key, "mine", "0" * 32}  # a folder and a link of somebody else's
    assert {path.name for path in (cache_root / "calibrate").iterdir()} == kept


def test_prune_goes_by_the_last_use(stages):
    assert "would be freed" in run("prune", "--older-than", "30d", "--dry-run").stdout
    assert left(stages) == {40, 35, 1, 0}
    run("prune", "--older-than", "5w", "--keep-last", "2")
    assert left(stages) == {35, 1, 0}
    run("prune", "--older-than", "30d")
    assert left(stages) == {1, 0}
    assert "is no age" in run("prune", "--older-than", "month", code=2).stderr


def test_verify_says_what_is_damaged_and_repairs_it(stages):
    assert "none damaged" in run("verify").stdout
    path = stages[40].folder / "made-0"
    path.write_text("xtep 0")  # as long as before
    done = run("verify", code=1)
    assert f"damaged: {path.parent}: made-0" in done.stdout
    assert left(stages) == {40, 35, 1, 0}
    run("verify", "--repair")
    assert left(stages) == {35, 1, 0}
    run("verify")


def test_a_result_without_its_list_is_the_users_to_remove(stages):
    (stages[35].folder / "stage.json").write_text("{")
    assert "damaged" in run("ls").stdout
    done = run("verify", "--repair", code=1)
    assert f"delete {stages[35].folder}" in done.stderr
    assert left(stages) == {40, 35, 1, 0}
