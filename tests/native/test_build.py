"""Which static worker a machine gets, and what is said where one cannot be made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError
from edgepack.native import build, source, toolchains
from edgepack.native.build import PROGRAMS, make_program, program_path
from edgepack.native.variants import VARIANTS, choose_variant

ARM = ["fp", "asimd", "aes", "fphp", "asimdhp"]


@pytest.mark.parametrize(
    ("about", "variant"),
    [
        ({"machine": "aarch64", "features": [*ARM, "asimddp"]}, "aarch64-dotprod"),
        ({"machine": "aarch64", "features": ARM}, "aarch64"),
        ({"machine": "aarch64", "emulated": True}, "aarch64"),
        ({"machine": "arm64"}, "aarch64"),
        (
            {"machine": "x86_64", "features": ["sse4_2", "avx2", "fma", "f16c", "bmi2"]},
            "x86_64-avx2",
        ),
        ({"machine": "x86_64", "features": ["sse4_2", "avx2"]}, "x86_64"),
    ],
)
def test_a_device_gets_the_newest_that_it_can_run(about, variant):
    assert choose_variant(about) == variant


@pytest.mark.parametrize("machine", ["armv7l", "riscv64"])
def test_other_machines_are_named(machine):
    with pytest.raises(EdgepackError, match=f"there is no worker for {machine}") as refused:
        choose_variant({"machine": machine})
    assert refused.value.hint == "workers are made for Linux and Android on aarch64, x86_64"


def test_without_a_compiler_one_reads_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(EdgepackError, match="ziglang is not installed") as refused:
        make_program("bench", "aarch64")
    assert refused.value.hint == "pip install 'edgepack[devices]'"


def test_an_archive_of_other_bytes_is_refused_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    archive = tmp_path / "workers" / source.ARCHIVE
    archive.parent.mkdir()
    archive.write_bytes(b"not llama.cpp")
    with pytest.raises(EdgepackError, match="other bytes"):
        source.llama_cpp(lambda _: None)
    assert not archive.exists()


def test_versions_are_those_of_the_constraints():
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    pinned = {f"ziglang=={toolchains.ZIG}", f"llama_cpp_python=={source.RELEASE}"}
    assert pinned <= set(pins)


def test_a_changed_source_makes_another_program(tmp_path):
    shutil.copytree(build.HERE, tmp_path / "native")
    paths = {program_path(program, name) for program in PROGRAMS for name in VARIANTS}
    assert len(paths) == len(PROGRAMS) * len(VARIANTS)
    assert program_path("chat", "aarch64", tmp_path / "native") in paths
    (tmp_path / "native/shared/cpu.cpp").write_text("// other\n")
    assert program_path("chat", "aarch64", tmp_path / "native") not in paths


def test_who_comes_second_waits_for_the_first(tmp_path, monkeypatch):
    """…and says so: two tests, or a demo and a test, may need the same program."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    holds = (
        "import sys; from edgepack.core.disk import lock_of, locked\n"
        "with locked(lock_of('workers-thing')): print(flush=True); sys.stdin.read()"
    )
    said = []
    with subprocess.Popen(
        [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        first.stdout.readline()

        def say(line):
            said.append((line, first.poll()))
            first.stdin.close()

        with source.alone("thing", say):
            assert first.wait(60) == 0
    assert said == [("waiting for another process, which makes the same (thing)", None)]
