"""What error feedback is worth inside a layer: held-out layer error against stock with imatrix.

    python -m benchmarks.layer_error [--types …] [--blocks 6] [--shared ../shared]

SmolLM2-135M-Instruct, every weight of evenly spaced blocks (256-column types: ffn_down, the one
weight that is wide enough). Both sides know the same tokens of calibration_datav3 (32 per column of
the widest weight): stock as an imatrix, LDLQ as H. The error ‖(W−Q)H^½‖²/‖WH^½‖² is judged on
tokens held out from them, in two metrics, each with the Q made for it: `plain` counts all tokens
and outputs alike (what the literature calls the layer error), `model` is what edgepack optimises by
default, tr(H_out E H Eᵀ)/tr(H_out W H Wᵀ): a handful of tokens carries much of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.same_type import FFN_DOWN, RESULTS, recipe
from edgepack import formats
from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.moments import load_hessian
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.sweep import layer_hessians
from edgepack.core.progress import finish
from edgepack.core.weights import Hessian, relative_error
from edgepack.decompose.caldera import caldera
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Activations, Tokens, micro_batches
from edgepack.pipeline import make_plan, run
from edgepack.planning.plan import Plan
from edgepack.recipe.read import parse
from edgepack.runtimes.ggml import stock_quantize


def plain(decoder: Decoder, tokens: Tokens, blocks: Sequence[int]) -> Iterator[dict[str, Hessian]]:
    """The Hessians of some blocks with all tokens alike, on the original's activations."""
    batches = micro_batches(tokens)
    shape = (*tokens.all.shape, decoder.dimensions.hidden_size)
    with tempfile.TemporaryDirectory() as folder:
        x = Activations(Path(folder) / "x0", shape)
        embedding = decoder.embedding()
        x.write(embedding[tokens.all[batch.rows]] for batch in batches)
        for i in range(max(blocks) + 1):
            block = decoder.block(i)
            if i in blocks:
                yield layer_hessians(block, x, batches)
            after = Activations(Path(folder) / f"x{i + 1}", shape)
            after.write(block(x.read(batch.rows)) for batch in batches)
            x.path.unlink()
            x = after


def errors(plan: Plan, name: str, block: int, role: str, H: Hessian) -> tuple[float, float]:
    """(edgepack, stock + imatrix) on one weight."""
    model, form = plan.model, formats.get(name)
    W = model.tensor(model.architecture.hf_name(role, block))
    assert plan.recipe.compress is not None
    damping = plan.recipe.compress.damping
    ours = caldera(W, H, form, rank=0, factors="f16", damping=damping, iterations=1)
    data = torch.from_numpy(stock_quantize(name, W.numpy(), H.imatrix.numpy()))
    stock = form.parse(data).dequantize()
    return ours.error, relative_error(W, stock, H.held_out, H.out_held_out)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default="q4_0,q2_0,q2_k,q3_k")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    plan = make_plan(parse(recipe("q4_0", options.shared.resolve())), "gguf", Path())
    finish(run(plan, until=Calibrate.name))
    calibration = plan.find(Calibrate)
    assert calibration is not None
    folder, tokens = calibration.folder, calibration.text.tokens
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    count = plan.model.dimensions.num_hidden_layers
    blocks = range(0, count, -(-count // options.blocks))
    for block, hessians in zip(blocks, plain(Decoder(plan.model), tokens, blocks), strict=True):
        for role in LINEAR_ROLES:
            metrics = {"plain": hessians[role], "model": load_hessian(folder / str(block), role)}
            for name in options.types.split(","):
                if name in FFN_DOWN and role != "ffn_down":
                    continue
                for metric, H in metrics.items():
                    pair = errors(plan, name, block, role, H)
                    found.setdefault((name, metric), []).append(pair)
        print(f"block {block}", flush=True)
    lines = [
        "| type | weights | metric | stock + imatrix | edgepack | ratio of means | median ratio |"
    ]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    for (name, metric), pairs in sorted(found.items(), reverse=True):
        ours, stock = (statistics.fmean(values) for values in zip(*pairs, strict=True))
        middle = statistics.median(a / b for a, b in pairs)
        which = "ffn_down" if name in FFN_DOWN else "all"
        lines.append(
            f"| {name} | {which} | {metric} | {stock:.2e} | {ours:.2e} "
            f"| {ours / stock:.2f} | {middle:.2f} |"
        )
    print("\n".join(lines))
    (RESULTS / "layer_error.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
