"""Builds that are killed, again and again, end with the very bytes of one that was not."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import edgepack
from edgepack.cli import app
from edgepack.errors import EdgepackError
from edgepack.metrics.divergence import CHUNK
from tests.support.dying import dies_after, dies_before, files
from tests.support.tiny import make_model

OBJECTIVES = ["model", "layer"]


@pytest.fixture(scope="module", params=OBJECTIVES)
def recipe(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_model(folder / "model")
    data = {
        "model": "model",
        "calibrate": {"objective": request.param, "tokens": 2048, "sequence_length": 64},
        "compress": {"format": "q4_0", "iterations": 1, "overrides": {"*.up_proj": {"rank": 4}}},
        "export": {"measure": {"tokens": 0}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def build(recipe: Path, folder: Path, *, force: bool = False) -> None:
    """A build with a cache of its own: `folder` gets ``cache`` and ``out``."""
    os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
    edgepack.build(recipe, out=folder / "out", force=force)


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", "")  # `build` sets it: put back afterwards


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> dict[str, bytes]:
    """What a build leaves that nobody disturbs, cache included."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", "")
        build(recipe, folder)
    return files(folder)


def assert_same(folder: Path, whole: dict[str, bytes]) -> None:
    found = files(folder)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []


@pytest.mark.slow
def test_killed_before_every_few_file_operations(recipe, whole, tmp_path):
    """Each run is killed after some renames and unlinks, the first ones after next to none, when
    a temporary file is all there is; the next goes on."""
    draw, runs = random.Random(0), 0
    first = (0, 1, 1, 0)
    budgets = itertools.chain(first, (draw.randint(50, 66) for _ in range(60)))
    while dies_before(next(budgets), lambda: build(recipe, tmp_path)):
        runs += 1
        if (tmp_path / "out").exists():  # killed while it cleared up behind itself
            assert {n: d for n, d in files(tmp_path).items() if n.startswith("out/")} == {
                n: d for n, d in whole.items() if n.startswith("out/")
            }
            build(recipe, tmp_path, force=True)
            break
    assert runs >= 4 + len(first)
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_killed_at_five_random_moments(recipe, whole, tmp_path):
    start = time.monotonic()
    assert not dies_after(600, lambda: build(recipe, tmp_path / "timing"))
    duration = time.monotonic() - start
    assert_same(tmp_path / "timing", whole)  # two builds are the same to the byte
    draw, killed = random.Random(1), 0
    for _ in range(5):  # together about two thirds of what there is to do
        moment = draw.uniform(0.5, 1.5) * duration / 8
        killed += dies_after(moment, lambda: build(recipe, tmp_path / "killed"))
    assert killed >= 4
    build(recipe, tmp_path / "killed")
    assert_same(tmp_path / "killed", whole)


SLOW_BUILD = """
import sys, time, edgepack
edgepack.build(sys.argv[1], out=sys.argv[2], progress=lambda _: time.sleep(0.03))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["text", "decompose"])
def test_a_process_of_its_own_killed_when_a_stage_begins(recipe, whole, tmp_path, stage):
    """``kill -9`` of an interpreter; the pauses let a busy machine's test look in time."""
    command = [sys.executable, "-c", SLOW_BUILD, str(recipe), str(tmp_path / "out")]
    cache = tmp_path / "cache"
    environment = os.environ | {"EDGEPACK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None and not any(cache.glob(f"{stage}/*.partial")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    build(recipe, tmp_path)
    assert_same(tmp_path, whole)


# ---------------------------------------------------------------------------- measuring


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize("target", ["gguf", "onnx", "checkpoint"])
def test_measuring_goes_on_chunk_by_chunk(tmp_path, target):
    """A build that is killed after every second chunk ends all the same, and says the same."""
    pytest.importorskip("llama_cpp")
    make_model(tmp_path / "model", intermediate=128, tied=False)
    recipe: dict[str, object] = {
        "model": "model",
        "calibrate": {"tokens": 1024, "sequence_length": 64},
        "export": {"measure": {"tokens": 512, "context": 64}},
    }
    if target == "checkpoint":
        recipe["slice"] = {"width": 32, "round_to": 32}
    else:
        recipe["compress"] = {"format": "q4_0"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def build_in(folder: Path) -> None:
        os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
        edgepack.build(tmp_path / "recipe.yaml", target, out=folder / "out")

    build_in(tmp_path / "whole")
    measured = json.loads((tmp_path / "whole/out/manifest.json").read_text())["measured"]
    assert measured["tokens"] == 128  # what is held out
    shutil.copytree(tmp_path / "whole/cache", tmp_path / "killed/cache")
    shutil.rmtree(tmp_path / "killed/cache/measure")

    def killed_after_a_chunk() -> None:
        replace = Path.replace

        def dying(path: Path, place: Path) -> Path:
            done = replace(path, place)
            if Path(place).name.startswith(CHUNK):
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        Path.replace = dying
        build_in(tmp_path / "killed")

    runs = 0
    while dies_after(600, killed_after_a_chunk):
        runs += 1
        assert not (tmp_path / "killed/out").exists()
    assert runs == measured["tokens"] // 64
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["cache", "out"]


# ---------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """Mounts a disk of some KiB; unmounted afterwards. The build has seen it when it had room."""
    monkeypatch.setattr("edgepack.pipeline.check_disk", lambda plan, out: None)
    mounted = []

    def mount(kibibytes: int) -> Path:
        place = tmp_path / f"disk-{kibibytes}"
        place.mkdir()
        size = f"size={kibibytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [64, 400])
def test_a_full_disk_is_said_in_one_line_and_resumed(
    recipe, whole, tmp_path, small_disk, kibibytes
):
    """The build leaves 550 KiB; the disks fill up in different stages."""
    disk = small_disk(kibibytes)
    os.environ["EDGEPACK_CACHE"] = str(disk / "cache")
    arguments = ["build", str(recipe), "--target", "gguf", "--out", str(disk / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # said, not raised
    said = [line for line in result.output.splitlines() if "error" in line]
    assert len(said) == 1
    assert re.search("disk is full|no space left", said[0], re.IGNORECASE)
    assert not (disk / "out").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    build(recipe, disk)
    assert_same(disk, whole)


@pytest.mark.slow
def test_an_output_on_a_full_disk_leaves_no_output(recipe, whole, tmp_path, small_disk):
    disk = small_disk(64)
    os.environ["EDGEPACK_CACHE"] = str(tmp_path / "cache")
    with pytest.raises((OSError, EdgepackError), match=r"(?i)no space left"):
        edgepack.build(recipe, out=disk / "out")
    assert list(disk.iterdir()) == []
    build(recipe, tmp_path)
    assert_same(tmp_path, whole)
