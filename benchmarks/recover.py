"""What distilling the original into a packed model adds, at the same bytes, through llama.cpp.

    python -m benchmarks.recover [--what q2_0,q4_0,60MB,70MB,80MB] [--steps 40] [--shared ../shared]

SmolLM2-135M-Instruct in one type (rank 0), or in the types and ranks that `benchmarks/sizes.yaml`
chooses for a size, before and after `recover` on the calibration tokens (calibration_datav3:
16,384 for q2_0, else 49,152); mean KL to the original on the first 2 × 512 tokens of WikiText-2's
test split (llama.cpp is slow at q2_0 on x86). A run replaces its own rows in results/.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.same_type import RESULTS, recipe
from edgepack import pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import load, parse

ORDER = ("q2_0", "q4_0", "60MB", "70MB", "80MB")


def options(what: str, shared: Path) -> dict[str, Any]:
    """The recipe of a row, without recovery."""
    given = recipe("q4_0" if what.endswith("MB") else what, shared)
    if what == "q2_0":
        given["calibrate"]["tokens"] = 16384
    if what.endswith("MB"):
        sizes = load(Path(__file__).with_name("sizes.yaml")).model_dump(exclude_unset=True)
        given["compress"] = sizes["compress"] | {"target_size": what}
    given["export"]["measure"] |= {"tokens": 1024, "stock": False}
    return given


def built(given: dict[str, Any]) -> dict[str, Any]:
    """Its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        steps = pipeline.build(parse(given), "gguf", base=Path(), out=Path(folder) / "out")
        return finish(steps).manifest


def row(what: str, steps: int, shared: Path) -> dict[str, Any]:
    """Both models of a row."""
    given = options(what, shared)
    before = built(given)
    start = time.monotonic()
    after = built(given | {"recover": {"steps": steps, "evaluate_every": 10}})
    results = [m["measured"]["results"]["edgepack"] for m in (before, after)]
    about = {"what": what, "steps": steps, "minutes": (time.monotonic() - start) / 60}
    bits = after["bits_per_weight"]["blocks"]
    return about | {"bits": bits, "before": results[0], "after": results[1]}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| | bits per weight | MB | steps | mean KL before | after | lower by | top-1 | after |",
        "|---|" + "---:|" * 8,
    ]
    for r in rows:
        a, b = r["before"], r["after"]
        lines.append(
            f"| {r['what']} | {r['bits']:.2f} | {b['bytes'] / 1e6:.1f} | {r['steps']} "
            f"| {a['kl_mean']:.3f} ± {a['kl_error']:.3f} | {b['kl_mean']:.3f} ± {b['kl_error']:.3f}"
            f" | {1 - b['kl_mean'] / a['kl_mean']:.0%} | {a['top1']:.1%} | {b['top1']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--what", default=",".join(ORDER))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    chosen = parser.parse_args()
    kept = RESULTS / "recover.json"
    rows = {r["what"]: r for r in json.loads(kept.read_text())} if kept.exists() else {}
    for what in chosen.what.split(","):
        rows[what] = row(what, chosen.steps, chosen.shared.resolve())
        ordered = [rows[key] for key in dict.fromkeys([*ORDER, *rows]) if key in rows]
        print(table([rows[what]]).splitlines()[-1], flush=True)
        kept.write_text(json.dumps(ordered, indent=1) + "\n")
        (RESULTS / "recover.md").write_text(table(ordered) + "\n")


if __name__ == "__main__":
    main()
