"""Graphs and settings of anybody's making are opened, or one line says why not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.export.profiles import GraphOptions
from edgepack.metrics.divergence import compare
from edgepack.runtimes._sampling import Sampler
from edgepack.runtimes.base import Sampling
from tests.support.tiny import make_model

export = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")
import onnx  # noqa: E402

from edgepack.runtimes.onnx_runtime import OnnxRuntime, data_files, model_file  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    make_model(folder / "m", dtype=torch.float32)
    (folder / "out").mkdir()
    options = GraphOptions(128)
    finish(export.write_plain(folder / "out", open_checkpoint(str(folder / "m")), None, options))
    return folder / "out"


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


def use(folder) -> None:
    path = model_file(folder)
    data_files(path)
    with OnnxRuntime(path, context=64, threads=1) as runtime:
        runtime.logits([3, 4, 5])


def refused(folder, message: str) -> None:
    """Opening and running it ends in one line."""
    with pytest.raises(EdgepackError, match=message) as caught:
        use(folder)
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()


SETTINGS = {
    "no JSON": ("genai_config.json", None, "["),
    "a list": ("genai_config.json", None, "[]"),
    "deep": ("genai_config.json", None, "[" * 9000),
    "no model": ("genai_config.json", ("model",), None),
    "a decoder that is a text": ("genai_config.json", ("model", "decoder"), "x"),
    "a file that is a number": ("genai_config.json", ("model", "decoder", "filename"), 3),
    "a file outside": ("genai_config.json", ("model", "decoder", "filename"), "../m/model.onnx"),
    "a file from the root": ("genai_config.json", ("model", "decoder", "filename"), "/x.onnx"),
    "a drive": ("genai_config.json", ("model", "decoder", "filename"), "C:\\x.onnx"),
    "a file with a NUL": ("genai_config.json", ("model", "decoder", "filename"), "a\0b"),
    "a long file": ("genai_config.json", ("model", "decoder", "filename"), "x" * 900),
    "a context of 0": ("genai_config.json", ("model", "context_length"), 0),
    "a context of null": ("genai_config.json", ("model", "context_length"), None),
    "half a context": ("genai_config.json", ("model", "context_length"), 2.5),
    "an enormous context": ("genai_config.json", ("model", "context_length"), 10**30),
    "heads that are a text": ("config.json", ("num_attention_heads",), "4"),
    "a width below 0": ("config.json", ("head_dim",), -1),
    "a list as config": ("config.json", None, "[]"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SETTINGS)
def test_settings_of_the_wrong_kind_are_one_line(what, folder):
    name, place, value = SETTINGS[what]
    path = folder / name
    if place is None:
        path.write_text(value)
    else:
        data = json.loads(path.read_text())
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(data))
    refused(folder, name)


def change(folder, edit) -> None:
    """Change the graph, whose tensors stay where they are."""
    path = model_file(folder)
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())


def location(value: str):
    def edit(model) -> None:
        entries = [e for t in model.graph.initializer for e in t.external_data]
        next(e for e in entries if e.key == "location").value = value

    return edit


def inner_location(model) -> None:
    """A path that leads out, in a constant of a graph inside a node."""
    tensor = onnx.TensorProto(name="c", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="../../secret")
    inner = onnx.GraphProto(name="inner", initializer=[tensor])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", inner))


def drop(part: str, name: str):
    def edit(model) -> None:
        values = getattr(model.graph, part)
        values.remove(next(v for v in values if v.name == name))

    return edit


def retype(part: str, name: str, kind: int):
    def edit(model) -> None:
        value = next(v for v in getattr(model.graph, part) if v.name == name)
        value.type.tensor_type.elem_type = kind

    return edit


def flatten(model) -> None:
    for value in model.graph.input:
        if value.name.startswith("past_key_values.0"):
            del value.type.tensor_type.shape.dim[2:]


GRAPHS = {
    "data outside": (location("../secret"), "outside"),
    "data from the root": (location("/etc/hostname"), "outside"),
    "data that is missing": (location("nothing.bin"), "is not there"),
    "data outside, further in": (inner_location, "outside"),
    "no logits": (drop("output", "logits"), "does not give logits"),
    "no present": (drop("output", "present.1.key"), "present.1.key"),
    "no ids": (drop("input", "input_ids"), "."),
    "ids of 32 bits": (retype("input", "input_ids", 6), "input_ids"),
    "logits of whole numbers": (retype("output", "logits", 7), "."),
    "a flat cache": (flatten, "past_ke"),
    "an unknown opset": (
        lambda model: setattr(model.opset_import[0], "version", 999),
        "cannot load",
    ),
    "an unknown operator": (
        lambda model: setattr(model.graph.node[5], "op_type", "Nothing"),
        "cannot load",
    ),
    "a missing tensor": (lambda model: model.graph.initializer.pop(), "."),
    "a tensor of 2^40": (lambda model: model.graph.initializer[-1].dims.insert(0, 2**40), "."),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", GRAPHS)
def test_a_graph_that_is_no_decoder_is_one_line(what, folder):
    edit, message = GRAPHS[what]
    change(folder, edit)
    refused(folder, message)


def test_a_name_that_is_not_utf8_is_one_line(folder):
    change(folder, location("a-name-to-break"))
    path = model_file(folder)
    path.write_bytes(path.read_bytes().replace(b"a-name-to-break", b"a-\xff-\xfe-to-break"))
    refused(folder, "graph")


@pytest.mark.parametrize("content", [b"", b"x" * 200, b"\x08\x0a\x3a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_graph_is_one_line(content, folder):
    model_file(folder).write_bytes(content)
    refused(folder, "graph")


def test_factors_of_a_type_that_numpy_lacks_are_one_line(folder):
    torch.save({}, folder / "x")  # any bytes
    (folder / "factors.safetensors").write_bytes((folder / "x").read_bytes())
    refused(folder, "cannot read")
    save_file({"nobody": np.zeros(3, np.float16)}, folder / "factors.safetensors")
    with OnnxRuntime(model_file(folder), context=64, threads=1) as runtime:
        assert np.isfinite(runtime.logits([3, 4, 5])).all()


def test_an_adapter_that_is_none_is_one_line(folder):
    (folder / "a.onnx_adapter").write_bytes(b"adapter")
    with pytest.raises(EdgepackError, match="cannot use the adapter"):
        OnnxRuntime(model_file(folder), folder / "a.onnx_adapter", threads=1)


def test_predictions_that_are_no_numbers_are_refused():
    logits = np.zeros((3, 8), np.float32)
    logits[1, 4] = np.nan
    with pytest.raises(EdgepackError, match="predicts NaN"):
        Sampler(Sampling(temperature=0.5))(logits[1], ())
    for pair in ((logits, np.zeros_like(logits)), (np.zeros_like(logits), logits)):
        with pytest.raises(EdgepackError, match="predicts NaN"):
            compare(*pair, np.array([1, 2, 3]))
