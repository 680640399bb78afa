"""The worker as a process: what it says of a real model, and how it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgepack import devices
from edgepack.bench.protocol import (
    Case,
    Ended,
    Loaded,
    Multiplied,
    Multiply,
    Read,
    ReadMemory,
    RunModel,
    Started,
    Timed,
    read_events,
    read_job,
)
from edgepack.bench.workers import Worker, one
from edgepack.errors import EdgepackError
from tests.support.bases import packed_base

pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.llama, pytest.mark.slow]
CASES = (
    Case(kind="prompt", tokens=12),
    Case(kind="decode", tokens=3, depth=5),
    Case(kind="decode", tokens=3, batch=2),
)


@pytest.fixture(scope="module")
def local():
    return devices.get("local")


def do(job, device, timeout):
    return Worker(device, timeout=timeout).do(job)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("gguf"))[0]


def test_a_gguf_with_factors_is_loaded_and_every_case_timed(base, local):
    job = RunModel(
        model=str(base.file), adapters=((str(base.factors), 1.0),), threads=1, cases=CASES
    )
    started, loaded, *timed, ended = do(job, local, 60)
    assert isinstance(started, Started)
    assert started.runtime.startswith("llama.cpp, ggml ")
    assert isinstance(loaded, Loaded)
    assert [one.index for one in timed] == [0, 1, 2]
    assert all(isinstance(one, Timed) and one.seconds > 0 for one in timed)
    assert isinstance(ended, Ended)
    assert ended.memory.peak >= ended.memory.anonymous + ended.memory.mapped > 1 << 20
    assert timed[0].memory.peak >= started.memory.peak


def test_an_onnx_model_too(tmp_path, local):
    pytest.importorskip("onnxruntime")
    base, _ = packed_base(tmp_path, target="onnx", form="int4_g32")
    started, _, *timed, ended = do(
        RunModel(model=str(base.file), threads=1, cases=CASES), local, 60
    )
    assert started.runtime.startswith("ONNX Runtime ")
    assert len(timed) == 3
    assert isinstance(ended, Ended)


def test_the_worker_has_no_torch_in_memory(base, local):
    job = RunModel(model=str(base.file), threads=1, cases=CASES[:1])
    started = do(job, local, 60)[0]
    assert started.memory.anonymous < 80 << 20


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q2_0", "iq2_xxs"])
def test_products_of_every_kind_of_type(kind, local):
    job = Multiply(
        threads=1, types=(kind,), rows=64, columns=512, batches=(1, 8), bytes=1 << 18, rounds=4
    )
    found = [one for one in do(job, local, 60) if isinstance(one, Multiplied)]
    assert [(one.type, one.batch) for one in found] == [(kind, 1)] * 4 + [(kind, 8)] * 4
    assert len({one.bytes for one in found}) == 1


def test_memory_is_read_by_each_number_of_threads(local):
    job = ReadMemory(threads=(1, 2), bytes=1 << 22, rounds=2)
    found = [one for one in do(job, local, 60) if isinstance(one, Read)]
    assert [one.threads for one in found] == [1, 1, 2, 2]
    assert all(one.bytes_per_second > 1e6 for one in found)


def test_a_damaged_model_is_one_line(tmp_path, local):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(60))
    job = RunModel(model=str(tmp_path / "bad.gguf"), threads=1, cases=CASES)
    with pytest.raises(EdgepackError, match=r"local: cannot load bad\.gguf"):
        do(job, local, 60)


def test_a_worker_that_dies_is_told_from_one_that_fails(local, base):
    job = RunModel(model=str(base.file), threads=1, cases=CASES)
    with pytest.raises(EdgepackError, match="did not end within"):
        do(job, local, 0.05)


def test_jobs_and_events_come_through_json_unchanged():
    job = RunModel(model="a", adapters=(("b", 0.5),), threads=3, cases=CASES)
    assert read_job(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "says 'hello', which is no event"),
        ('{"event": "case", "index": 1}', "which is no event"),
        ('{"event":"started","version":99,"runtime":"x","memory":{}}', "speaks version 99, not 1"),
        ('{"event":"failed","message":"no such file"}', "phone: no such file"),
    ],
)
def test_what_is_no_event_is_refused(line, reason):
    with pytest.raises(EdgepackError, match=reason):
        read_events(line, "phone")


def test_a_worker_that_leaves_a_line_out_is_told():
    with pytest.raises(EdgepackError, match="ended without its line 'started'") as caught:
        one([], Started)
    assert caught.value.hint


def test_a_job_that_is_none_ends_the_worker_with_an_error():
    command = [sys.executable, "-m", "edgepack.bench.worker", "{}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert '"event":"failed"' in found.stdout
