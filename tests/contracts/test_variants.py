"""Every variant of every family's configuration: our forward pass, our GGUF in llama.cpp and our
ONNX graph compute what transformers computes, or the variant is refused.

A family is tested from the day its file lies in `edgepack/architectures`. What llama.cpp's own
converter writes of the same models is compared by `python -m benchmarks.families`.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from edgepack.architectures.base import Architecture
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.export.gguf import write_model
from edgepack.export.profiles import GraphOptions
from edgepack.export.values import F32
from edgepack.model.decoder import Decoder
from edgepack.runtimes.forks import Fork
from edgepack.targets.onnx import Onnx
from tests.support.families import VARIANTS, Variant, logits, save, tokens
from tests.support.families.variant import NO_WINDOW, WINDOW
from tests.support.llama import exact_logits

EXACT, GELU, DELTA = 1e-4, 2e-2, 5e-4
"""Largest differences over the deviation of logits. ggml reads GELU from a table of float16. A
random gated delta net makes 2e-4 of what float32 rounds; products in float64 leave 8e-6."""
FLAT = 0.3
FAMILIES = plugins.names("architectures")
NOT_YET = {
    "gemma4_text/experts": "enable_moe_block True",
    "llama/biases": "no part of a llama model",
    "llama/mlp-biases": "no part of a llama model",
    "qwen2/window": "only some layers have a sliding window",
    "qwen3/biases": "no part of a qwen3 model",
    "exaone4/64-blocks": "sliding_window 8 is not supported",
    "qwen3/window": "only some layers have a sliding window",
}
"""Variants that edgepack does not read, and the words that it refuses them with."""
BY_LENGTH = ("phi3/long", "phi3/older-keys")
"""Variants whose tokens turn in another way in longer sequences."""

KNOWN = [key for key, v in VARIANTS.items() if v.family in FAMILIES]


def family_of(key: str) -> Architecture:
    return plugins.find("architectures", VARIANTS[key].family)


READ = [key for key in KNOWN if key not in NOT_YET]
PACKED = [key for key in READ if not VARIANTS[key].refused]
REFUSED = [key for key in READ if VARIANTS[key].refused]


class Made(NamedTuple):
    variant: Variant
    folder: str
    ids: list[int]
    wanted: np.ndarray

    def open(self) -> Checkpoint:
        """The checkpoint; one that no GGUF can hold may be refused at once."""
        try:
            return open_checkpoint(self.folder)
        except EdgepackError as error:
            if self.variant.refused:
                pytest.skip(str(error))
            raise


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    @cache
    def make(key: str) -> Made:
        variant, folder = VARIANTS[key], tmp_path_factory.mktemp("variant") / "tiny"
        wanted = logits(save(variant, folder), tokens(variant))
        assert wanted.std() > FLAT  # a flat model would agree with anything
        return Made(variant, str(folder), tokens(variant), wanted)

    return make


def assert_near(found, wanted, tolerance=EXACT):
    off = np.abs(np.asarray(found)[:, : wanted.shape[1]] - wanted).max() / wanted.std()
    assert off <= tolerance


def tolerance(variant: Variant) -> float:
    return DELTA if variant.double else EXACT


@torch.no_grad()
def our_logits(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    return Decoder(checkpoint).logits(torch.tensor([ids]))[0].numpy()


@torch.no_grad()
def step_by_step(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """Logits of our forward pass when it gets one token after the other."""
    decoder, d = Decoder(checkpoint), checkpoint.dimensions
    blocks = [decoder.block(i) for i in range(d.num_hidden_layers)]
    caches = decoder.caches(1, len(ids))
    head, embed = decoder.ends()
    found = []
    for position, token in enumerate(ids):
        x = embed(torch.tensor([[token]]), position)
        for block, cached in zip(blocks, caches, strict=True):
            x = block(x, cache=cached)
        found.append(head(x[0, 0]).numpy())
    return np.stack(found)


@pytest.fixture(scope="module")
def packed(made, tmp_path_factory):
    @cache
    def write(key: str) -> Path:
        return write_gguf(tmp_path_factory.mktemp("packed") / "tiny.gguf", made(key).open())

    return write


def write_gguf(path, checkpoint: Checkpoint):
    formats = {s.name: F32 for s in checkpoint.specs.values() if s.is_matrix}
    write_model(path, checkpoint, formats, checkpoint.tensor)
    return path


@pytest.mark.parametrize("key", READ)
def test_our_forward_pass_is_that_of_transformers(made, key):
    found = made(key)
    assert_near(our_logits(found.open(), found.ids), found.wanted, tolerance(found.variant))


@pytest.mark.parametrize("key", [key for key in READ if key not in BY_LENGTH])
def test_tokens_one_by_one_give_the_same(made, key):
    found = made(key)
    assert_near(step_by_step(found.open(), found.ids), found.wanted, tolerance(found.variant))


@pytest.mark.slow
@pytest.mark.parametrize("key", PACKED)
def test_our_gguf_gives_the_same_in_llama_cpp(made, packed, key):
    pytest.importorskip("llama_cpp")
    found = made(key)
    near = GELU if found.variant.gelu else tolerance(found.variant)
    assert_near(exact_logits(packed(key), found.ids), found.wanted, near)


@pytest.mark.slow
@pytest.mark.parametrize("key", PACKED)
def test_our_gguf_gives_the_same_when_it_is_read_back(made, packed, key):
    found = made(key)
    again = our_logits(open_checkpoint(str(packed(key))), found.ids)
    assert_near(again, found.wanted, tolerance(found.variant))


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in READ if Onnx.why_not(family_of(key)) is None])
def test_our_graph_gives_the_same_in_onnx_runtime(made, tmp_path, key):
    """At once, and when a part of the tokens comes out of the cache."""
    onnx = pytest.importorskip("edgepack.export.onnx")
    onnx_runtime = pytest.importorskip("edgepack.runtimes.onnx_runtime")
    found = made(key)
    checkpoint = found.open()
    formats = {s.name: F32 for s in checkpoint.specs.values() if s.is_matrix}
    path = finish(onnx.write_plain(tmp_path, checkpoint, formats, GraphOptions(128)))
    half = len(found.ids) // 2
    fork = Fork(tuple(found.ids[:half]), (tuple(found.ids[half:]),))
    with onnx_runtime.OnnxRuntime(path, context=128) as runtime:
        assert_near(runtime.logits(found.ids), found.wanted)
        (later,) = runtime.branches([fork])
    assert_near(later, found.wanted[half - 1 : -1])


@pytest.mark.parametrize("key", REFUSED)
def test_what_llama_cpp_hard_codes_is_refused(made, tmp_path, key):
    """Such a file would load and compute something else. Where it is right up to the window, it may
    be written with a context as long as that."""
    try:
        path = write_gguf(tmp_path / "tiny.gguf", open_checkpoint(made(key).folder))
    except EdgepackError:
        return
    assert VARIANTS[key].refused == NO_WINDOW
    assert open_checkpoint(str(path)).dimensions.max_position_embeddings <= WINDOW


@pytest.mark.parametrize("key", [key for key in KNOWN if key in NOT_YET])
def test_what_is_not_there_yet_is_refused(made, key):
    with pytest.raises(EdgepackError, match=NOT_YET[key]):
        made(key).open()
