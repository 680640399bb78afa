"""The lines that run a GGUF folder, and what is said of the programs that they name."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from edgepack.planning.target import get
from tests.support.commands import run, write
from tests.support.tiny import TEXT, make_model


def manifest(rank=0, fmt="q4_0"):
    return {"weights": {"w": {"rank": rank, "formats": {"Q": fmt}}}}


def lines(folder="out", **about):
    """Program, or command of edgepack → its line."""
    found = get("gguf").commands(manifest(**about), PurePosixPath(folder))
    return {line.removeprefix("edgepack ").split()[0]: line for line in found}


def test_every_program_has_a_line():
    assert lines() == {
        "chat": "edgepack chat out",
        "serve": "edgepack serve out",
        "llama-cli": "llama-cli -m out/base.gguf",
        "llama-server": "llama-server -m out/base.gguf",
        "ollama": "ollama create NAME -f out/Modelfile && ollama run NAME",
        "lms": "lms import --copy --user-repo edgepack/NAME out/base.gguf",
    }


def test_factors_go_to_those_that_take_them():
    found = lines(rank=4)
    assert found["llama-cli"] == "llama-cli -m out/base.gguf --lora out/factors.gguf"
    assert found["llama-server"] == "llama-server -m out/base.gguf --lora out/factors.gguf"
    assert "lms" not in found


def test_a_type_that_no_ollama_reads_has_no_line_for_it():
    assert "ollama" not in lines(fmt="q2_0")


@pytest.mark.parametrize("folder", ["my model", "a,b", 'x"y,z', "it's", "$HOME", "plain"])
def test_paths_arrive_as_they_are(folder):
    """Through the shell, and at --lora through llama.cpp's commas (`parse_csv_row`)."""
    found = lines(folder, rank=1)
    arguments = shlex.split(found["llama-server"])
    assert arguments[1:4:2] == ["-m", "--lora"]
    assert arguments[2] == f"{folder}/base.gguf"
    assert next(csv.reader([arguments[4]])) == [f"{folder}/factors.gguf"]
    assert shlex.split(found["serve"]) == ["edgepack", "serve", folder]
    assert shlex.split(found["ollama"])[4] == f"{folder}/Modelfile"
    assert shlex.split(lines(folder)["lms"])[-1] == f"{folder}/base.gguf"


@pytest.mark.parametrize("program", ["llama-cli", "llama-server"])
def test_llama_cpp_knows_the_flags(program):
    """In its own help, or in its sources (EDGEPACK_LLAMA_CPP), where one of them is here."""
    flags = {word for word in lines(rank=1)[program].split() if word.startswith("-")}
    sources = os.environ.get("EDGEPACK_LLAMA_CPP")
    if path := shutil.which(program):
        known = subprocess.run([path, "--help"], capture_output=True, text=True).stdout
    elif sources:
        known = (Path(sources) / "common/arg.cpp").read_text()
    else:
        pytest.skip(f"needs {program}, or llama.cpp's sources in EDGEPACK_LLAMA_CPP")
    assert flags == {"-m", "--lora"}
    assert flags <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", known))


@pytest.mark.parametrize(
    ("rank", "fmt", "warned", "needs"),
    [
        (0, "q4_0", (), None),
        (2, "q4_0", ("factors are an adapter", "export.merge_factors: true"), None),
        (0, "q2_0", ("refuses files with q2_0",), "needs llama.cpp b10015 or later (for q2_0)"),
    ],
)
def test_a_plan_says_what_programs_refuse(tmp_path, rank, fmt, warned, needs):
    make_model(tmp_path / "llama", intermediate=128)
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 30))
    recipe = write(tmp_path / "r.yaml", compress={"rank": rank, "format": fmt})
    text = " ".join(run("plan", recipe, "--target", "gguf").stdout.split())
    for words in warned:
        assert words in text
    assert ("Ollama" in text) == bool(warned)
    assert ("needs llama.cpp" in text) == bool(needs)
    assert (needs or "") in text
