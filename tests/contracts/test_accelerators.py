"""Every family computes on a device that is not the CPU: nothing lies elsewhere on the way.

The device is torch's own backend for others, with the CPU's kernels (`tests/support/pretend.py`).
It refuses tensors of two devices as CUDA does, and float64 as MPS does. Attention goes another way
there, so that sums are rounded differently.
"""

from functools import cache

import pytest
import torch

from edgepack.calibration import passes
from edgepack.calibration.items import Files, Item, Options
from edgepack.calibration.moments import HEAD, Moments
from edgepack.calibration.side_by_side import in_turn
from edgepack.checkpoint import open_checkpoint
from edgepack.core.accelerator import CPU
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Run
from tests.contracts.test_variants import PACKED
from tests.support.families import VARIANTS, save, tokens
from tests.support.pretend import CALLS, narrow

pytestmark = pytest.mark.pretend

ROUNDING = 1e-3
"""Largest difference over the largest number; a gated delta net makes up to 2e-4, others 1e-6."""
OWN_WAY = ("llama/yarn", "phi3/long", "gemma3_text/capped", "qwen3_5_text/equal-heads")
"""Variants beside the first of a family that compute in another way."""
KEYS = [key for key in PACKED if key.endswith("/plain") or key in OWN_WAY]
BOTH = Options(seed=0, output_side=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    @cache
    def make(key: str):
        folder = tmp_path_factory.mktemp("variant") / "tiny"
        save(VARIANTS[key], folder)
        return open_checkpoint(str(folder)), torch.tensor([tokens(VARIANTS[key])])

    return make


def test_the_device_is_told_from_the_cpu():
    """What the other tests rely on: they would otherwise pass for nothing."""
    with narrow() as device:
        there, here = torch.ones(2, device=device), torch.ones(2)
        with pytest.raises(RuntimeError, match="tensors on pretend and on the cpu"):
            there + here
        with pytest.raises(TypeError, match="no float64"):
            there.double()
        with pytest.raises(RuntimeError):
            there.numpy()
        assert torch.equal((there + there).cpu(), here + here)


@pytest.mark.parametrize("key", KEYS)
def test_forward(model, key):
    """All tokens at once and, with caches, one after the other."""
    checkpoint, ids = model(key)
    with narrow() as device, torch.no_grad():
        CALLS.clear()
        there = Decoder(checkpoint, device=device)
        found = there.logits(ids)
        assert found.device == device
        assert CALLS["mm"] + CALLS["addmm"] > checkpoint.dimensions.num_hidden_layers
        assert_near(found.cpu(), Decoder(checkpoint).logits(ids))
        stepped = [step_by_step(d, ids[0, :12].tolist()) for d in (there, Decoder(checkpoint))]
    assert_near(stepped[0].cpu(), stepped[1])


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert (found - wanted).abs().max() <= ROUNDING * wanted.abs().max()


def step_by_step(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    blocks = [decoder.block(i) for i in range(decoder.dimensions.num_hidden_layers)]
    caches, (head, embed) = decoder.caches(1, len(ids)), decoder.ends()
    x = torch.empty(0)
    for position, token in enumerate(ids):
        x = embed(torch.tensor([[token]]), position)
        for block, cached in zip(blocks, caches, strict=True):
            x = block(x, cache=cached)
    return head(x)


@pytest.mark.parametrize("key", KEYS)
def test_moments_and_gradients(model, key, tmp_path):
    """What calibration does with every block, the head and the embeddings."""
    checkpoint, ids = model(key)
    ids = torch.cat([ids[:, :24], ids[:, 24:]])
    run, files = Run(0, 0, (slice(0, 2),), False), Files(tmp_path, Decoder(checkpoint).widths, 24)
    write_states(Decoder(checkpoint), files, run, ids)
    with narrow() as device:
        there, here = (Decoder(checkpoint, device=d) for d in (device, CPU))
        for i in range(checkpoint.dimensions.num_hidden_layers):
            roles = tuple((role,) for role in here.block(i).linears)
            item = Item("backward", checkpoint, files, BOTH, run, i, roles)
            found, wanted = (passes.backward(d.block(i), item, in_turn) for d in (there, here))
            assert all(gram.panels[0].device == CPU for gram in found.sums.values())
            compare(found, wanted)
        last = len(files.widths) - 1
        item = Item("labels", checkpoint, files, BOTH, run, last, gradient=True)
        assert passes.labels(there.head(), item, in_turn).rows[HEAD].isfinite().all()
        item = Item("embedding", checkpoint, files, BOTH, run, 0, tokens=ids)
        compare(*(passes.embedding(d, item, in_turn) for d in (there, here)))


def write_states(decoder: Decoder, files: Files, run: Run, ids: torch.Tensor) -> None:
    """The inputs of every block, and some gradients there."""
    draw = torch.Generator().manual_seed(0)
    x = decoder.embed(ids)
    for i, width in enumerate(files.widths):
        if i:
            x = decoder.block(i - 1)(x)
        files.x(i, run).write([x])
        files.g(i, run).write([torch.randn(*ids.shape, width, generator=draw)])


def compare(found: Moments, wanted: Moments) -> None:
    assert found.sums.keys() == wanted.sums.keys()
    assert found.sums
    for key, gram in wanted.sums.items():
        assert_near(found.sums[key].dense(), gram.dense())
    for name, square in wanted.squares.items():
        assert_near(found.squares[name], square)
