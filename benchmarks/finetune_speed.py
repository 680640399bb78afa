"""Decoding speed of a packed model with tuned factors beside untuned ones, and with adapters.

    python -m benchmarks.finetune_speed DIR FACTORS [STACK]

DIR is an output folder (GGUF); FACTORS and STACK name adapters of it, trained with `--mode factors`
and `--mode stack`. llama.cpp reads 128 tokens and writes 32 more; the models take turns in `ROUNDS`
rounds. Ratios are medians of the rounds' own ratios to the untuned model, which cancels what the
machine does meanwhile, with the middle half of the rounds in brackets.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median, quantiles

from benchmarks.same_type import RESULTS
from edgepack.adapters.base import PackedBase
from edgepack.core.adapters import listed, usable
from edgepack.core.progress import finish
from edgepack.metrics.speed import Speed, speeds
from edgepack.runtimes.models import Model

ROUNDS = 15
PAGE = RESULTS / "finetune_speed.md"


def models(folder: Path, names: list[str]) -> dict[str, Model]:
    """The packed model, and with each adapter on."""
    base = PackedBase.open(folder)
    known = {found.name: found for found in listed(folder)}
    made = {"untuned": Model("untuned", base.file, base.factors)}
    for name in names:
        path = usable(known[name], base.target)
        mode = known[name].about.mode if known[name].about else ""
        made[f"tuned, {mode}"] = Model(name, base.file, base.factors, ((path, 1.0),))
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    found = models(given.folder, given.names)
    turns: dict[str, list[Speed]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        openers = {name: model.open for name, model in found.items()}
        for name, speed in finish(speeds(openers, 1)).items():
            turns[name].append(speed)
    lines = [
        "| | decode, tokens/s | ratio | prompt, tokens/s | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, own in turns.items():
        cells = []
        for what in ("decode", "prompt"):
            mine, first = ([getattr(s, what) for s in t] for t in (own, turns["untuned"]))
            ratios = [a / b for a, b in zip(mine, first, strict=True)]
            low, _, high = quantiles(ratios, n=4)
            cells += [f"{median(mine):.1f}", f"{median(ratios):.3f} [{low:.3f}, {high:.3f}]"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
