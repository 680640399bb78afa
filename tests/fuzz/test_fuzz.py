"""A small fixed slice of ``make fuzz``, and the harness itself: it must see what goes wrong."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError
from tests.fuzz.harness import GOOD, Reader, judged, run
from tests.fuzz.mutators import spoil_bytes, spoil_json, spoil_template, spoil_yaml
from tests.fuzz.readers import READERS, SLOW, chance_of

INPUTS = 2
"""Of each reader; ``make fuzz`` has the rest."""


@pytest.mark.slow
def test_the_first_inputs_are_read_or_refused(tmp_path: Path):
    """In a process of its own: workers are forks, and this one has threads."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "tests.fuzz", f"--inputs={INPUTS}", f"--keep={tmp_path}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    table = done.stdout[done.stdout.find("| reader") :]
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {name} | {max(1, INPUTS // SLOW.get(name, 1))} |" in table for name in READERS)


# ---------------------------------------------------------------------------- the harness


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A case with nothing in it but a model's folder."""
    folder = tmp_path / "template"
    (folder / "m").mkdir(parents=True)
    (folder / "m/config.json").write_text("{}")
    return folder


def nothing(folder: Path, number: int) -> list[str]:
    return []


def endless(folder: Path) -> None:
    while True:
        pass


def dies(folder: Path) -> None:
    os.kill(os.getpid(), 11)


def eats(folder: Path) -> None:
    bytearray(20 << 30)


def refuses(folder: Path, message: str, hint: str | None) -> None:
    raise EdgepackError(message, hint=hint)


def reads_outside(folder: Path) -> None:
    (folder / "../outside/config.json").read_bytes()


def writes_outside(folder: Path) -> None:
    (folder / "../new").write_text("x")


def wrong(folder: Path) -> None:
    json.loads("{")


KINDS = {
    "ok": lambda folder: None,
    "refused": partial(refuses, message="m: is nothing", hint="write something"),
    "no hint": partial(refuses, message="m: is nothing", hint=None),
    "unclear": partial(refuses, message="m: " + "x" * 2000, hint="write something"),
    "traceback": wrong,
    "signal": dies,
    "memory": eats,
}


@pytest.mark.slow
@pytest.mark.parametrize("outcome", KINDS)
def test_every_outcome_is_told_from_the_others(outcome: str, template: Path, tmp_path: Path):
    found = run(Reader("x", nothing, KINDS[outcome]), range(3), template, tmp_path / "run")
    assert dict(found.counts) == {outcome: 3}
    assert len(found.failures) == (0 if outcome in GOOD else 3)


@pytest.mark.slow
@pytest.mark.parametrize("read", [reads_outside, writes_outside])
def test_what_lies_beside_a_case_is_watched(read, template: Path, tmp_path: Path):
    found = run(Reader("x", nothing, read), range(1), template, tmp_path / "run")
    assert dict(found.counts) == {"leak": 1}


@pytest.mark.slow
def test_a_hang_costs_its_own_time_and_the_next_inputs_go_on(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tests.fuzz.harness.CPU_SECONDS", 0.3)

    def second_hangs(folder: Path) -> None:
        if (folder / "number").read_text() == "1":
            endless(folder)

    def numbered(folder: Path, number: int) -> list[str]:
        (folder / "number").write_text(str(number))
        return ["number"]

    began = time.monotonic()
    found = run(Reader("x", numbered, second_hangs), range(4), template, tmp_path / "run")
    assert dict(found.counts) == {"ok": 3, "hang": 1}
    assert [number for number, _, _ in found.failures] == [1]
    assert (tmp_path / "run/kept/1/number").read_text() == "1"
    assert time.monotonic() - began < 60


def test_an_error_of_several_lines_is_unclear():
    outcome, _ = judged(lambda: refuses(Path(), "one\ntwo", "hint"))
    assert outcome == "unclear"


def test_inputs_are_their_number_and_nothing_else():
    recipe = {"model": "m", "compress": {"format": "q4_0", "damping": [0.1]}}
    for spoil in (spoil_json, spoil_yaml):
        first, again = (
            [spoil(recipe, chance_of("x", number)) for number in range(200)] for _ in range(2)
        )
        assert first == again
        assert len(set(first)) > 150
    data = bytes(range(256)) * 4
    assert len({spoil_bytes(data, chance_of("x", n)) for n in range(200)}) > 150
    assert len({spoil_template("{{ messages }}" * 9, chance_of("x", n)) for n in range(200)}) > 60
    assert recipe == {"model": "m", "compress": {"format": "q4_0", "damping": [0.1]}}
