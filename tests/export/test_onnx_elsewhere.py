"""The same folder in programs that are not edgepack's. Each has an environment of its own, named by
a variable; without it the test is skipped and says how to get one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgepack
from edgepack.runtimes.onnx_runtime import OnnxRuntime, model_file
from tests.support.tiny import make_model

pytest.importorskip("onnxruntime")

HERE = Path(__file__).parents[1] / "others"
sys.path.insert(0, str(HERE))
IDS, MORE = [5, 6, 7, 8, 9, 10], 8
SHORT = [11, 12, 13]
TEXT = "Größe: 3.14, où 狐 <|im_end|>."


def environment(variable: str, how: str) -> str:
    found = os.environ.get(variable)
    if not found:
        pytest.skip(f"{variable} is not set; {how}")
    return found


def answer(*command) -> object:
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request, tmp_path_factory):
    """A model with factors; float32 activations would be needed to compare logits, tokens do."""
    return build(tmp_path_factory.mktemp("elsewhere"), request.param)


def build(place, family="llama", form="q8_0", rank=4, **wanted):
    make_model(place / "model", family, hidden=128, intermediate=256, dtype=torch.float16)
    (place / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 99)
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": form, "rank": rank, "factors": "f16", "embeddings": form},
        "export": {"measure": {"tokens": 0}, "onnx": wanted},
    }
    (place / "recipe.yaml").write_text(json.dumps(given))
    return edgepack.build(place / "recipe.yaml", "onnx", out=place / "out").folder


def ours(folder, ids):
    with OnnxRuntime(model_file(folder), context=64) as runtime:
        runtime._tokenizer.ends = frozenset()
        return list(runtime.generate(ids, MORE)), runtime.tokenize(TEXT, special=True)


@pytest.mark.slow
def test_onnxruntime_genai(folder):
    python = environment("EDGEPACK_GENAI", "name a Python that has onnxruntime-genai")
    plain, adapted = answer(python, HERE / "genai.py", folder, MORE, *IDS)
    wanted, _ = ours(folder, IDS)
    assert plain == wanted[: len(plain)]
    assert adapted == plain
    assert len(plain) > 2


@pytest.mark.slow
def test_optimum(folder):
    python = environment("EDGEPACK_OPTIMUM", "name a Python that has optimum-onnx")
    rows = json.dumps([IDS, SHORT])
    found = answer(python, HERE / "optimum_model.py", folder, "model_int8.onnx", MORE, rows)
    for row, ids in zip(found, (IDS, SHORT), strict=True):
        alone = json.dumps([ids])
        assert [row] == answer(
            python, HERE / "optimum_model.py", folder, "model_int8.onnx", MORE, alone
        )


@pytest.mark.slow
def test_transformers_js(folder):
    modules = environment("EDGEPACK_NODE", "name a folder where npm installed Transformers.js")
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = HERE / "transformers_js.mjs"
    found = answer(node, script, modules, folder, "int8", MORE, TEXT, *IDS)
    wanted, text = ours(folder, IDS)
    assert found["said"] == wanted
    assert found["text"] == text


def test_onnxruntime_web(folder):
    """wasm, in node; the script is the benchmark's, which prompts with its own tokens."""
    modules = environment("EDGEPACK_NODE", "name a folder where npm installed onnxruntime-web")
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = HERE.parents[1] / "benchmarks/onnx_web.mjs"
    config = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    keys = ("num_hidden_layers", "num_key_value_heads", "head_size")
    sizes = [config[key] for key in keys]
    found = answer(node, script, modules, folder / "onnx/model_int8.onnx", *sizes, 12, MORE)
    wanted, _ = ours(folder, [3 + 7 * i % 400 for i in range(12)])
    assert found["said"] == wanted


@pytest.mark.parametrize(("form", "rank"), [("int8", 4), ("q4_0", 4)])
def test_a_headless_browser(form, rank, tmp_path):
    """Transformers.js and onnxruntime-web's wasm in Chromium; with factors as inputs, too."""
    modules = environment("EDGEPACK_NODE", "name a folder where npm installed Transformers.js")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed")
    from browser import said

    folder = build(tmp_path, form=form, rank=rank, profile="web")
    few = 3  # int8 rounds activations: soon a near tie falls otherwise
    found = said(browser, modules, folder, ids=",".join(map(str, IDS)), count=few)
    wanted, _ = ours(folder, IDS)
    assert found.get("said") == wanted[:few], found
    assert "Headless" in found["agent"]
