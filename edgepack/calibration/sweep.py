"""H = Σ w_t x_t x_tᵀ of every linear weight, with one block in memory.

`guided`: a forward sweep writes the input of every block to disk. A backward sweep starts from
the gradient of the cross-entropy on labels sampled from the model itself (so that the expected
outer product of gradients is the Fisher matrix), recomputes one block at a time from the top and
carries the gradient down. w_t = ‖g_t‖², g_t the gradient at the weight's output: GuidedQuant
(Kim et al., arXiv 2505.07004, eq. 6) with one group of output channels.

`model` (Tseng et al., YAQA, arXiv 2505.22988, sketch A): as `guided`, and the output side
H_out = Σ ‖x_t‖² g_t g_tᵀ, so that H_out ⊗ H approximates the Fisher matrix of the weight.

`layer`: w_t = 1, the classical layer-wise H (GPTQ), on the inputs that the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from edgepack.calibration import experts
from edgepack.calibration.finite import check_finite
from edgepack.calibration.moments import EMBEDDING, HEAD, OUT, OUTPUT, Moments, save_hessians
from edgepack.calibration.sampling import sample
from edgepack.core.progress import Progress, Steps
from edgepack.core.weights import Hessian
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, Head, slope
from edgepack.model.stream import Activations, Batch, Tokens, micro_batches, states

LABELS_AT_ONCE = 512  # tokens whose logits are in memory at once
MAX_TOKEN_WEIGHT = 10.0  # × the mean weight of the batch; see benchmarks/ablation.py


def embed_batches(decoder: Decoder, ids: Tensor, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """The first block's inputs, batch by batch."""
    for x in decoder.embed_parts(ids[batch.rows] for batch in batches):
        if not torch.isfinite(x).all():
            table = {EMBEDDING: decoder.embedding()}
            check_finite(x, "the embeddings", table, decoder.checkpoint.architecture)
        yield x


def guided_hessians(
    decoder: Decoder, tokens: Tokens, folder: Path, seed: int, *, output_side: bool = False
) -> Steps[None]:
    """Write the guided Hessians of every block and of the head into `folder`; with `output_side`
    (objective ``model``) those of the blocks have an H_out, that of the head its diagonal, and the
    embeddings have one too: H = Σ g_t g_tᵀ at their output, H_out = the number of occurrences of
    each token.

    A killed run resumes after its last whole file.
    """
    blocks, batches = decoder.dimensions.num_hidden_layers, micro_batches(tokens)
    inputs = states(decoder, tokens.all, folder, "x", torch.bfloat16)
    gradients = states(decoder, tokens.all, folder, "g")
    total = 3 * blocks + 1

    reached = min((i for i in range(blocks + 1) if gradients[i].exists), default=None)
    if reached is None and not (folder / "0").exists():
        if not inputs[0].exists:
            inputs[0].write(embed_batches(decoder, tokens.all, batches))
        for i in range(blocks):
            yield Progress("calibrate", i, total, f"forward through block {i}")
            if not inputs[i + 1].exists:
                inputs[i + 1].write(_forward(decoder, i, inputs[i], batches))
        yield Progress("calibrate", blocks, total, "sampling labels")
        generator = torch.Generator().manual_seed(seed)
        moments = Moments(output_side=output_side)
        parts = _label_gradients(decoder, inputs[blocks], batches, moments, generator, tokens)
        _write_after(gradients[blocks], parts, partial(_save, folder / HEAD, moments))
        reached = blocks

    reached = reached or 0
    for stale in (*gradients[reached + 1 :], *inputs[reached:]):  # a killed run may leave them
        stale.path.unlink(missing_ok=True)
    for i in reversed(range(reached)):
        yield Progress("calibrate", 1 + blocks + 2 * (blocks - 1 - i), total, f"back to block {i}")
        moments = Moments(output_side=output_side)
        some = tokens.counted is not None
        parts = _backward(
            decoder.block(i), inputs[i], gradients[i + 1], batches, moments, some=some
        )
        names = decoder.block_names(i)
        _write_after(gradients[i], parts, partial(_save, folder / str(i), moments, names))
        gradients[i + 1].path.unlink()
        inputs[i].path.unlink()
    if output_side and not (folder / EMBEDDING).exists():
        save_hessians(folder / EMBEDDING, _embedding(decoder, tokens, gradients[0], batches))
    gradients[0].path.unlink(missing_ok=True)


def _embedding(
    decoder: Decoder, tokens: Tokens, g: Activations, batches: list[Batch]
) -> dict[str, Hessian]:
    """The embeddings' Hessian, from the gradients at every occurrence of a token. Add ½ to every
    token's count, so that tokens absent from the calibration text still get some weight."""
    moments = Moments()
    for batch in batches:
        gradient = decoder.embedding_gradient(tokens.all[batch.rows], g.read(batch.rows))
        size = gradient.square().sum(-1)
        clip = token_weights(gradient) / size.clamp_min(1e-30)
        moments.add(EMBEDDING, gradient, clip, batch.held_out)
        moments.count(size.numel(), batch.held_out)
    vocabulary = decoder.dimensions.vocab_size
    counts = torch.bincount(tokens.train.flatten(), minlength=vocabulary).double()
    moments.add_rows(EMBEDDING, counts + 0.5)
    return moments.hessians()


def _save(path: Path, moments: Moments, names: Collection[str] = ()) -> None:
    """Write the Hessians of the weights `names` of a block, or those of the head."""
    experts.draw_together(moments, names)
    save_hessians(path, moments.hessians(), experts.few(moments, names))


def _write_after(target: Activations, parts: Iterable[Tensor], before: Callable[[], None]) -> None:
    """Write `parts`, and call `before` when they are all computed, before the file appears: a whole
    gradient file means that the Hessians are whole too."""

    def then() -> Iterator[Tensor]:
        yield from parts
        before()

    target.write(then())


def _forward(
    decoder: Decoder, index: int, x: Activations, batches: list[Batch]
) -> Iterator[Tensor]:
    block, family = decoder.block(index), decoder.checkpoint.architecture
    for batch in batches:
        with torch.no_grad():
            y = block(x.read(batch.rows))
        check_finite(y, f"block {index}", block.weights, family, index)
        yield y


def _label_gradients(
    decoder: Decoder,
    x: Activations,
    batches: list[Batch],
    moments: Moments,
    generator: torch.Generator,
    tokens: Tokens,
) -> Iterator[Tensor]:
    """Gradients of −log p(label) at the last block's output, labels sampled from the model; 0 at
    positions that do not count."""
    head = decoder.head()
    matrix = EMBEDDING if decoder.dimensions.tie_word_embeddings else OUTPUT
    weights = {**head.vectors, matrix: head.output}
    family = decoder.checkpoint.architecture
    check = partial(check_finite, place="the head", weights=weights, family=family)
    for batch in batches:
        hidden = x.read(batch.rows)
        flat = hidden.flatten(0, 1)
        counted = torch.ones(len(flat)) if tokens.counted is None else tokens.counted[batch.rows]
        pairs = zip(
            torch.split(flat, LABELS_AT_ONCE),
            torch.split(counted.flatten().float(), LABELS_AT_ONCE),
            strict=True,
        )
        parts = [
            _label_gradient(head, check, part, counts, moments, batch.held_out, generator)
            for part, counts in pairs
        ]
        moments.count(len(flat), batch.held_out)
        yield torch.cat(parts).view_as(hidden)


def _label_gradient(
    head: Head,
    check: Callable[[Tensor], None],
    x: Tensor,
    counts: Tensor,
    moments: Moments,
    held_out: bool,
    generator: torch.Generator,
) -> Tensor:
    x = x.requires_grad_()
    with torch.enable_grad():
        normed = head.normalize(x)
    with torch.no_grad():
        logits = head.logits(normed)
        check(logits)
        g = logits.softmax(-1)
        labels = sample(g, generator)[:, None]
        g.scatter_add_(1, labels, torch.full(labels.shape, -1.0))
        g *= counts[:, None]
        g *= slope(logits, head.dimensions)  # at the matrix's output
        squares = g.square()
        moments.add(HEAD, normed, squares.sum(-1), held_out)
        if moments.output_side and not held_out:
            moments.add_rows(HEAD, (normed.square().sum(-1) @ squares).double())
        at_norm = g @ head.output
    return torch.autograd.grad(normed, x, at_norm)[0]


def token_weights(g: Tensor, *, some: bool = False) -> Tensor:
    """w_t = ‖g_t‖² of gradients (or inputs) ``[…, n]``, none above `MAX_TOKEN_WEIGHT` times the
    batch's mean. A few tokens have gradients so large that they would dominate H and make it fit
    only them. `some`: many have none, since their labels do not count; the mean is of the rest."""
    weights = g.square().sum(-1)
    typical = weights[weights > 0].mean() if some and bool(weights.any()) else weights.mean()
    return weights.clamp_max(MAX_TOKEN_WEIGHT * typical)


def _backward(
    block: Block,
    x: Activations,
    g: Activations,
    batches: list[Batch],
    moments: Moments,
    *,
    some: bool,
) -> Iterator[Tensor]:
    """The gradient at the block's input; adds to the moments of its weights. `some`: not all tokens
    have a gradient."""
    for batch in batches:
        taps: dict[str, tuple[Tensor, Tensor]] = {}

        def linear(role: str, x: Tensor, taps: dict[str, tuple[Tensor, Tensor]] = taps) -> Tensor:
            y = block.linear(role, x)
            taps[role] = (x.detach(), y)
            return y

        hidden = x.read(batch.rows).requires_grad_()
        with torch.enable_grad():
            out = block(hidden, linear=linear)
        met = [role for role in block.linears if role in taps]  # not all experts may be
        outputs = [taps[role][1] for role in met]
        grads = torch.autograd.grad(out, [hidden, *outputs], g.read(batch.rows))
        for role, grad in zip(met, grads[1:], strict=True):
            x_in = taps[role][0]
            moments.add(role, x_in, token_weights(grad, some=some), batch.held_out)
            if moments.output_side:
                moments.add(role + OUT, grad, token_weights(x_in), batch.held_out)
        moments.count(hidden.shape[0] * hidden.shape[1], batch.held_out)
        yield grads[0]


@torch.no_grad()
def layer_hessians(block: Block, x: Activations, batches: list[Batch]) -> dict[str, Hessian]:
    """Plain Hessians (w_t = 1) of a block's weights on the given inputs."""
    moments = Moments()
    for batch in batches:

        def linear(role: str, x: Tensor, held_out: bool = batch.held_out) -> Tensor:
            moments.add(role, x, None, held_out)
            return block.linear(role, x)

        hidden = x.read(batch.rows)
        block(hidden, linear=linear)
        moments.count(hidden.shape[0] * hidden.shape[1], batch.held_out)
    experts.draw_together(moments, block.linears)
    return moments.hessians()


@torch.no_grad()
def head_moments(head: Head, x: Activations, batches: list[Batch]) -> dict[str, Hessian]:
    """The plain Hessian of the head's inputs."""
    moments = Moments()
    for batch in batches:
        hidden = x.read(batch.rows)
        moments.add(HEAD, head.normalize(hidden), None, batch.held_out)
        moments.count(hidden.shape[0] * hidden.shape[1], batch.held_out)
    return moments.hessians()
