"""Time, memory and errors of the low-bit products, beside those of float32.

    python -m benchmarks.int4_operators [--data ../shared/data] [--rows 256,1024]

Layers: one step (forward and backward) of `edgepack.finetune.int4.Linear` beside
`torch.nn.Linear`. Frozen: both products of `edgepack.finetune.arithmetic` with a W that does not
learn, rounding of both operands included, for several numbers of tokens. One core; operators take
turns; medians of processor time in 15 rounds. Memory is what torch allocates beside x and W: the
most during a step, and what stays between forward and backward.

Pretrained: SmolLM2-135M-Instruct on 2 × 256 tokens of WikiText-2's test split, whose activations
have outliers that a model trained from scratch for minutes has not. Every product inside the 30
blocks is rounded. KL is that of the logits to float32's; the cosine and the length are of the
gradient of the next tokens' loss at the first block's input, beside float32's. Rows of LSQ and HQ
round forward only, with a step for each tensor as the paper's formula starts it. The paper goes on
to learn steps and weights; here nothing is learned.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.same_type import MODEL, RESULTS
from edgepack.calibration.text import encode
from edgepack.checkpoint import open_checkpoint
from edgepack.finetune.arithmetic import Int4, choose
from edgepack.finetune.int4 import Linear
from edgepack.finetune.int4.hadamard import choose_block, rotate
from edgepack.finetune.int4.lsq import codes, initial_step
from edgepack.finetune.int8 import integer_product, row_codes
from edgepack.model.decoder import Decoder

Product = Callable[[Tensor, Tensor], Tensor]
ROUNDS = 15
SHAPES = ((576, 1536), (2048, 2048), (2048, 5632))
"""Columns and rows of W: a feed-forward matrix of SmolLM2-135M, and two of a model of 1B."""
LAYERS: dict[str, dict[str, Any]] = {
    "INT8: LSQ, 8-bit gradient": {"quantizer": "lsq", "bits": 8, "gradient": "split"},
    "INT4: HQ + LSS": {"quantizer": "hq", "bits": 4, "gradient": "lss"},
    "INT4: HQ, all rows": {"quantizer": "hq", "bits": 4, "gradient": "split"},
    "LSQ 4": {"quantizer": "lsq", "bits": 4, "gradient": "none"},
}
STEP_COLUMNS = "forward + backward|ratio|kept for backward|most in a step"
PRODUCT_COLUMNS = "x Wᵀ|ratio|error|g W|ratio|error|most allocated"
KL_COLUMNS = "mean KL|cosine of the gradient|its length"
NAMES = ("float32", "bfloat16", "int8", "int4")


def timed(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of processor time; the works take turns, and the first round warms up."""
    turns: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            turns[name].append(time.process_time() - start)
    return {name: median(values[1:]) for name, values in turns.items()}


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Most bytes allocated at a time during a call, and bytes that its result keeps."""
    work()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del result
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most, now


def layers(columns: int, out: int, rows: int) -> list[str]:
    """Steps of whole layers whose weights learn, for W ``[out, columns]``."""
    kinds: dict[str, torch.nn.Linear] = {"float32": torch.nn.Linear(columns, out)}
    for name, options in LAYERS.items():
        kinds[name] = Linear.from_linear(torch.nn.Linear(columns, out), **options)
    x, g = torch.randn(rows, columns).requires_grad_(), torch.randn(rows, out)

    def forward(layer: torch.nn.Linear) -> Tensor:
        layer.zero_grad()
        x.grad = None
        y: Tensor = layer(x)
        return y

    def step(layer: torch.nn.Linear) -> None:
        forward(layer).backward(g)

    times = timed({name: partial(step, layer) for name, layer in kinds.items()})
    lines = []
    for name, layer in kinds.items():
        forward(layer)  # without gradients of an earlier step
        kept = allocated(partial(forward, layer))[1] - 4 * rows * out  # without y itself
        most, _ = allocated(partial(step, layer))
        lines.append(
            f"| {columns} × {out} | {name} | {times[name] * 1e3:.1f} ms "
            f"| {times[name] / times['float32']:.2f} | {kept / 1e6:.1f} MB | {most / 1e6:.1f} MB |"
        )
    return lines


def frozen(columns: int, out: int, rows: int) -> list[str]:
    """The two products with W ``[out, columns]`` that does not learn."""
    x, g, W = torch.randn(rows, columns), torch.randn(rows, out), torch.randn(out, columns)
    kinds = {name: choose(name, fallback=True) for name in NAMES}
    forward = {name: partial(kind.product, x, W) for name, kind in kinds.items()}
    backward = {name: partial(kind.input_gradient, g, W) for name, kind in kinds.items()}
    columns_of = [(forward, timed(forward), x @ W.T), (backward, timed(backward), g @ W)]
    lines = []
    for name, kind in kinds.items():
        cells = [f"{columns} × {out}", name if kind.name == name else str(kind.note)]
        for works, times, exact in columns_of:
            error = float((works[name]() - exact).norm() / exact.norm())
            ratio = times[name] / times["float32"]
            cells += [f"{times[name] * 1e3:.1f} ms", f"{ratio:.2f}", f"{error:.4f}"]
        most = max(allocated(works[name])[0] for works, _, _ in columns_of)
        lines.append("| " + " | ".join([*cells, f"{most / 1e6:.1f} MB"]) + " |")
    return lines


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, product: Product, gradient: Product) -> Tensor:
        ctx.W, ctx.gradient = W, gradient
        return product(x, W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient(g, ctx.W), None, None, None


def rounded(quantizer: str, bits: int) -> Product:
    """x Wᵀ with both rounded as the paper's quantizers start."""

    def product(x: Tensor, W: Tensor) -> Tensor:
        block = choose_block(x, W, bits) if quantizer == "hq" else 1
        X, W = rotate(x, block), rotate(W, block)
        s, t = initial_step(X, bits), initial_step(W, bits)
        return (s * codes(X, s, bits)) @ (t * codes(W, t, bits)).T

    return product


def plain_int8(x: Tensor, W: Tensor) -> Tensor:
    """x Wᵀ in INT8 without columns in float32."""
    (a, s), (b, t) = row_codes(x), row_codes(W)
    return integer_product(a, b.T).float() * s * t.T


def products() -> dict[str, tuple[Product, Product | None]]:
    """What is computed forward and backward, by the name of the row."""
    kinds = {name: choose(name, fallback=True) for name in NAMES}
    kinds["int4, all rows"] = Int4(sampled=False)
    exact = kinds["float32"]
    found: dict[str, tuple[Product, Product | None]]
    found = {name: (kind.product, kind.input_gradient) for name, kind in kinds.items()}
    found["int8 without float32 columns"] = plain_int8, kinds["int8"].input_gradient
    for name in ("int8", "int4", "int4, all rows"):
        found[f"{name}: backward only"] = exact.product, kinds[name].input_gradient
    for quantizer, bits in itertools.product(("lsq", "hq"), (4, 6, 8)):
        found[f"{quantizer.upper()} {bits}: forward only"] = rounded(quantizer, bits), None
    return found


class Pretrained:
    """SmolLM2-135M-Instruct on the first tokens of a text."""

    def __init__(self, text: Path) -> None:
        checkpoint = open_checkpoint(MODEL)
        decoder = Decoder(checkpoint)
        self.tokens = encode(checkpoint.tokenizer, text)[:512].reshape(2, 256)
        self.embedded, self.head = decoder.embed(self.tokens), decoder.head()
        self.blocks = [decoder.block(i) for i in range(decoder.dimensions.num_hidden_layers)]

    def run(self, product: Product, gradient: Product | None) -> tuple[Tensor, Tensor | None]:
        """Log probabilities, and the gradient at the first block's input."""
        start = x = self.embedded.clone().requires_grad_(gradient is not None)
        for block in self.blocks:

            def linear(role: str, h: Tensor, weights: Any = block.weights) -> Tensor:
                y: Tensor = _Frozen.apply(h.flatten(0, 1), weights[role], product, gradient)
                return y.unflatten(0, h.shape[:2])

            x = block(x, linear)
        scores = functional.log_softmax(self.head(x), -1)
        if gradient is not None:
            targets = self.tokens[:, 1:].flatten()
            functional.nll_loss(scores[:, :-1].flatten(0, 1), targets).backward()
        return scores.detach(), start.grad


def pretrained(text: Path) -> list[str]:
    """What rounding does to a model that was trained by others."""
    model = Pretrained(text)
    rows = products()
    exact, exact_gradient = model.run(*rows["float32"])
    assert exact_gradient is not None
    lines = []
    for name, row in rows.items():
        scores, gradient = model.run(*row)
        divergence = (exact.exp() * (exact - scores)).sum(-1).mean()
        cells = [name, f"{float(divergence):.4f}", "", ""]
        if gradient is not None:
            cosine = functional.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), 0)
            length = gradient.norm() / exact_gradient.norm()
            cells[2:] = [f"{float(cosine):.3f}", f"×{float(length):.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def head(texts: int, names: str, numbers: str) -> list[str]:
    """The first two lines of a table: columns of text, then columns of numbers."""
    both = f"{names}|{numbers}".split("|")
    return ["| " + " | ".join(both) + " |", "|" + "---|" * texts + "---:|" * (len(both) - texts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", default="256,1024", help="tokens of a step; layers: the first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = [int(rows) for rows in options.rows.split(",")]
    lines = [f"## Layers, {sizes[0]} tokens", "", *head(2, "W|layer", STEP_COLUMNS)]
    for columns, out in SHAPES[:2]:
        lines += layers(columns, out, sizes[0])
    for rows in sizes:
        lines += ["", f"## Frozen, {rows} tokens", "", *head(2, "W|arithmetic", PRODUCT_COLUMNS)]
        for columns, out in SHAPES:
            lines += frozen(columns, out, rows)
    print("\n".join(lines), flush=True)
    lines += ["", "## Pretrained: SmolLM2-135M-Instruct", "", *head(1, "products in", KL_COLUMNS)]
    lines += pretrained(options.data / "text/wikitext2-raw/wiki.test.raw")
    (RESULTS / "int4_operators.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
