"""Split GGUFs, types that others invented, and what a rounded source has lost."""

import shutil

import gguf
import numpy as np
import pytest
import torch

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import CheckpointError
from edgepack.formats._ggml import GGML_QUANT_SIZES, GGMLQuantizationType
from edgepack.model.decoder import Decoder
from tests.support import ggml_oracle
from tests.support.ggufs import rewritten
from tests.support.tiny import make_model, write_gguf

UP = "model.layers.0.mlp.up_proj.weight"
IDS = torch.randint(0, 500, (1, 20), generator=torch.Generator().manual_seed(3))


def write(path, checkpoint, tensors, **settings):
    """A file, or several, of (name, data, type)."""
    writer = gguf.GGUFWriter(path, checkpoint.architecture.gguf, **settings)
    for key, (value, kind, element) in checkpoint.gguf_metadata().items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kind, element)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored(path):
    """(name, data, type) of every tensor, in memory."""
    found = gguf.GGUFReader(path).tensors
    return [(tensor.name, np.array(tensor.data), tensor.tensor_type) for tensor in found]


def split(whole, checkpoint, most):
    """The parts that gguf's own writer makes of a file."""
    write(whole, checkpoint, stored(whole), split_max_tensors=most)
    return sorted(whole.parent.glob(f"{whole.stem}-*-of-*.gguf"))


@pytest.fixture
def parts(tmp_path):
    make_model(tmp_path / "m", tied=False)
    source = open_checkpoint("m", tmp_path)
    write_gguf(tmp_path / "tiny.gguf", source, "Q8_0")
    made = split(tmp_path / "tiny.gguf", source, 8)
    assert len(made) == 3
    return made


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path))
    assert caught.value.hint
    return str(caught.value)


def test_all_parts_are_one_model_whichever_is_named(parts):
    whole = open_checkpoint(str(parts[0].parent / "tiny.gguf"))
    found = [open_checkpoint(str(part)) for part in parts]
    for one in found:
        assert one.dimensions == whole.dimensions
        assert set(one.source["files"]) == {part.name for part in parts}
        assert "split.count" not in one.gguf_metadata()
    assert len({one.key for one in found}) == 1
    assert found[0].key != whole.key
    assert torch.equal(Decoder(found[1]).logits(IDS), Decoder(whole).logits(IDS))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(found[2].quantized(name).codes, whole.quantized(name).codes)


def test_parts_that_are_missing_renamed_or_of_another_model(parts, tmp_path):
    shutil.copy(parts[1], tmp_path / "part.gguf")
    assert "one part of a model of 3, by another name" in refusal(tmp_path / "part.gguf")
    shutil.copy(parts[0], parts[1])
    assert "says that it is part 1 of 3" in refusal(parts[2])
    parts[1].unlink()
    assert f"{parts[1].name}: is missing" in refusal(parts[0])


def test_a_part_that_changes_is_in_the_key(parts, tmp_path):
    before = open_checkpoint(str(parts[0])).key
    data = bytearray(parts[2].read_bytes())
    data[-1] ^= 1
    parts[2].write_bytes(data)
    assert open_checkpoint(str(parts[0])).key != before


STOCK = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"),
)
"""Types in blocks that llama.cpp has for weights (ggml.h)."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model as wide as all types need, its file, and a matrix in it."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(folder / "m", hidden=256, intermediate=256, layers=1)
    source = open_checkpoint("m", folder)
    write_gguf(folder / "f32.gguf", source)
    return folder, source, source.tensor(UP)


@pytest.mark.llama
@pytest.mark.parametrize("kind", STOCK)
def test_every_stock_type_is_read_as_llama_cpp_reads_it(wide, kind):
    if not ggml_oracle.available():
        pytest.skip("needs llama-cpp-python")
    folder, source, W = wide
    number = GGMLQuantizationType[kind]
    columns, size = GGML_QUANT_SIZES[number]
    data = ggml_oracle.quantize(number, W, W.shape[1] // columns * size)
    kept = [one for one in stored(folder / "f32.gguf") if one[0] != "blk.0.ffn_up.weight"]
    write(folder / "x.gguf", source, [*kept, ("blk.0.ffn_up.weight", data.numpy(), number)])
    checkpoint = open_checkpoint("x.gguf", folder)
    wanted = ggml_oracle.dequantize(kind.lower().replace("_k", "_K"), data, W.shape[1])
    assert torch.allclose(checkpoint.tensor(UP), wanted, rtol=1e-6, atol=0)
    assert wanted.std() > 0.02
    (warning,) = checkpoint.warnings()
    assert f"{kind} ({8 * size / columns:.3g} bits)" in warning


FOREIGN = [
    (142, "142, PQ2_0 of PrismML's llama.cpp"),
    (143, "143, PTQ1_0 of PrismML's llama.cpp"),
    (139, "139, IQ4_K of ik_llama.cpp"),
    (31, "31, Q4_0_4_4, which llama.cpp no longer reads"),
    (999, "999, which is unknown"),
]


@pytest.mark.parametrize(("number", "named"), FOREIGN)
def test_types_of_others_are_refused_by_name(tmp_path, number, named):
    make_model(tmp_path / "m")
    write_gguf(tmp_path / "x.gguf", open_checkpoint("m", tmp_path), "F16")
    data = (tmp_path / "x.gguf").read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions and two of them
    assert data[at : at + 4] == (1).to_bytes(4, "little")
    (tmp_path / "x.gguf").write_bytes(data[:at] + number.to_bytes(4, "little") + data[at + 4 :])
    assert f"blk.0.ffn_up.weight has type {named}" in refusal(tmp_path / "x.gguf")


def test_only_rounded_sources_have_a_warning(tmp_path):
    make_model(tmp_path / "m")
    source = open_checkpoint("m", tmp_path)
    assert source.warnings() == ()
    for kind, said in (("F16", None), ("BF16", None), ("Q4_1", "Q4_1 (5 bits)")):
        write_gguf(tmp_path / "x.gguf", source, kind)
        found = open_checkpoint("x.gguf", tmp_path).warnings()
        assert [said in line for line in found] == ([True] if said else [])


def test_metadata_of_a_split_that_is_none(tmp_path):
    make_model(tmp_path / "m")
    write_gguf(tmp_path / "x.gguf", open_checkpoint("m", tmp_path))
    for value in (0, 1):
        entry = (value, gguf.GGUFValueType.UINT16, None)
        rewritten(tmp_path / "x.gguf", tmp_path / "y.gguf", {"split.count": entry})
        assert open_checkpoint("y.gguf", tmp_path).specs
