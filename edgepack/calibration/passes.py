"""What a run of batches goes through: forward through a block, to labels at the head, and back.

Every function here reads hidden states or gradients of one run from files, writes those of the next
place, and gives the run's own moments. Nothing depends on other runs, so that they can be computed
anywhere. Values are on the device of the weights.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edgepack.calibration.finite import check_finite
from edgepack.calibration.items import Item, Options
from edgepack.calibration.moments import EMBEDDING, HEAD, OUT, OUTPUT, Moments
from edgepack.calibration.sampling import sample
from edgepack.calibration.side_by_side import Map
from edgepack.core.accelerator import wide
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, Head, slope
from edgepack.model.stream import Activations

PART = 512
"""Tokens (whole sequences) whose pass through a block one core computes."""
LABELS_AT_ONCE = 128
"""Tokens whose logits one core has in memory."""
MAX_TOKEN_WEIGHT = 10.0
"""× the mean weight of the batch; see benchmarks/ablation.py."""


def forward(block: Block, item: Item, side_by_side: Map) -> Moments:
    """Write the block's outputs; there are no moments."""
    index, run, device = item.block, item.run, block.device
    x, y = (item.files.x(index + after, run) for after in (0, 1))

    def parts() -> Iterator[Tensor]:
        for batch in run.batches:
            out = torch.cat(side_by_side(block, _split(_read(x, batch, device))))
            check_finite(out, f"block {index}", block.weights, block.family, index)
            yield out

    y.write(parts())
    return Moments()


def labels(head: Head, item: Item, side_by_side: Map) -> Moments:
    """Write the gradients of −log p(label) at the last block's outputs, labels sampled from the
    model; 0 at positions that do not count. The moments of the head."""
    run, options, counted = item.run, item.options, item.tokens
    x, g = item.files.x(item.block, run), item.files.g(item.block, run)
    moments = Moments()
    matrix = EMBEDDING if head.dimensions.tie_word_embeddings else OUTPUT
    weights = {**head.vectors, matrix: head.output}
    family = item.model.architecture
    check = partial(check_finite, place="the head", weights=weights, family=family)

    def parts() -> Iterator[Tensor]:
        for batch in run.batches:
            hidden = _read(x, batch, head.output.device)
            flat = hidden.flatten(0, 1)
            counts = torch.ones(len(flat)) if counted is None else counted[batch].flatten().float()
            pieces = zip(
                _seeds(options.seed, run.start + batch.start, len(flat)),
                torch.split(flat, LABELS_AT_ONCE),
                torch.split(counts.to(flat.device), LABELS_AT_ONCE),
                strict=True,
            )
            rows = options.output_side and not run.held_out
            found = side_by_side(partial(_label_gradient, head, check, rows), list(pieces))
            normed, sizes = (torch.cat([getattr(f, part) for f in found]) for part in ("x", "size"))
            side_by_side(operator.call, moments.adding(HEAD, normed, sizes, run.held_out))
            for one in found:
                if one.rows is not None:
                    moments.add_rows(HEAD, one.rows)
            moments.count(len(flat), run.held_out)
            yield torch.cat([one.gradient for one in found]).view_as(hidden)

    g.write(parts())
    return moments


def _seeds(seed: int, row: int, tokens: int) -> list[int]:
    """A seed for every piece of the batch that begins at a row."""
    pieces = -(-tokens // LABELS_AT_ONCE)
    states = np.random.SeedSequence([seed, row]).generate_state(pieces, np.uint64)
    return [int(state) for state in states]


@dataclass(frozen=True)
class _Labelled:
    """Of some tokens: the inputs x of the head's matrix, ‖g‖² at its output, the diagonal of its
    output side if asked for, and the gradient at the last block's output."""

    x: Tensor
    size: Tensor
    rows: Tensor | None
    gradient: Tensor


def _label_gradient(
    head: Head,
    check: Callable[[Tensor], None],
    with_rows: bool,
    piece: tuple[int, Tensor, Tensor],
) -> _Labelled:
    seed, x, counts = piece
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        normed = head.normalize(x)
    with torch.no_grad():
        logits = head.logits(normed)
        check(logits)
        g = logits.softmax(-1)
        drawn = sample(g, torch.Generator().manual_seed(seed))[:, None]
        g.scatter_add_(1, drawn, torch.full(drawn.shape, -1.0, device=g.device))
        g *= counts[:, None]
        g *= slope(logits, head.dimensions)  # at the matrix's output
        squares = g.square()
        rows = wide(normed.square().sum(-1) @ squares) if with_rows else None
        at_norm = (g.to(head.output.dtype) @ head.output).float()
    gradient = torch.autograd.grad(normed, x, at_norm)[0]
    return _Labelled(normed.detach(), squares.sum(-1), rows, gradient)


def backward(block: Block, item: Item, side_by_side: Map) -> Moments:
    """The moments of weights of the block, from its inputs and the gradients at its outputs; the
    gradients at its inputs are written, if the item says so."""
    run, roles, options, moments = item.run, item.roles, item.options, Moments()
    x, g = item.files.x(item.block, run), item.files.g(item.block + 1, run)
    below = item.files.g(item.block, run)
    with_gradient = item.gradient and not below.exists
    pull = partial(_pull, block, frozenset(roles), with_gradient)

    def parts() -> Iterator[Tensor]:
        for batch in run.batches:
            hidden, above = (_read(file, batch, block.device) for file in (x, g))
            taps = side_by_side(pull, list(zip(_split(hidden), _split(above), strict=True)))
            adding = _adding(moments, taps, roles, run.held_out, options)
            side_by_side(operator.call, adding)
            moments.count(hidden.shape[0] * hidden.shape[1], run.held_out)
            gradients = [tap.gradient for tap in taps if tap.gradient is not None]
            if gradients:
                yield torch.cat(gradients)

    if with_gradient:
        below.write(parts())
    else:
        deque(parts(), maxlen=0)
    return moments


@dataclass
class _Taps:
    """Of some tokens: inputs of weights, gradients at their outputs, and their squared norms, by
    role; and the gradient at the block's input."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradient: Tensor | None


def _pull(
    block: Block, roles: frozenset[str], with_gradient: bool, pair: tuple[Tensor, Tensor]
) -> _Taps:
    """Forward through a block and back."""
    hidden, g = pair[0].detach().requires_grad_(), pair[1]
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def linear(role: str, x: Tensor) -> Tensor:
        y = block.linear(role, x)
        if role in roles:
            seen[role] = (x.detach(), y)
        return y

    with torch.enable_grad():
        out = block(hidden, linear=linear)
    wanted = [y for _, y in seen.values()] + ([hidden] if with_gradient else [])
    grads = list(torch.autograd.grad(out, wanted, g)) if wanted else []
    gradient = grads.pop() if with_gradient else None
    inputs = {role: x for role, (x, _) in seen.items()}
    return _Taps(inputs, dict(zip(seen, grads, strict=True)), gradient)


def _adding(
    moments: Moments,
    taps: Sequence[_Taps],
    roles: Collection[str],
    held_out: bool,
    options: Options,
) -> list[Callable[[], None]]:
    """What adds a batch to the moments, in parts. Weights that share an input share its copy."""
    adding: list[Callable[[], None]] = []
    joined: dict[tuple[int, ...], Tensor] = {}
    for role in roles:
        there = [tap for tap in taps if role in tap.inputs]  # not all experts may be
        if not there:
            continue
        parts = [tap.inputs[role] for tap in there]
        key = tuple(map(id, parts))
        if key not in joined:
            joined[key] = torch.cat([part.flatten(0, -2) for part in parts])
        inputs = joined[key]
        grads = torch.cat([tap.outputs.pop(role).flatten(0, -2) for tap in there])
        weights = token_weights(squared_norms(grads), some=options.some)
        adding += moments.adding(role, inputs, weights, held_out)
        if options.output_side:
            weights = token_weights(squared_norms(inputs))
            adding += moments.adding(role + OUT, grads, weights, held_out)
    return adding


def embedding(decoder: Decoder, item: Item, side_by_side: Map) -> Moments:
    """The moments of the gradients at the embeddings' outputs, of every occurrence of a token."""
    moments, run, ids = Moments(), item.run, item.tokens
    assert ids is not None
    for batch in run.batches:
        g = _read(item.files.g(0, run), batch, decoder.device)
        gradient = decoder.embedding_gradient(ids[batch], g).flatten(0, -2)
        size = squared_norms(gradient)
        clip = token_weights(size) / size.clamp_min(1e-30)
        side_by_side(operator.call, moments.adding(EMBEDDING, gradient, clip, run.held_out))
        moments.count(size.numel(), run.held_out)
    return moments


def squared_norms(x: Tensor) -> Tensor:
    """‖x_t‖² ``[…]`` of x ``[…, n]``."""
    return x.square().sum(-1)


def token_weights(weights: Tensor, *, some: bool = False) -> Tensor:
    """Weights ``[tokens]`` of a batch, ‖g_t‖² or ‖x_t‖², none above `MAX_TOKEN_WEIGHT` times their
    mean. A few tokens have gradients so large that they would dominate H and make it fit only them.
    `some`: many have none, since their labels do not count; the mean is of the rest."""
    typical = weights[weights > 0].mean() if some and bool(weights.any()) else weights.mean()
    return weights.clamp_max(MAX_TOKEN_WEIGHT * typical)


def _read(file: Activations, batch: slice, device: torch.device) -> Tensor:
    return file.read(batch).to(device)


def _split(x: Tensor) -> Sequence[Tensor]:
    """Parts of a batch ``[sequences, time, …]``: about `PART` tokens each on a CPU, where each is
    one core's; all of it on another device."""
    if x.device.type != "cpu":
        return [x]
    return torch.split(x, max(1, PART // x.shape[1]))
