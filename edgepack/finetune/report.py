"""What a training run did, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgepack.core.pictures import save
from edgepack.core.tables import format_size, markdown

LEARNT, HELD_OUT = "#1b6ca8", "#d1495b"
SPEEDS = ("tokens_per_second", "peak_memory", "planned_memory", "curve")
"""What differs from machine to machine, and the curve, which would be long: not in adapter.json."""


def page(result: Mapping[str, Any], *, picture: bool) -> str:
    """The report in Markdown."""
    trained = (
        "L and R of the packed model"
        if result["mode"] == "factors"
        else f"an adapter of rank {result['r']} on top of it"
    )
    curve = result["curve"]
    lines = [
        "# Fine-tuning",
        "",
        f"Trained: {trained}, {result['parameters']:,} values, on {result['examples']} examples, "
        f"in {len(curve['losses'])} steps ({_ended(result)}). Q did not change.",
        "",
        *markdown(_table(result)),
        "",
        f"General text, {result['general_tokens']} tokens that the model wrote itself: KL "
        f"{result['general']['kl']:.4f} nats a token to the untuned model, the same likeliest "
        f"token at {result['general']['same_top1']:.1%} of the places. A higher `replay`, a "
        "smaller `learning_rate` and fewer steps keep more of what it knew.",
        "",
        f"{result['tokens_per_second']:.0f} tokens/s (prompts included); peak memory "
        f"{format_size(result['peak_memory'])} of the process, planned "
        f"{format_size(result['planned_memory'])}; products in {result['arithmetic']}, activations "
        f"in {result['activations']}.",
    ]
    if result["note"]:
        lines += ["", f"Note: {result['note']}."]
    if result["skipped"]:
        lines += ["", f"{len(result['skipped'])} rows were skipped:", ""]
        lines += [f"- {why}" for why in result["skipped"][:20]]
    if picture:
        lines += ["", "![loss](loss.png)"]
    return "\n".join(lines) + "\n"


def _ended(result: Mapping[str, Any]) -> str:
    if result["curve"]["stopped"] == "patience":
        return f"ended early, the best was after {result['best_step']}"
    return "all"


def _table(result: Mapping[str, Any]) -> list[list[str]]:
    """Before and after."""
    losses, looks, before = result["curve"]["losses"], result["curve"]["held_out"], result["before"]
    rows = [("loss of the first and the last step, nats a token", losses[0], losses[-1])]
    if before:
        _, loss, accuracy = min(looks, key=lambda look: look[1])
        rows += [
            ("loss of the held-out examples", before["loss"], loss),
            ("share of their tokens that were the likeliest", before["accuracy"], accuracy),
        ]
    return [["", "before", "after"], *([name, f"{a:.3f}", f"{b:.3f}"] for name, a, b in rows)]


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """The loss over the steps, as a picture; False where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    losses, looks = result["curve"]["losses"], result["curve"]["held_out"]
    axes.plot(range(1, len(losses) + 1), losses, color=LEARNT, lw=1.2, label="learnt, each step")
    if looks:
        steps, values, _ = zip(*looks, strict=True)
        axes.plot(steps, values, "o-", color=HELD_OUT, ms=4, label="held out")
    axes.set_xlabel("steps")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path, dpi=120)
    return True
