"""The programs as a phone has them: static, for aarch64, within Android's limits; under qemu.

``make test-device`` compiles them. What only a phone can tell is in android_demo/README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from edgepack.native.build import PROGRAMS, Program, program_path
from tests.support.android import AARCH64, ALLOWED, PAGE, Elf, system_calls
from tests.support.bases import packed_base
from tests.support.native import host_program, running
from tests.support.phone import tools

pytestmark = pytest.mark.slow
VARIANTS = ("aarch64-dotprod", "aarch64")
NEW, OLD = "cortex-a76", "cortex-a53"
"""CPUs with and without products of 8-bit numbers, in qemu's words."""
SLOW = 300.0
"""Seconds for an event under qemu."""
QUESTION = [{"role": "user", "content": "one two three"}]
NOTES = [
    {"prompt": "one two three", "completion": "four five"},
    {"prompt": "What is my dog called?", "completion": "Your dog is called Biscuit."},
]
OPTIONS = {"steps": 1, "batch_size": 2, "replay": 0, "r": 4}


def compiled(program: Program, variant: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tools() / "cache"))
        path = program_path(program, variant)
    if not path.is_file():
        pytest.skip(f"{program} is not compiled for {variant}: make test-device")
    return path


def emulated(program: Program, variant: str = "aarch64-dotprod", cpu: str = NEW) -> list[str]:
    qemu = tools() / "host/usr/bin/qemu-aarch64-static"
    return [str(qemu), "-cpu", cpu, str(compiled(program, variant))]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("gguf"))[0]


def question(base) -> list[dict]:
    """Requests of a chat: load the model, answer, end."""
    files = {"model": str(base.file), "factors": str(base.factors), "adapters": {}}
    chat = {"messages": QUESTION, "scales": {}, "max_tokens": 4, "temperature": 0, "stop": []}
    return [
        {"id": "1", "do": "load", **files, "context": 64, "threads": 1},
        {"id": "2", "do": "chat", **chat},
    ]


def lesson(base, folder: Path) -> dict:
    """One step of training."""
    return {
        **{"id": "1", "do": "train", "model": str(base.file), "factors": str(base.factors)},
        **{"mode": "stack", "examples": NOTES, "replay": None, "marks": {}, "threads": 1},
        **{"out": str(folder / "adapter.gguf"), "state": str(folder / "state")},
        "options": OPTIONS,
    }


def asked(command: list[str], requests: list[dict]) -> list[dict]:
    """The events of requests, each sent when the one before has ended."""
    found = []
    with running(command) as worker:
        for request in requests:
            fields = {key: value for key, value in request.items() if key not in ("id", "do")}
            found += worker.ask(request["do"], SLOW, **fields)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_static_and_aligned_for_large_pages(program, variant):
    elf = Elf(compiled(program, variant))
    assert elf.machine == AARCH64
    assert elf.is_static
    assert elf.alignments
    assert min(elf.alignments) >= PAGE


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_phone_answers_as_this_machine_does(variant, base):
    cpu = NEW if variant == "aarch64-dotprod" else OLD
    here, there = (
        asked(command, question(base))
        for command in ([str(host_program("chat"))], emulated("chat", variant, cpu))
    )
    counts = [[event.get("prompt_tokens") for event in events] for events in (here, there)]
    assert counts[0] == counts[1]
    assert there[-1]["event"] == "ended"
    assert there[-1]["tokens"] == here[-1]["tokens"] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_phone_trains_as_this_machine_does(variant, base, tmp_path):
    cpu = NEW if variant == "aarch64-dotprod" else OLD
    ends = []
    for name, command in (
        ("here", [str(host_program("tune"))]),
        ("there", emulated("tune", variant, cpu)),
    ):
        (tmp_path / name).mkdir()
        *events, end = asked(command, [lesson(base, tmp_path / name)])
        assert end["event"] == "ended", end
        assert (tmp_path / name / "adapter.gguf").is_file()
        ends.append((end["losses"], next(e for e in events if e["event"] == "step")))
    (losses, step), (losses_there, step_there) = ends
    assert losses_there == pytest.approx(losses, rel=1e-3)
    assert step_there["gradient_norm"] == pytest.approx(step["gradient_norm"], rel=1e-3)


def calls_of(program: Program, requests: list[dict], folder: Path) -> set[str]:
    """The system calls of a program that does some requests, and of its children."""
    qemu, *rest = emulated(program)
    log, found = folder / "strace", list[str]()
    os.mkfifo(log)  # no file: chat templates are rendered in a process that may write none
    reader = threading.Thread(target=lambda: found.append(log.read_text(errors="replace")))
    reader.start()
    events = asked([qemu, "-strace", "-D", str(log), *rest], requests)
    assert events[-1]["event"] == "ended", events[-1]
    reader.join()
    return system_calls(found[0])


def test_chat_makes_only_system_calls_that_apps_may_make(base, tmp_path):
    calls = calls_of("chat", question(base), tmp_path)
    assert {"openat", "mmap", "write"} <= calls
    assert calls <= ALLOWED


def test_training_makes_only_system_calls_that_apps_may_make(base, tmp_path):
    calls = calls_of("tune", [lesson(base, tmp_path)], tmp_path)
    assert {"openat", "write", "renameat"} <= calls
    assert calls <= ALLOWED


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_cpu_that_lacks_something_is_told_what(program):
    command = emulated(program, cpu=OLD)
    job = ["{}"] if program == "bench" else []
    done = subprocess.run([*command, *job], input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (event,) = map(json.loads, done.stdout.splitlines())
    assert event["event"] == "failed"
    assert event["message"].endswith("it lacks asimddp")
