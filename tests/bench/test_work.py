"""What a token reads and multiplies, against what the files hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edgepack.adapters.gguf import Pair, write_tuned
from edgepack.bench.protocol import Case
from edgepack.bench.results import Work
from edgepack.bench.work import attached, work_of
from edgepack.errors import EdgepackError
from edgepack.runtimes.models import Model
from tests.support.bases import packed_base


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_s_bytes_are_those_of_all_tensors_but_an_embedding_of_its_own(tmp_path, tied):
    base, _ = packed_base(tmp_path, tied=tied)
    work = work_of(Model("tiny", base.file, base.factors))
    tensors = {one.name: one for one in gguf.GGUFReader(base.file).tensors}
    left_out = 0 if tied else tensors["token_embd.weight"].n_bytes
    assert sum(work.types.values()) == sum(one.n_bytes for one in tensors.values()) - left_out
    assert work.types["q4_0"] > 0
    assert work.factors == sum(one.n_bytes for one in gguf.GGUFReader(base.factors).tensors)
    matrices = [n for n in tensors if n.startswith("blk.") and len(tensors[n].shape) == 2]
    elements = sum(tensors[name].n_elements for name in matrices)
    elements += sum(one.n_elements for one in gguf.GGUFReader(base.factors).tensors)
    assert work.flops == 2 * elements
    head = tensors["token_embd.weight" if tied else "output.weight"]
    assert work.head == 2 * head.n_elements


def test_without_factors_nothing_of_them_is_read(tmp_path):
    base, _ = packed_base(tmp_path)
    full, bare = (work_of(Model("tiny", base.file, f)) for f in (base.factors, None))
    assert bare.factors == 0
    assert bare.flops < full.flops
    assert bare.types == full.types


def test_an_adapter_that_holds_the_factors_takes_their_place(tmp_path):
    base, _ = packed_base(tmp_path)
    pairs = {name: Pair(*base.pair(name)) for name in base.ranks}
    tuned = write_tuned(tmp_path / "tuned.gguf", pairs, base.checkpoint, {})

    def found(adapter, scale):
        return attached(Model("tiny", base.file, base.factors, ((adapter, scale),)))

    assert found(tuned, 1.0) == [(tuned, 1.0)]
    assert found(tuned, 0.25) == [(base.factors, 0.75), (tuned, 0.25)]
    assert found(base.factors, 0.5) == [(base.factors, 1.0), (base.factors, 0.5)]


def test_adapters_of_an_onnx_model_are_refused_and_not_left_out(tmp_path):
    model = Model("tiny", tmp_path / "m.onnx", None, ((tmp_path / "a.safetensors", 1.0),))
    with pytest.raises(EdgepackError, match="tiny: adapters are measured on GGUF models only"):
        attached(model)


def test_an_onnx_model_asks_the_same_of_a_machine_as_its_gguf(tmp_path):
    pytest.importorskip("onnx")
    found = {}
    for target, form in (("gguf", "q4_0"), ("onnx", "int4_g32")):
        (tmp_path / target).mkdir()
        base, _ = packed_base(tmp_path / target, target=target, form=form)
        found[target] = work_of(Model("tiny", base.file, base.factors))
    ours, theirs = found["onnx"], found["gguf"]
    assert (ours.flops, ours.head, ours.attention) == (
        theirs.flops,
        theirs.head,
        theirs.attention,
    )
    assert ours.cache == 2 * theirs.cache  # float32 beside llama.cpp's float16
    size = sum(path.stat().st_size for path in base.file.parent.iterdir())
    assert 0.5 * size < sum(ours.types.values()) < size


def test_history_is_read_by_every_sequence_weights_once():
    work = Work(types={"q8_0": 1000}, factors=100, cache=10, flops=7, head=5, attention=2)
    alone = Case(kind="decode", tokens=8, depth=20)
    four = Case(kind="decode", tokens=8, depth=20, batch=4)
    assert work.bytes_read(alone) == 1100 + 10 * 24
    assert work.bytes_read(four) == 1100 + 4 * 10 * 24
    assert work.operations(alone) == 8 * (7 + 2 * 24) + 8 * 5
    assert work.operations(Case(kind="prompt", tokens=8)) == 8 * (7 + 2 * 4) + 5


def test_keys_and_values_are_those_of_the_file(tmp_path):
    base, _ = packed_base(tmp_path)
    fields = gguf.GGUFReader(base.file).fields
    value = {
        name: fields[f"llama.{name}"].contents()
        for name in (
            "block_count",
            "attention.head_count_kv",
            "attention.head_count",
            "embedding_length",
        )
    }
    wide = value["embedding_length"] // value["attention.head_count"]
    work = work_of(Model("tiny", base.file))
    heads = np.broadcast_to(value["attention.head_count_kv"], value["block_count"]).sum()
    assert work.cache == 2 * 2 * heads * wide
