"""ONNX folders read back: every layout that the exporter writes gives the codes it was given."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.export.profiles import PROFILES, GraphOptions
from edgepack.model.decoder import Decoder
from edgepack.runtimes.onnx_runtime import model_file
from edgepack.slicing.stage import why_not
from tests.support.graphs import DRAWN, FORMATS, IDS, logits, rounded, write
from tests.support.slices import recipe
from tests.support.tiny import LAYER_NORM, ROTATABLE, make_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")
from edgepack.export import onnx as export  # noqa: E402
from edgepack.export.onnx_checkpoint import OnnxCheckpoint  # noqa: E402


def source(tmp_path, family="llama", **given):
    given = {"hidden": 128, "intermediate": 256, "dtype": torch.float16} | given
    make_model(tmp_path / "model", family, **given)
    return open_checkpoint(str(tmp_path / "model"))


def assert_same(found, weights, checkpoint):
    assert found.dimensions == checkpoint.dimensions
    assert {n: s.shape for n, s in found.specs.items()} == {
        n: s.shape for n, s in checkpoint.specs.items()
    }
    for name, spec in checkpoint.specs.items():
        if name not in weights:
            assert torch.equal(found.tensor(name), checkpoint.tensor(name))
            continue
        weight, wanted = found.weight(name), weights[name]
        assert weight.formats() == wanted.formats()
        for key, value in wanted.tensors().items():
            assert torch.equal(weight.tensors()[key], value), (name, key)
        assert torch.equal(found.tensor(name), wanted.Q.dequantize())
        assert found.specs[name].role == spec.role


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form, tmp_path):
    """Without factors, queries, keys and values are joined."""
    checkpoint = source(tmp_path)
    weights = rounded(checkpoint, form)
    write(tmp_path / "out", checkpoint, weights)
    assert_same(OnnxCheckpoint(tmp_path / "out"), weights, checkpoint)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("form", "factors", "options"),
    [
        ("int4_g32", "f16", {}),
        ("q8_0", "q4_0", {"qdq": True}),
        ("int4_g64", "q8_0", {"qdq": True}),
        ("int8", "f16", {"half": True}),
        ("int3_g32", "int4_g32", {"half": True}),
    ],
)
def test_every_profile(profile, form, factors, options, tmp_path):
    checkpoint = source(tmp_path, tied=False)
    if options.get("half"):  # norms are rounded to float16, which the source holds
        assert checkpoint.specs["model.norm.weight"].dtype == "F16"
    weights = rounded(checkpoint, form, rank=32, factors=factors)
    write(tmp_path / "out", checkpoint, weights, GraphOptions(128, PROFILES[profile], **options))
    assert_same(OnnxCheckpoint(tmp_path / "out"), weights, checkpoint)


@pytest.mark.parametrize("family", DRAWN)
def test_every_family(family, tmp_path):
    checkpoint = source(tmp_path, family, tied=family != "phi")
    weights = rounded(checkpoint, "q8_0")
    folder = write(tmp_path / "out", checkpoint, weights).parents[1]
    found = OnnxCheckpoint(folder)
    assert_same(found, weights, checkpoint)
    wanted = Decoder(checkpoint, {n: w.dense for n, w in weights.items()}).logits(IDS)
    assert torch.equal(Decoder(found).logits(IDS), wanted)
    assert found.tokenizer.get_vocab() == checkpoint.tokenizer.get_vocab()
    assert found.key == pickle.loads(pickle.dumps(found)).key


def test_matrices_of_float32(tmp_path):
    checkpoint = source(tmp_path, tied=False)
    formats = {n: "f32" for n, s in checkpoint.specs.items() if len(s.shape) == 2}
    (tmp_path / "out").mkdir()
    finish(export.write_plain(tmp_path / "out", checkpoint, formats, GraphOptions(128)))
    found = OnnxCheckpoint(tmp_path / "out")
    for name in checkpoint.specs:
        assert torch.equal(found.tensor(name), checkpoint.tensor(name))
    assert found.quantized(next(iter(formats))) is None


@pytest.mark.parametrize("config", [{"head_dim": 80, "heads": 2, "kv_heads": 1}, {"head_dim": 32}])
def test_wide_heads(config, tmp_path):
    checkpoint = source(tmp_path, **config)
    weights = rounded(checkpoint, "f16")
    write(tmp_path / "out", checkpoint, weights)
    assert_same(OnnxCheckpoint(tmp_path / "out"), weights, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in DRAWN if f in (*ROTATABLE, *LAYER_NORM)])
@pytest.mark.parametrize("method", ["global", "per_block"])
def test_sliced_models(family, method, tmp_path):
    if why_not(plugins.find("architectures", family), method) is not None:
        pytest.skip("one rotation is for RMSNorm, and a Phi-3 whose stream is as wide as its heads")
    make_model(tmp_path / "model", family, tied=False, dtype=torch.float32)
    path = recipe(tmp_path, 40, method=method)
    out = edgepack.build(path, "onnx", out=tmp_path / "out").folder
    wanted = logits(model_file(out))
    found = Decoder(OnnxCheckpoint(out)).logits(IDS)[0].numpy()
    assert np.abs(found - wanted).max() < 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    checkpoint = source(folder)
    web = GraphOptions(128, PROFILES["web"])
    write(folder / "out", checkpoint, rounded(checkpoint, "q4_0", rank=4), web)
    return folder / "out"


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


def change(folder, edit):
    path = model_file(folder)
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())


def edit_metadata(edit):
    def change_entry(model):
        about = json.loads(model.metadata_props[0].value)
        edit(about)
        model.metadata_props[0].value = json.dumps(about)

    return change_entry


NAME = "model.layers.0.mlp.up_proj.weight"
CODES = f"{NAME.removesuffix('.weight')}.Q.codes"


def entry(name, key, value):
    def edit(model):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        next(e for e in tensor.external_data if e.key == key).value = value

    return edit


DAMAGES = {
    "an old folder": (lambda m: m.ClearField("metadata_props"), "does not say which formats"),
    "metadata that is a list": (edit_metadata(lambda a: a.clear()), "hidden_size is missing"),
    "a format of nobody": (
        edit_metadata(lambda a: a["matrices"][NAME].update(Q="q9_9")),
        "'q9_9' is not known",
    ),
    "a format that ONNX cannot hold": (
        edit_metadata(lambda a: a["matrices"][NAME].update(Q="q4_k")),
        "'q4_k' is not known",
    ),
    "another format": (
        edit_metadata(lambda a: a["matrices"][NAME].update(Q="q8_0")),
        "codes is U8",
    ),
    "another shape": (
        edit_metadata(lambda a: a["matrices"][NAME].update(shape=[256, 64])),
        "has shape",
    ),
    "a rank without factors": (
        edit_metadata(lambda a: a["matrices"][NAME].pop("L")),
        "a rank without factors",
    ),
    "another rank": (
        edit_metadata(lambda a: a["matrices"][NAME].update(rank=5)),
        "not float16 [5, 256]",
    ),
    "a role of nobody": (
        edit_metadata(lambda a: a["block"].update(extra="x")),
        "is no part of a decoder",
    ),
    "a part less": (edit_metadata(lambda a: a["block"].pop("attn_q")), "attn_q is missing"),
    "another hidden size": (edit_metadata(lambda a: a.update(hidden_size=64)), "has shape"),
    "a file outside": (entry(CODES, "location", "../../x"), "outside of its folder"),
    "a position beyond the end": (entry(CODES, "offset", str(10**12)), "beyond the end"),
    "a negative position": (entry(CODES, "offset", "-4"), "bytes, its shape"),
    "a length of nothing": (entry(CODES, "length", "0"), "bytes, its shape"),
    "a length that is no number": (entry(CODES, "length", "x"), "no position in a file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_graphs_are_one_line(damage, folder):
    edit, said = DAMAGES[damage]
    change(folder, edit)
    with pytest.raises(EdgepackError, match=re.escape(said)) as caught:
        OnnxCheckpoint(folder).weight(NAME)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint


def test_factors_that_are_missing(folder):
    found = OnnxCheckpoint(folder)
    L, R = found.factors(NAME)
    assert (L.shape, R.shape) == ((256, 4), (4, 128))
    assert found.factors("model.embed_tokens.weight") is None
    (folder / "factors.safetensors").unlink()
    with pytest.raises(EdgepackError, match=r"factors\.safetensors is missing"):
        OnnxCheckpoint(folder).factors(NAME)


def test_data_that_is_cut_off(folder):
    path = model_file(folder)
    data = path.with_name(f"{path.name}_data")
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(EdgepackError, match="beyond the end"):
        OnnxCheckpoint(folder)
