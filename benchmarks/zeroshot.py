"""Zero-shot accuracy at several sizes, beside the best stock file not larger and the original.

    python -m benchmarks.zeroshot [--sizes 50,60,70,80] [--limit 100] [--shared ../shared]

The models of `benchmarks/sizes.yaml` and, of stock's, those that `benchmarks/results/sizes.json`
found best at each size (in MB); PIQA, ARC-easy and COPA, `--limit` items of each, prompted and
scored as lm-evaluation-harness does it, through llama.cpp, the mean over the tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from torch import Tensor

from benchmarks.same_type import RESULTS
from edgepack.calibration.moments import weight_hessian
from edgepack.calibration.stage import Calibrate
from edgepack.comparison.compare import at_size
from edgepack.core.artifact import Artifact
from edgepack.core.progress import finish
from edgepack.core.tables import format_size
from edgepack.export.gguf import write_plain
from edgepack.metrics.multiple_choice import CONTEXT, SEQUENCES, Mean, answer
from edgepack.metrics.tasks import load_all
from edgepack.pipeline import build, make_plan, run
from edgepack.recipe.read import load
from edgepack.runtimes.models import Model

TASKS = ("piqa", "arc_easy", "copa")
YAML = Path(__file__).with_name("sizes.yaml")
ORIGINAL = "original, f16"


def models(sizes: list[int], folder: Path) -> tuple[dict[str, Model], dict[int, str]]:
    """The original and both makers' files by name, written into `folder`, and the name of stock's
    at each size."""
    recipe = load(YAML)
    plan = make_plan(at_size(recipe, sizes[0] * 10**6), "gguf", YAML.parent)
    finish(run(plan, until=Calibrate.name))
    calibration, model, target = plan.find(Calibrate), plan.model, plan.target
    assert calibration is not None

    def imatrix(name: str) -> Tensor:
        tied = model.dimensions.tie_word_embeddings
        return weight_hessian(calibration.folder, model.specs[name], tied=tied).imatrix

    types, found = target.all_baselines(model, plan.formats), {}
    points = json.loads((RESULTS / "sizes.json").read_text(encoding="utf-8"))
    best = {}
    for wanted in sizes:
        sized, out = at_size(recipe, wanted * 10**6), folder / str(wanted)
        mine = finish(build(sized, "gguf", base=YAML.parent, out=out))
        found[f"edgepack, {wanted} MB"] = Model("", mine.base, mine.factors)
        types[f"stock + imatrix, in the types of sizes-{wanted}MB"] = matrix_types(mine)
        smaller = (p for p in points if p["maker"] == target.maker and p["nbytes"] <= wanted * 1e6)
        best[wanted] = min(smaller, key=lambda p: p["kl_mean"])["label"]
    write_plain(folder / "original.gguf", plan.original)
    found[ORIGINAL] = Model("", folder / "original.gguf")
    chosen = {label: types[label] for label in best.values()}
    stock = finish(target.write_baselines(model, chosen, imatrix, folder, "stock"))
    return found | {label: Model(label, path) for label, path in stock.items()}, best


def matrix_types(artifact: Artifact) -> dict[str, str]:
    """Format of Q of every matrix."""
    return {name: about["formats"]["Q"] for name, about in artifact.manifest["weights"].items()}


def table(accuracy: dict[str, Mean], models: dict[str, Model], best: dict[int, str]) -> str:
    """Markdown."""

    def cells(name: str) -> str:
        found = accuracy[name]
        return f"{100 * found.value:.1f} ± {100 * found.error:.1f} %"

    lines = ["| all files | edgepack | best stock file not larger | |", "|---:|---:|---|---:|"]
    for wanted, label in best.items():
        kind = label.removeprefix("stock ").split(" + ")[0]
        kind = "our choice of types" if "in the types of" in label else kind
        lines.append(
            f"| {wanted} MB | {cells(f'edgepack, {wanted} MB')} | {kind}, "
            f"{format_size(models[label].bytes)} | {cells(label)} |"
        )
    lines.append(f"| {format_size(models[ORIGINAL].bytes)}, the original | {cells(ORIGINAL)} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="50,60,70,80")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    items = load_all(TASKS, options.shared / "data/zeroshot", options.limit)
    with tempfile.TemporaryDirectory() as folder:
        found, best = models([int(s) for s in options.sizes.split(",")], Path(folder))
        openers = {name: partial(model.open, CONTEXT, SEQUENCES) for name, model in found.items()}
        answers = finish(answer(openers, items))
        accuracy = {
            name: Mean.average([Mean.from_items(one.usual) for one in tasks.values()])
            for name, tasks in answers.items()
        }
        lines = table(accuracy, found, best)  # asks the files for their sizes
    print(lines)
    (RESULTS / "zeroshot.md").write_text(lines + "\n")


if __name__ == "__main__":
    main()
