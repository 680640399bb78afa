"""--adapter, /adapter and what show says, on a folder with two adapters."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.cli import app
from edgepack.output.folder import ExportError, writing
from tests.support.adapters import packed, random_adapter
from tests.support.commands import fails, run

pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.llama, pytest.mark.slow]
TOKENS = ["--max-tokens", "12", "--context", "128"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = packed(tmp_path_factory.mktemp("place"), export={"measure": {"tokens": 0}})
    base = PackedBase.open(out)
    files.write(files.place(out, "notes"), random_adapter(base, mode="factors", size=0.6), base)
    files.write(files.place(out, "second"), random_adapter(base, seed=1, size=0.6), base)
    return out


def said(folder, *options):
    result = run("chat", folder, "--prompt", "Hello", *TOKENS, *options)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_an_adapter_of_the_command_line_changes_the_answer(folder):
    plain, adapted = said(folder), said(folder, "--adapter", "notes")
    assert adapted != plain
    assert said(folder, "--adapter", "notes=1") == adapted
    assert said(folder, "--adapter", "notes=0") == plain
    both = said(folder, "--adapter", "notes", "--adapter", "second=-0.5")
    assert both not in (plain, adapted)


def test_a_conversation_switches_adapters_and_the_old_answer_comes_back(folder):
    lines = [
        *("Hello", "/adapter", "/adapter notes on", "/adapter notes 0.5", "/adapter notes off"),
        *("/adapter other on", "/adapter notes maybe", "/adapter notes", "/adapter notes on"),
    ]
    result = CliRunner().invoke(app, ["chat", str(folder), *TOKENS], input="\n".join(lines))
    assert result.exit_code == 0, result.output
    told = result.stderr.splitlines()
    states = [line for line in told if line.startswith(("notes is", "second is"))]
    assert states == [
        *("notes is off", "second is off", "notes is on, scale 1", "notes is on, scale 0.5"),
        *("notes is off", "notes is off", "second is off", "notes is off"),
        "notes is on, scale 0.5",
    ]
    assert "there is no adapter 'other' here" in told
    assert any("'maybe' is no scale" in line for line in told)


def test_an_answer_after_a_switch_is_that_of_the_adapter(folder):
    """The first answer of each conversation, which has no history."""

    def first(*commands):
        text = "\n".join([*commands, "Hello"])
        result = CliRunner().invoke(app, ["chat", str(folder), *TOKENS], input=text)
        return result.stdout

    assert first("/adapter notes on") == said(folder, "--adapter", "notes")
    assert first("/adapter notes on", "/adapter notes off") == said(folder)


def test_show_lists_adapters(folder):
    text = run("show", folder).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("notes")]
    assert line.split()[:3] == ["notes", "factors", "4"]
    assert line.endswith("this one")
    facts = json.loads(run("show", folder, "--json").stdout)
    assert [one["name"] for one in facts["adapters"]] == ["notes", "second"]
    assert facts["adapters"][0]["problem"] is None


def test_what_is_wrong_with_an_adapter_is_said(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    assert "its adapters: notes, second" in fails("chat", out, "--adapter", "other")[1]
    assert "is no name" in fails("chat", out, "--adapter", "../x")[0]
    assert "'x' is no scale" in fails("chat", out, "--adapter", "notes=x")[0]
    assert "'nan' is no scale" in fails("chat", out, "--adapter", "notes=nan")[0]
    assert "given twice" in fails("chat", out, "--adapter", "notes", "--adapter", "notes=1")[0]
    about = out / "adapters/notes/adapter.json"
    digest = files.read_about(about.parent).base.digest
    about.write_text(about.read_text().replace(digest, "0" * 64))
    (out / "adapters/second/adapter.gguf").write_bytes(b"GGUF")
    assert "belongs to another base" in fails("chat", out, "--adapter", "notes")[0]
    assert "is not the file that it describes" in fails("chat", out, "--adapter", "second")[0]
    assert "another base" in run("show", out).stdout
    result = CliRunner().invoke(app, ["chat", str(out), *TOKENS], input="/adapter\n")
    assert "the adapter notes is left out" in result.stderr
    assert "the adapter second is left out" in result.stderr
    assert "this model has no adapters" in result.stderr


@pytest.mark.slow
def test_evaluate_measures_with_and_without(folder):
    found = json.loads(
        run(
            "evaluate", folder, "--adapter", "notes", "--tokens", 256, "--context", 64, "--json"
        ).stdout
    )
    names = [name for name in json.dumps(found).split('"') if name.startswith(str(folder))]
    assert f"{folder} + adapters" in names


def test_force_deletes_no_adapter(folder):
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    with (
        pytest.raises(ExportError, match="has adapters") as error,
        writing(folder, force=True, sources=(), recipe=folder.parent),
    ):
        pass
    assert "move adapters/ away" in error.value.hint
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
