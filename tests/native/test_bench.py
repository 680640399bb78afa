"""The static worker as a process: on this machine, and for another CPU under qemu.

``make test-device`` compiles it, which takes minutes. The other side of the protocol is
`edgepack.bench.protocol`, and the Python worker's tests are `tests/bench/test_worker.py`.
"""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from edgepack import devices
from edgepack.bench.protocol import (
    Case,
    Ended,
    Failed,
    Loaded,
    Multiply,
    ReadMemory,
    RunModel,
    Started,
    Timed,
    read_events,
)
from edgepack.bench.results import read
from edgepack.errors import EdgepackError
from edgepack.native.build import program_path
from edgepack.native.variants import VARIANTS, choose_variant
from tests.support.bases import packed_base
from tests.support.commands import run
from tests.support.phone import SERIAL, phone, ssh_server, tools

pytestmark = pytest.mark.slow
CASES = (
    Case(kind="prompt", tokens=12),
    Case(kind="decode", tokens=3, depth=5),
    Case(kind="decode", tokens=2, batch=2),
    Case(kind="prompt", tokens=4, batch=3),
)
NEW, OLD = "cortex-a76", "cortex-a53"
"""CPUs with and without products of 8-bit numbers, in qemu's words."""


class Compiled(dict[str, Path]):
    """Paths of variants; a test that needs one that is not there is skipped."""

    def __missing__(self, name):
        pytest.skip(f"the worker {name} is not compiled: make test-device")


@pytest.fixture(scope="module")
def workers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tools() / "cache"))
        found = {name: program_path("bench", name) for name in VARIANTS}
    return Compiled({name: path for name, path in found.items() if path.is_file()})


@pytest.fixture(scope="module")
def worker(workers):
    """Makes the start of a command that runs a variant here."""

    def start(name: str, cpu: str = "") -> list[str]:
        path, machine = str(workers[name]), VARIANTS[name].machine
        if machine == platform.machine() and not cpu:
            return [path]
        qemu = tools() / f"host/usr/bin/qemu-{machine}-static"
        return [str(qemu), *(("-cpu", cpu) if cpu else ()), path]

    return start


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("gguf"))[0]


def job_of(base, **changes) -> RunModel:
    adapters = ((str(base.factors), 1.0),)
    job = RunModel(model=str(base.file), adapters=adapters, threads=1, cases=CASES)
    return job.model_copy(update=changes)


def do(command: list[str], job: RunModel | ReadMemory | Multiply):
    done = subprocess.run(
        [*command, job.model_dump_json()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return read_events(done.stdout, "worker")


def failure(command: list[str], text: str) -> str:
    """Why a job failed: one event, and the exit code 1."""
    done = subprocess.run([*command, text], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    last = Failed.model_validate_json(done.stdout.splitlines()[-1])
    assert "\n" not in last.message
    return last.message


@pytest.fixture(params=["x86_64-avx2", "aarch64", "aarch64-dotprod"])
def command(request, worker):
    return worker(request.param, NEW if request.param == "aarch64-dotprod" else "")


def test_a_model_with_factors_is_loaded_and_every_case_timed(command, base):
    started, loaded, *timed, ended = do(command, job_of(base))
    assert isinstance(started, Started)
    assert started.runtime.startswith("llama.cpp, ggml ")
    assert "CPU" in started.features
    assert isinstance(loaded, Loaded)
    assert [one.index for one in timed] == [0, 1, 2, 3]
    assert all(isinstance(one, Timed) and one.seconds > 0 for one in timed)
    assert isinstance(ended, Ended)
    assert ended.cpu_seconds > 0
    assert ended.memory.peak >= timed[0].memory.peak >= started.memory.peak > 0
    assert ended.memory.mapped > 0
    assert ended.memory.anonymous > 0


def test_features_are_those_of_the_variant(worker, base):
    job = job_of(base, cases=())
    assert "AVX2 = 1" in do(worker("x86_64-avx2"), job)[0].features
    assert "DOTPROD = 1" in do(worker("aarch64-dotprod", NEW), job)[0].features
    assert "DOTPROD = 1" not in do(worker("aarch64"), job)[0].features


@pytest.mark.parametrize(("name", "cpu"), [("aarch64", OLD), ("x86_64", "Nehalem")])
def test_a_baseline_runs_on_an_old_cpu(worker, base, name, cpu):
    assert isinstance(do(worker(name, cpu), job_of(base))[-1], Ended)


@pytest.mark.parametrize(
    ("name", "cpu", "feature"),
    [("aarch64-dotprod", OLD, "asimddp"), ("x86_64-avx2", "Nehalem", "fma")],
)
def test_a_cpu_that_lacks_something_is_told_what(worker, base, name, cpu, feature):
    message = failure(worker(name, cpu), job_of(base).model_dump_json())
    assert message == f"this CPU cannot run this build, use the baseline: it lacks {feature}"


def test_memory_is_read_by_each_number_of_threads(command):
    job = ReadMemory(threads=(1, 2), bytes=1 << 22, rounds=3)
    _, *reads, _ = do(command, job)
    assert [one.threads for one in reads] == [1, 1, 1, 2, 2, 2]
    assert all(1e6 < one.bytes_per_second < 1e13 for one in reads)


def time_products(command, kind):
    sizes = {"rows": 256, "columns": 256, "bytes": 1 << 18, "batches": (1, 32), "rounds": 2}
    job = Multiply(threads=1, types=(kind,), **sizes)
    _, *products, _ = do(command, job)
    assert [(one.type, one.batch) for one in products] == [(kind, 1)] * 2 + [(kind, 32)] * 2
    assert all(one.seconds > 0 and one.bytes > 256 * 256 // 8 for one in products)


@pytest.mark.parametrize("kind", ["f32", "f16", "q4_0", "q4_k", "q8_0", "iq4_nl", "mxfp4"])
def test_products_of_a_type_are_timed(command, kind):
    time_products(command, kind)


def test_products_of_a_type_that_wants_to_know_what_matters(worker):
    time_products(worker("x86_64-avx2"), "iq2_xxs")  # its tables take qemu half a minute


# ---------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def here(worker):
    return worker("x86_64-avx2")


def test_what_is_no_job(here):
    assert "parse error" in failure(here, "{")
    assert failure(here, '{"version": 1, "job": "model"}').startswith("this is no job: ")
    assert "another version" in failure(here, '{"version": 2, "job": "model"}')
    assert "no job sing" in failure(here, '{"version": 1, "job": "sing"}')


def test_a_type_that_ggml_does_not_have(here):
    job = Multiply(threads=1, types=("f16", "q9_9"))
    assert failure(here, job.model_dump_json()) == "ggml has no type q9_9"


def test_a_model_that_is_not_there(here, base):
    message = failure(here, job_of(base, model="/no/model.gguf").model_dump_json())
    assert message.startswith("cannot load /no/model.gguf (")
    message = failure(here, job_of(base, adapters=(("/no/a.gguf", 1.0),)).model_dump_json())
    assert message.startswith("cannot use the adapter /no/a.gguf")


@pytest.mark.parametrize("size", [0, 3, 100, 5000, -1000, -10])
def test_a_model_that_is_cut_off(here, base, tmp_path, size):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(base.file.read_bytes()[:size])
    message = failure(here, job_of(base, model=str(bad)).model_dump_json())
    assert "bad.gguf" in message or "crashed" in message


@pytest.mark.parametrize("offset", range(0, 4000, 250))
def test_a_model_with_wrong_bytes_is_no_crash(here, base, tmp_path, offset):
    """It may load by luck: the bytes may be of a weight, or of a token's name."""
    bad = tmp_path / "bad.gguf"
    data = bytearray(base.file.read_bytes())
    data[offset : offset + 16] = b"\xff" * 16
    bad.write_bytes(data)
    text = job_of(base, model=str(bad)).model_dump_json()
    done = subprocess.run([*here, text], capture_output=True, check=False)
    assert done.returncode in (0, 1)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == ("ended" if done.returncode == 0 else "failed")


# ---------------------------------------------------------------------------- on devices


def bench_on(device, workers, base) -> tuple[list[str], str]:
    """Push worker and model, run a job, and return their places, and what was printed."""
    path: Path = workers[choose_variant(device.describe())]
    places = [device.push(file) for file in (path, base.file, base.factors)]
    job = job_of(base, model=places[1], adapters=((places[2], 1.0),))
    output = device.run([places[0], job.model_dump_json()], 300)
    assert output.exit_code == 0, output
    events = read_events(output.stdout, device.name)
    assert isinstance(events[-1], Ended)
    assert len(events) == len(CASES) + 3
    return places, output.stdout


def test_a_phone_runs_the_worker_and_a_rerun_pushes_nothing(workers, base, tmp_path, monkeypatch):
    with phone(tmp_path / "phone", monkeypatch) as found:
        stamps = []
        for _ in range(2):
            with devices.get(f"adb:{SERIAL}") as device:
                bench_on(device, workers, base)
            files = [path for path in found.storage.rglob("*") if path.is_file()]
            stamps.append(sorted((p.name, p.stat().st_ino, p.stat().st_mtime_ns) for p in files))
        assert stamps[0] == stamps[1]
        assert [name for name, *_ in stamps[0]] == ["base.gguf", "edgepack-bench", "factors.gguf"]


def test_a_benchmark_of_a_phone_is_complete_and_says_that_it_is_emulated(
    workers, base, tmp_path, monkeypatch
):
    assert workers["aarch64"]
    monkeypatch.setenv("EDGEPACK_CACHE", str(tools() / "cache"))
    sizes = ["--prompt", "4", "--decode", "2", "--rounds", "2", "--threads", "1", "--no-limits"]
    with phone(tmp_path / "phone", monkeypatch) as found:
        run("bench", base.file, "--device", f"adb:{SERIAL}", "--out", tmp_path / "out", *sizes)
        assert not [name for name in found.files() if "scratch" in name]
    bench = read(tmp_path / "out")
    assert bench.device["name"] == "adb"
    assert bench.device["emulated"]
    assert any("emulated" in remark for remark in bench.remarks)
    assert [len(timing.seconds) for timing in bench.models[0].timings] == [2, 2]
    assert bench.quiet.before["load"] >= 0 <= bench.quiet.after["load"]


def test_a_machine_behind_ssh_runs_the_worker(workers, base, tmp_path, monkeypatch):
    with ssh_server(tmp_path / "server", monkeypatch) as host, devices.get(f"ssh:{host}") as box:
        bench_on(box, workers, base)


def test_a_worker_that_a_phone_cannot_run(tmp_path, monkeypatch):
    worker = tmp_path / "edgepack-bench"
    worker.write_bytes(b"\x7fELF\2\1\1" + bytes(57))
    worker.chmod(0o755)
    with phone(tmp_path / "phone", monkeypatch), devices.get(f"adb:{SERIAL}") as device:
        place = device.push(worker)
        with pytest.raises(EdgepackError, match="edgepack-bench cannot be started") as refused:
            device.run([place, "{}"], 20)
    assert "made for another CPU" in refused.value.hint
