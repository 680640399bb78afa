"""Decoding speed of a packed model with tuned factors beside untuned ones, and with adapters.

    python -m benchmarks.finetune_speed DIR FACTORS [STACK]

DIR is an output folder (GGUF); FACTORS and STACK name adapters of it, trained with `--mode factors`
and `--mode stack`. `edgepack bench` runs the models in turns in `ROUNDS` rounds; ratios are medians
of the rounds' own ratios to the untuned model, with an interval for the true median in brackets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.same_type import RESULTS
from edgepack.adapters.base import PackedBase
from edgepack.bench import bench
from edgepack.bench.tables import speeds
from edgepack.core.adapters import listed, usable
from edgepack.core.tables import markdown
from edgepack.runtimes.models import Model

ROUNDS = 40
PAGE = RESULTS / "finetune_speed.md"


def models(folder: Path, names: list[str]) -> list[Model]:
    """The packed model, and with each adapter on."""
    base = PackedBase.open(folder)
    known = {found.name: found for found in listed(folder)}
    made = [Model("untuned", base.file, base.factors)]
    for name in names:
        path = usable(known[name], base.target)
        mode = known[name].about.mode if known[name].about else ""
        made.append(Model(f"tuned, {mode}", base.file, base.factors, ((path, 1.0),)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    found = bench(
        models(given.folder, given.names),
        prompts=[128],
        decode=64,
        rounds=ROUNDS,
        limits=False,
        progress=lambda step: print(step.done, step.label, end="\r"),
    )
    text = "\n".join(markdown(speeds(found))) + "\n"
    print(text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
