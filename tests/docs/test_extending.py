"""docs/extending.md: its formats and its family keep edgepack's contracts and are of use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.model.decoder import Decoder
from tests.docs.extending import RECIPE, recipe
from tests.support.tiny import make_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IDS = torch.arange(3, 67).view(2, 32)

installed = pytest.mark.usefixtures("installed")


# ---------------------------------------------------------------------------- the page itself


def test_every_block_of_code_is_a_file(page, blocks):
    starts = re.findall(r"^```(?:python|toml)$", page, re.MULTILINE)
    assert len(starts) == len(blocks) == 8
    assert {name.split("/")[0] for name in blocks} == {
        *("pyproject.toml", "edgepack_extra", "edgepack", "build_with_tails.py"),
    }


def test_what_the_page_names_is_there(page):
    named = set(re.findall(r"`((?:edgepack|tests|docs)/[\w/]+(?:\.py|\.md)?)`", page))
    named |= {f"edgepack/{name}" for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page)}
    named = {name.replace("edgepack/tests/", "tests/") for name in named}
    named = {re.sub("^(edgepack/)+", "edgepack/", name) for name in named}
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_code_is_in_the_style_of_the_house(checkout):
    pytest.importorskip("ruff")
    others = "lint.isort.known-first-party=['edgepack', 'edgepack_extra']"
    options = ["--no-cache", "--config", ROOT / "pyproject.toml", "--config", others]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, checkout],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@installed
def test_every_plug_in_of_the_page_is_found(blocks):
    groups = re.findall(r"edgepack_extra/(\w+)/(\w+)\.py", "\n".join(blocks))
    found = {kind: name for kind, name in groups if name != "stage"}
    assert found.keys() == {"formats", "architectures", "targets", "devices"}
    for kind, name in found.items():
        assert name in plugins.names(kind)
        assert plugins.find(kind, name).name == name


# ---------------------------------------------------------------------------- contracts

APPEND = """
import edgepack.formats
edgepack.formats.__path__.append({folder!r})
"""
"""Puts a file beside those of edgepack/formats, as a checkout would have it."""


MINE = "bf16 or int4_g16 or shell or (starcoder2 and logits)"
TESTS = (
    "tests/contracts/test_formats.py",
    "tests/contracts/test_degenerate.py",
    "tests/contracts/test_devices.py",
    "tests/model/test_decoder.py",
    "tests/export/test_onnx.py",
)


@pytest.fixture(scope="module")
def jail(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("jail")


@pytest.fixture(scope="module")
def outcomes(site, checkout, jail) -> dict[str, str]:
    """What edgepack's own tests say of the page's plug-ins: PASSED by test, or the run fails."""
    (site / "dropped_in.py").write_text(APPEND.format(folder=str(checkout / "edgepack/formats")))
    there = f"shell:env --chdir={jail} HOME={jail} sh -c"
    paths = os.pathsep.join([str(ROOT), str(site)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "dropped_in", "-rA", "-k", MINE, *TESTS],
        env=os.environ | {"PYTHONPATH": paths, "EDGEPACK_TEST_DEVICES": there},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    lines = re.findall(r"^([A-Z]+) (\S+::\S.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return {test: outcome for outcome, test in lines}


def passed(outcomes: dict[str, str], file: str, name: str) -> int:
    """How many tests of a file have passed for a plug-in; no other outcome is known there."""
    found = [said for test, said in outcomes.items() if file in test and name in test]
    assert set(found) == {"PASSED"}
    return len(found)


@pytest.mark.llama
@pytest.mark.parametrize(("name", "count"), [("bf16", 20), ("int4_g16", 9)])
def test_the_formats_keep_the_contract(outcomes, name, count):
    pytest.importorskip("llama_cpp")
    assert passed(outcomes, "test_formats.py", name) >= count
    assert passed(outcomes, "test_degenerate.py", name) >= 3


def test_onnx_runtime_computes_with_the_grid(outcomes):
    pytest.importorskip("onnxruntime")
    assert passed(outcomes, "test_onnx.py::test_every_format_is", "int4_g16") == 2


def test_the_family_has_transformers_logits(outcomes):
    pytest.importorskip("onnxruntime")
    for file in ("test_decoder.py", "test_onnx.py"):
        assert passed(outcomes, file, "starcoder2") == 2  # tied and untied


def test_the_device_keeps_the_contract(outcomes, jail):
    assert passed(outcomes, "test_devices.py", "shell") >= 15
    assert (jail / ".cache").is_dir()  # it was there that files went
    assert not (jail / ".cache/edgepack").exists()  # until they were cleared


# ---------------------------------------------------------------------------- a format


@installed
def test_a_gguf_holds_embeddings_that_float16_does_not(here):
    model = make_model(here / "model", tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    model.save_pretrained(here / "model")
    with pytest.raises(EdgepackError, match="do not fit float16"):
        edgepack.build(recipe(here, compress=RECIPE["compress"] | {"embeddings": "f16"}))
    path = recipe(here, compress=RECIPE["compress"] | {"embeddings": "bf16", "head": "q8_0"})
    artifact = edgepack.build(path, out=here / "out")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(artifact.base).tensors}
    stored = tensors["token_embd.weight"]
    assert stored.tensor_type == gguf.GGMLQuantizationType.BF16
    values = gguf.quants.dequantize(stored.data, stored.tensor_type)
    wanted = model.model.embed_tokens.weight.detach().bfloat16().float().numpy()
    assert np.abs(wanted).max() > 1e5
    assert np.array_equal(values, wanted)


@installed
def test_a_target_without_a_place_for_the_format_refuses_it_by_name(here):
    make_model(here / "model")
    path = recipe(here, compress=RECIPE["compress"] | {"embeddings": "bf16"})
    with pytest.raises(RecipeError, match="bf16 is no format of --target onnx") as refused:
        edgepack.plan(path, "onnx")
    assert "q8_0" in refused.value.hint


# ---------------------------------------------------------------------------- a family


@installed
@torch.no_grad()
def test_the_family_is_read_as_transformers_reads_it(here):
    unusual = {"sliding_window": 8, "norm_epsilon": 0.01}
    model = make_model(here / "model", "starcoder2", tied=True, **unusual).float()
    path = here / "model" / "config.json"
    config = json.loads(path.read_text())
    wanted = model(IDS).logits
    assert wanted.std() > 0.5
    found = Decoder(open_checkpoint(str(here / "model"))).logits(IDS)
    assert (found - wanted).abs().max() < 1e-4

    defaults = set(transformers.Starcoder2Config().to_dict())
    dropped = {
        *("norm_epsilon", "num_key_value_heads", "sliding_window", "hidden_act", "use_bias"),
        "tie_word_embeddings",
    }
    assert defaults > dropped
    silent = {key: value for key, value in config.items() if key not in dropped}
    path.write_text(json.dumps(silent))  # what holds where config.json is silent
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        here / "model", dtype=torch.float32
    ).eval()
    found = Decoder(open_checkpoint(str(here / "model"))).logits(IDS)
    assert (found - loaded(IDS).logits).abs().max() < 1e-4
    assert (found - wanted).abs().max() > 0.01  # the window is gone


@installed
@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("use_bias", False)])
def test_a_setting_that_computes_something_else_is_refused(here, key, value):
    make_model(here / "model", "starcoder2")
    path = here / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        open_checkpoint(str(here / "model"))


@installed
@torch.no_grad()
def test_the_family_is_packed_for_onnx_and_refused_elsewhere(here):
    pytest.importorskip("onnxruntime")
    from edgepack.runtimes.onnx_runtime import OnnxRuntime

    make_model(here / "model", "starcoder2", hidden=128, intermediate=128, dtype=torch.float16)
    path = recipe(here, export={"measure": {"tokens": 64, "context": 64}})
    results = edgepack.build(path, "onnx", out=here / "out").manifest["measured"]["results"]
    assert 0 < results["edgepack"]["kl_mean"] < 0.3  # of a random model
    with pytest.raises(RecipeError, match="starcoder2 models cannot be written as GGUF"):
        edgepack.plan(path, "gguf")
    slices = {"method": "per_block", "sparsity": 0.25, "allow_growth": True}
    path = recipe(here, slice=slices, compress=None)
    with pytest.raises(RecipeError, match="transformers cannot load starcoder2") as refused:
        edgepack.plan(path, "checkpoint")
    assert "onnx" in refused.value.hint
    artifact = edgepack.build(path, "onnx", out=here / "sliced")
    with OnnxRuntime(artifact.base, context=64) as runtime:
        found = torch.from_numpy(runtime.logits(IDS[0].tolist()))
    wanted = Decoder(edgepack.plan(path, "onnx").model).logits(IDS[:1])[0]
    assert wanted.std() > 0.3
    assert (found - wanted).norm() < 2e-3 * wanted.norm()
