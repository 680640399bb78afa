"""The weights of a merge on disk: the same bytes however they come about, in bounded memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgepack.core.progress import finish
from edgepack.errors import ExportError
from edgepack.merge import write
from edgepack.merge.stream import stream
from edgepack.merge.write import Writer, torch_dtype
from tests.merge.recipes import LINEAR, plan
from tests.support.dying import dies_before, files, survives
from tests.support.tiny import make_model

DARE = {
    "merge_method": "dare_ties",
    "base_model": "a",
    "models": [{"model": "b", "parameters": {"weight": 0.5, "density": 0.5}}],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    make_model(tmp_path / "a", seed=1)
    make_model(tmp_path / "b", seed=2)
    return tmp_path


def written(place: Path, document: dict, name: str, threads: int, shard_size: int = 10**9) -> dict:
    stage = plan(place, document)
    folder = place / name
    folder.mkdir()
    finish(stream(stage.work, folder, shard_size, threads))
    return files(folder)


@pytest.mark.parametrize("document", [LINEAR, DARE], ids=["linear", "dare_ties"])
def test_threads_and_shards_change_no_number(place, document):
    from tests.merge.recipes import tensors

    one = written(place, document, "one", 1)
    assert written(place, document, "four", 4) == one
    written(place, document, "shards", 4, 50_000)
    whole, parts = tensors(place / "one"), tensors(place / "shards")
    assert len(list((place / "shards").glob("*.safetensors"))) > 2
    assert set(whole) == set(parts)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_seed_is_another_result(place):
    folder = place / "seed"
    folder.mkdir()
    finish(stream(plan(place, DARE, seed=1).work, folder, 10**9, 1))
    assert files(folder) != written(place, DARE, "zero", 1)


def test_transformers_reads_the_shards(place):
    import transformers

    stage = plan(place, LINEAR, shard_size=50_000)
    from tests.merge.recipes import made

    found = made(stage)
    model = transformers.AutoModelForCausalLM.from_pretrained(stage.folder)
    for name, value in model.state_dict().items():
        if name in found:
            assert torch.equal(value, found[name])


def test_a_merge_killed_at_any_file_operation_goes_on(place):
    import edgepack

    config = place / "c.yaml"
    config.write_text(
        "merge_method: linear\n"
        "models:\n"
        "  - {model: a, parameters: {weight: 0.25}}\n"
        "  - {model: b, parameters: {weight: 0.75}}\n"
    )
    out = place / "out"

    def work(cache: str) -> None:
        os.environ["EDGEPACK_CACHE"] = str(place / cache)
        edgepack.merge_models(config, out, shard_size=80_000, force=out.exists())

    survives(work, out, 1, 3)


def test_what_a_killed_run_wrote_is_not_merged_again(place, monkeypatch):
    stage = plan(place, LINEAR, shard_size=50_000)
    folder = place / "killed"
    folder.mkdir()
    total = len(stage.layout.tensors)

    def killed() -> None:
        for number, _ in enumerate(stream(stage.work, folder, 10**9, 1)):
            if number == 8:
                os.kill(os.getpid(), signal.SIGKILL)

    assert dies_before(10**6, killed)
    left = Writer(folder, stage.layout.tensors, 10**9)
    assert 0 < len(left.missing) <= total - 7
    assert not list(folder.glob("*.safetensors")), "an unfinished shard has no name yet"
    read = []
    kept = type(stage.layout.inputs[0]).read
    monkeypatch.setattr(
        type(stage.layout.inputs[0]), "read", lambda self, n: read.append(n) or kept(self, n)
    )
    finish(stream(stage.work, folder, 10**9, 1))
    assert set(read) == left.missing
    assert files(folder) == written(place, LINEAR, "whole", 1)


def test_a_damaged_part_is_merged_again(place):
    stage = plan(place, LINEAR)
    writer = Writer(place, stage.layout.tensors)
    first, second, *_ = stage.layout.tensors
    for tensor in (first, second):
        writer.write(tensor.name, torch.ones(tensor.shape, dtype=torch_dtype(tensor.dtype)))
    writer.close()
    (part,) = place.glob("*.part")
    with part.open("r+b") as file:
        file.seek(len(writer._shards[0].header))
        file.write(b"xx")
    missing = Writer(place, stage.layout.tensors).missing
    assert first.name in missing
    assert second.name not in missing


def test_a_full_disk_is_found_before_anything_is_merged(place, monkeypatch):
    stage = plan(place, LINEAR)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage)
    folder = place / "full"
    folder.mkdir()
    with pytest.raises(ExportError, match=r"full has 1\.0 kB free"):
        finish(stream(stage.work, folder, 10**9))
    assert not list(folder.iterdir())


CHILD = """
import sys
from pathlib import Path
from edgepack.core.hardware import peak_memory
from edgepack.core.progress import finish
from edgepack.merge.stream import LIMIT, stream
from tests.merge.recipes import plan
place = Path(sys.argv[1])
def merge(model, out):
    document = {"merge_method": "linear", "models": [
        {"model": name, "parameters": {"weight": 0.5}} for name in (model, model + "2")]}
    stage = plan(place, document)
    (place / out).mkdir()
    finish(stream(stage.work, place / out, 10**10))
merge("tiny", "first")  # what is loaded and compiled once
before = peak_memory()
merge("large", "second")
print(peak_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_memory_is_bounded_by_tensors_not_by_models(place):
    """200 MB a model, 400 MB in and 200 MB out; the largest tensor has 4 MB."""
    for number, end in enumerate(("", "2")):
        make_model(place / f"tiny{end}", seed=number)
        make_model(
            place / f"large{end}", hidden=1024, heads=8, intermediate=2048, layers=11, seed=number
        )
    size = (place / "large/model.safetensors").stat().st_size
    assert size > 190e6
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(place)], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 100e6
