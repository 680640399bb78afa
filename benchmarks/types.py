"""Every type by itself: seconds per million weights, and the error after error feedback.

    python -m benchmarks.types [--types q4_0,…]

One core, a random 256 × 1024 weight, H of strongly correlated inputs (a made-up one: what a type
is worth on a model says `benchmarks.same_type`). Seconds are of this process, for plain rounding,
for error feedback with two rounds of coordinate descent, and for the same with an output side.
Errors are tr(E H Eᵀ)/tr(W H Wᵀ): stock's with diag(H) as its imatrix, and ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.same_type import RESULTS
from edgepack import formats
from edgepack.core.weights import QuantizedTensor, relative_error
from edgepack.decompose.ldlq import ldlq, metric
from edgepack.formats._affine import Affine
from edgepack.runtimes.ggml import stock_quantize

ROWS, COLUMNS = 256, 1024


def correlated(n: int, seed: int) -> Tensor:
    """Second moments of inputs with a steep spectrum and a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    scales = torch.arange(1, n + 1).float() ** -0.7
    X = torch.randn(4 * n, n, generator=generator) * scales @ basis.T
    X[:, ::37] *= 4
    return X.T @ X / len(X)


def timed(work: Callable[[], QuantizedTensor]) -> tuple[float, QuantizedTensor]:
    """Seconds of processor time per million weights, compilation left out, and the result."""
    work()
    start = time.process_time()
    found = work()
    return (time.process_time() - start) / (ROWS * COLUMNS) * 1e6, found


def line(name: str, W: Tensor, H: Tensor, H_out: Tensor) -> str:
    fmt = formats.get(name)
    one, two = (metric(H, fmt.block_size, 0.01, side, fmt.group) for side in (None, H_out))
    plain, _ = timed(lambda: fmt.quantize(W, H.diagonal()))
    feedback, Q = timed(lambda: ldlq(W, one, fmt))
    both, _ = timed(lambda: ldlq(W, two, fmt))
    data = torch.from_numpy(stock_quantize(name, W.numpy(), H.diagonal().contiguous().numpy()))
    stock = relative_error(W, fmt.parse(data).dequantize(), H)
    ours = relative_error(W, Q.dequantize(), H)
    return (
        f"| {name} | {fmt.bits_per_weight:.4f} | {plain:.2f} | {feedback:.2f} | {both:.2f} "
        f"| {stock:.2e} | {ours:.2e} |"
    )


@torch.no_grad()
def main() -> None:
    everything = {name: formats.get(name) for name in formats.stock()}
    types = {n: f.bits_per_weight for n, f in everything.items() if isinstance(f, Affine)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default=",".join(sorted(types, key=types.__getitem__)))
    names = parser.parse_args().types.split(",")
    torch.set_num_threads(1)
    W = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) * 0.05
    H, H_out = correlated(COLUMNS, 0), correlated(ROWS, 1)
    lines = [
        "| type | bits | s/M plain | feedback | two-sided | error, stock + imatrix | edgepack |",
        "|---|" + "---:|" * 6,
    ]
    for name in names:
        lines.append(line(name, W, H, H_out))
        print(lines[-1], flush=True)
    (RESULTS / "types.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
