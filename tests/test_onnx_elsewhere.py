"""The same folder in programs that are not edgepack's. Each has an environment of its own, named by
a variable; without it the test is skipped and says how to get one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import make_model

import edgepack
from edgepack.runtimes.onnx_runtime import OnnxRuntime

pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent / "others"
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
    place = tmp_path_factory.mktemp("elsewhere")
    make_model(place / "model", request.param, hidden=128, intermediate=256, dtype=torch.float16)
    (place / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 99)
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": "q8_0", "rank": 4, "factors": "f16", "embeddings": "q8_0"},
        "export": {"measure": {"tokens": 0}},
    }
    (place / "recipe.yaml").write_text(json.dumps(given))
    return edgepack.build(place / "recipe.yaml", "onnx", out=place / "out").folder


def ours(folder, ids):
    with OnnxRuntime(folder / "onnx/model_int8.onnx", context=64) as runtime:
        runtime._tokenizer.ends = frozenset()
        return list(runtime.generate(ids, MORE)), runtime.tokenize(TEXT, special=True)


def test_onnxruntime_genai(folder):
    python = environment("EDGEPACK_GENAI", "name a Python that has onnxruntime-genai")
    plain, adapted = answer(python, HERE / "genai.py", folder, MORE, *IDS)
    wanted, _ = ours(folder, IDS)
    assert plain == wanted[: len(plain)]
    assert adapted == plain
    assert len(plain) > 2


def test_optimum(folder):
    python = environment("EDGEPACK_OPTIMUM", "name a Python that has optimum-onnx")
    rows = json.dumps([IDS, SHORT])
    found = answer(python, HERE / "optimum_model.py", folder, "model_int8.onnx", MORE, rows)
    for row, ids in zip(found, (IDS, SHORT), strict=True):
        alone = json.dumps([ids])
        assert [row] == answer(
            python, HERE / "optimum_model.py", folder, "model_int8.onnx", MORE, alone
        )


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
