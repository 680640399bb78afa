"""Our files in a race that others have run: published figures, stock's and ours, on one text.

    python -m benchmarks.public MODEL [--published NAME] [--sizes 302MB,314MB] [--text FILE]
                                [--tokens N] [--compress JSON] [--recover JSON]

MODEL is a folder with weights, such as one that `hf download Qwen/Qwen2.5-0.5B-Instruct` made; no
weights are fetched. Sizes are by default those of the published files. Ours are built by a recipe
of `target_size`; stock's are every type with an imatrix of the same calibration tokens. Perplexity
as llama-perplexity has it: chunks of 512 tokens, the second half of each scored, of the whole text
unless `--tokens` says otherwise; the published tables are of WikiText-2's raw test split.

Every row has a file in results/public/ that says how to make it again: the command, the recipe, the
sha256 of the original's files, of the text and of ours, versions, and the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import edgepack
from benchmarks.same_type import RESULTS
from edgepack.comparison.compare import Point
from edgepack.core.artifact import Artifact
from edgepack.recipe.fields import parse_size

ROWS = RESULTS / "public"
CONTEXT, EVERY = 512, 10**9


@dataclass(frozen=True)
class Published:
    """A table that somebody else has published: (label, MB, perplexity) of every file."""

    source: str
    rows: tuple[tuple[str, int, float], ...]


TABLES = {
    "qwen2.5-0.5b": Published(
        "huggingface.co/ThomasBaruzier/Qwen2.5-0.5B-Instruct-GGUF, perplexity.md",
        (
            ("IQ1_S", 302, 30.0),
            ("IQ2_M", 314, 18.3),
            ("IQ3_M", 327, 16.4),
            ("IQ4_XS", 334, 15.9),
            ("Q4_0", 337, 17.1),
            ("Q4_K_M", 380, 15.4),
            ("Q8_0", 507, 15.2),
            ("F16", 949, 15.18),
        ),
    ),
    "llama-3.2-3b": Published(
        "huggingface.co/ThomasBaruzier/Llama-3.2-3B-Instruct-GGUF, perplexity.md",
        (
            ("IQ2_M", 1173, 14.5),
            ("IQ3_M", 1526, 11.8),
            ("IQ4_XS", 1745, 11.3),
            ("Q4_K_M", 1926, 11.2),
        ),
    ),
}


def main() -> None:
    options = arguments()
    table = TABLES[options.published] if options.published else None
    sizes = options.sizes.split(",") if options.sizes else []
    sizes = sizes or [f"{mb}MB" for _, mb, _ in table.rows[:-1]] if table else sizes
    given: dict[str, Any] = {
        "model": str(Path(options.model).resolve())
        if Path(options.model).exists()
        else options.model,
        "calibrate": {
            "source": str(options.calibration.resolve()),
            "tokens": options.calibration_tokens,
        },
        "compress": {"target_size": sizes[0], "damping": [0.03], **json.loads(options.compress)},
        "export": {"measure": {"text": str(options.text.resolve()), "tokens": options.tokens}},
    }
    if options.recover:
        given["recover"] = json.loads(options.recover)
    name = options.published or Path(options.model).stem
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(given, sort_keys=False))
        points = edgepack.compare([recipe], list(map(parse_size, sizes)), folder)
        for point in points:
            keep(point, name, Path(folder), options)
    page = ROWS / f"{name}.md"
    page.write_text(lines(points, table) + "\n")
    print(page.read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--published", choices=TABLES)
    parser.add_argument("--sizes")
    shared = Path("../shared/data")
    text = shared / "text/wikitext2-raw/wiki.test.raw"
    parser.add_argument("--text", type=Path, default=text)
    parser.add_argument("--tokens", type=int, default=EVERY)
    calibration = shared / "calib/calibration_datav3.txt"
    parser.add_argument("--calibration", type=Path, default=calibration)
    parser.add_argument("--calibration-tokens", type=int, default=49_152)
    parser.add_argument("--compress", default="{}", help="More of the recipe's `compress`")
    parser.add_argument("--recover", help="The recipe's `recover`")
    options = parser.parse_args()
    if not (options.sizes or options.published):
        parser.error("--sizes or --published: which sizes?")
    return options


def keep(point: Point, name: str, folder: Path, options: argparse.Namespace) -> None:
    """Write a row's file."""
    about: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.public", *sys.argv[1:]],
        "text": {"name": options.text.name, "sha256": sha256(options.text), "context": CONTEXT},
        "versions": {"llama-cpp-python": version("llama-cpp-python")},
        **point.as_dict(),
    }
    made = folder / point.label.removeprefix("edgepack ")
    if made.is_dir():  # it is ours
        manifest = Artifact.open(made).manifest
        about |= {key: manifest[key] for key in ("model", "recipe", "files", "bytes", "stages")}
        about["versions"] |= manifest["versions"]
    ROWS.mkdir(exist_ok=True)
    label = "".join(c if c.isalnum() else "-" for c in point.label)
    (ROWS / f"{name}-{label}.json").write_text(json.dumps(about, indent=1) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(points: list[Point], table: Published | None) -> str:
    """Markdown: all files in the order of their sizes."""
    found = [(p.nbytes / 1e6, p.label, f"{p.perplexity:.2f}", f"{p.kl_mean:.4f}") for p in points]
    if table is not None:
        found += [
            (float(mb), f"{label}, published", f"{ppl}", "–") for label, mb, ppl in table.rows
        ]
    head = ["| MB | | perplexity | mean KL |", "|---:|---|---:|---:|"]
    rows = [f"| {mb:.1f} | {label} | {ppl} | {kl} |" for mb, label, ppl, kl in sorted(found)]
    note = [f"Published: {table.source}."] if table is not None else []
    return "\n".join([*head, *rows, "", *note]).rstrip()


if __name__ == "__main__":
    main()
