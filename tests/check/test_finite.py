"""Weights that are no numbers, and weights that float16 cannot hold."""

import re

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from edgepack.check import finite
from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.errors import CheckpointError
from tests.support.tiny import make_model, write_gguf

NAME = "model.layers.1.self_attn.k_proj.weight"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def spoil(folder, change, name=NAME):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path)
    return open_checkpoint(str(folder))


def put(*values):
    def change(W):
        W.view(-1)[-len(values) :] = torch.tensor(values).to(W.dtype)

    return change


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [[float("nan")], [float("inf"), float("-inf")], [-float("nan")]])
def test_what_is_no_number_is_counted_and_named(tmp_path, dtype, bad):
    make_model(tmp_path / "m", dtype=dtype)
    assert finish(finite.check_values(open_checkpoint("m", tmp_path))) == ()
    checkpoint = spoil(tmp_path / "m", put(*bad))
    with pytest.raises(CheckpointError, match=f"{re.escape(NAME)}: {len(bad)} of 2048 values"):
        finish(finite.check_values(checkpoint))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_norms_and_embeddings_are_looked_at_too(tmp_path, name):
    make_model(tmp_path / "m")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        finish(finite.check_values(spoil(tmp_path / "m", put(float("nan")), name)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [7e4, -3e38])
def test_what_is_beyond_float16_is_a_warning(tmp_path, dtype, value):
    make_model(tmp_path / "m", dtype=dtype)
    (warning,) = finish(finite.check_values(spoil(tmp_path / "m", put(value))))
    assert NAME in warning
    assert "65504" in warning


def test_the_largest_float16_is_not(tmp_path):
    make_model(tmp_path / "m", dtype=torch.float32)
    assert finish(finite.check_values(spoil(tmp_path / "m", put(65504.0, -65504.0)))) == ()


def test_a_matrix_that_float16_rounds_to_nothing_is_a_warning(tmp_path):
    make_model(tmp_path / "m", dtype=torch.float32)
    checkpoint = spoil(tmp_path / "m", lambda W: W.mul_(1e-9))
    assert (checkpoint.tensor(NAME).half() == 0).float().mean() > 0.5
    (warning,) = finish(finite.check_values(checkpoint))
    assert NAME in warning
    assert "rounds them to 0" in warning


def test_zeros_are_no_loss(tmp_path):
    make_model(tmp_path / "m")
    assert finish(finite.check_values(spoil(tmp_path / "m", lambda W: W.zero_()))) == ()


def test_many_weights_are_counted(tmp_path):
    make_model(tmp_path / "m", dtype=torch.float32)
    path = tmp_path / "m/model.safetensors"
    save_file({name: W * 1e6 for name, W in load_file(path).items()}, path)
    (warning,) = finish(finite.check_values(open_checkpoint("m", tmp_path)))
    assert "and 17 more" in warning
    assert len(warning) < 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_scales_of_blocks_are_looked_at(tmp_path, kind):
    make_model(tmp_path / "m")
    path = tmp_path / "m.gguf"
    write_gguf(path, open_checkpoint("m", tmp_path), kind)
    checkpoint = open_checkpoint(str(path))
    assert finish(finite.check_values(checkpoint)) == ()
    stored = checkpoint._header.tensors["blk.1.attn_k.weight"]
    with path.open("r+b") as file:
        file.seek(stored.start)
        file.write(np.array([0x7F80 if kind == "BF16" else 0x7C00], np.uint16).tobytes())
    with pytest.raises(CheckpointError, match=re.escape(NAME)):
        finish(finite.check_values(open_checkpoint(str(path))))


@pytest.mark.parametrize("kind", finite.SCALES)
def test_offsets_of_scales_are_ggufs_own(kind):
    """A block whose scales are NaN decodes to NaN, one whose other bytes are all set does not."""
    size, offsets = finite.SCALES[kind]
    which = GGMLQuantizationType[kind]
    nan = np.frombuffer(np.array([0x7E00], np.uint16).tobytes(), np.uint8)
    plain = np.full((1, size), 0xFF, np.uint8)
    for start in offsets:
        plain[:, start : start + 2] = 0
    assert np.isfinite(dequantize(plain, which)).all()
    for start in offsets:
        spoiled = plain.copy()
        spoiled[:, start : start + 2] = nan
        assert np.isnan(dequantize(spoiled, which)).any()


def test_scales_so_large_that_values_overflow_are_found(tmp_path):
    make_model(tmp_path / "m", dtype=torch.float32)
    path = tmp_path / "m.gguf"
    write_gguf(path, spoil(tmp_path / "m", lambda W: W.mul_(3e6)), "Q8_0")
    (warning,) = finish(finite.check_values(open_checkpoint(str(path))))
    assert NAME in warning
