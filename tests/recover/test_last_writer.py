"""Least squares for the matrix that writes the stream last, and H of what it is given."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgepack.checkpoint import open_checkpoint
from edgepack.core.weights import Hessian, WeightFormat
from edgepack.decompose.weights import LAYER, Item, save_layer
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Activations, Batch
from edgepack.recover import last_writer
from tests.support.tiny import make_model

ROLE = "ffn_down"
TRAIN, HELD_OUT, LENGTH = 12, 4, 64
BATCHES = [Batch(slice(0, 8), False), Batch(slice(8, 12), False), Batch(slice(12, 16), True)]


def items_of(folder: Path, family: str) -> tuple[list[Item], Block]:
    """The matrices of a random model's first block, and the block."""
    make_model(folder / family, family)
    model = open_checkpoint(str(folder / family))
    specs = [s for s in model.specs.values() if s.is_matrix and s.block == 0]
    fmt = WeightFormat("q4_0")
    items = [Item(model, spec.name, fmt, (0.1,), 1, None, folder) for spec in specs]
    return items, Decoder(model).block(0)


def stream(folder: Path, name: str, values: torch.Tensor) -> Activations:
    found = Activations(folder / name, tuple(values.shape))
    found.write([values])
    return found


def fitted(folder: Path, item: Item, block: Block, target: Block) -> last_writer.Fit:
    """The fit for a `block` that should do what `target` does, on random inputs."""
    width = block.dimensions.hidden_size
    x = torch.randn(TRAIN + HELD_OUT, LENGTH, width, generator=torch.Generator().manual_seed(0))
    inputs, targets = stream(folder, "x", x), stream(folder, "t", target(x))
    return last_writer.fit(item, block, inputs, targets, BATCHES)


def with_down(block: Block, W: torch.Tensor) -> Block:
    return replace(block, weights={**block.weights, ROLE: W})


@pytest.mark.parametrize(
    ("family", "role"),
    [
        ("llama", ROLE),
        ("granite", ROLE),
        ("phi3", ROLE),
        ("lfm2", ROLE),
        ("gemma2", None),  # a norm behind it
        ("gemma4_text", None),  # other matrices behind it
        ("qwen3_moe", None),  # an expert is one of several
    ],
)
def test_which_one_it_is(family: str, role: str | None, tmp_path: Path):
    found = last_writer.find(*items_of(tmp_path, family))
    assert (found and found.spec.role) == role


@pytest.mark.parametrize("family", ["llama", "granite"])  # granite scales what blocks add
def test_what_is_missing_is_found(family: str, tmp_path: Path):
    """Of a block whose last matrix is wrong, the fit gives nearly all that it lacks."""
    items, block = items_of(tmp_path, family)
    item, W = last_writer.find(items, block), block.weights[ROLE]
    wrong = W + 0.5 * W.std() * torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
    fit = fitted(tmp_path, item, with_down(block, wrong), block)
    change = fit.change().float()
    assert (wrong + change - W).norm() < 0.1 * (wrong - W).norm()


def test_nothing_changes_where_nothing_is_missing(tmp_path: Path):
    items, block = items_of(tmp_path, "llama")
    fit = fitted(tmp_path, last_writer.find(items, block), block, block)
    assert not fit.change().any()


def test_noise_is_not_learnt(tmp_path: Path):
    """What no change can make up for on held-out tokens is left alone."""
    items, block = items_of(tmp_path, "llama")
    fit = fitted(tmp_path, last_writer.find(items, block), block, block)
    noise = torch.randn(fit.missing[False].shape, generator=torch.Generator().manual_seed(2))
    opposite = {False: noise.double(), True: -noise.double()}
    assert not replace(fit, missing=opposite).change().any()


def test_H_is_of_its_present_inputs_and_H_out_is_kept(tmp_path: Path):
    items, block = items_of(tmp_path, "llama")
    item = last_writer.find(items, block)
    rows, columns = item.spec.shape
    eye, sides = torch.eye(columns), [torch.eye(rows) * k for k in (2.0, 3.0)]
    file = tmp_path / LAYER
    save_layer(file, {ROLE: Hessian(eye, eye.clone(), torch.full((columns,), 7.0), *sides)})
    item = replace(item, hessians=file)
    packed = replace(block, weights={**block.weights, "ffn_up": 2 * block.weights["ffn_up"]})
    plain, doubled = (fitted(tmp_path, item, b, block).H for b in (block, packed))
    assert torch.allclose(doubled.train, 4 * plain.train)
    assert torch.allclose(doubled.held_out, 4 * plain.held_out)
    assert not torch.allclose(plain.train, plain.held_out)
    assert torch.equal(doubled.imatrix, torch.full((columns,), 7.0))
    assert torch.equal(doubled.out_train, sides[0])
    assert torch.equal(doubled.out_held_out, sides[1])


def test_the_metric_is_damped_and_scaled(tmp_path: Path):
    items, block = items_of(tmp_path, "llama")
    item = last_writer.find(items, block)
    assert last_writer.metric(item) is None  # nothing is known of its outputs
    assert last_writer.metric(None) is None
    rows, columns = item.spec.shape
    eye, out = torch.eye(columns), torch.diag(torch.arange(1.0, rows + 1))
    file = tmp_path / LAYER
    save_layer(file, {ROLE: Hessian(eye, eye.clone(), torch.ones(columns), out, out.clone())})
    found = last_writer.metric(replace(item, hessians=file))
    assert torch.allclose(found.diagonal(), out.diagonal() / out.diagonal().mean() + 0.3)
