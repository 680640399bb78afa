"""Decoding in a browser's runtime: onnxruntime-web's wasm in node, one thread.

    python -m benchmarks.onnx_web --modules FOLDER [--shared ../shared]

FOLDER is where `npm install onnxruntime-web` was run. SmolLM2-135M-Instruct as `q4_0` (embeddings
q8_0), which is MatMulNBits as every exporter writes it, and as `int8`; medians of 16 tokens behind
64 of prompt, in turns of 3.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.same_type import MODEL, RESULTS
from edgepack import pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

SCRIPT = Path(__file__).with_suffix(".mjs")
KINDS: dict[str, dict[str, Any]] = {
    "q4_0": {"format": "q4_0", "embeddings": "q8_0", "damping": [0.03]},
    "int8": {"format": "int8", "embeddings": "int8"},
}
ROUNDS = 3


def graph(name: str, shared: Path, folder: Path) -> Path:
    given = {
        "model": MODEL,
        "calibrate": {"source": str(shared / "data/calib/calibration_datav3.txt")},
        "compress": KINDS[name],
        "export": {"measure": {"tokens": 0}},
    }
    return finish(pipeline.build(parse(given), "onnx", base=Path(), out=folder / name)).base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modules", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        graphs = {name: graph(name, options.shared.resolve(), Path(folder)) for name in KINDS}
        for _ in range(ROUNDS):
            for name, path in graphs.items():
                command = ["node", str(SCRIPT), str(options.modules.resolve()), str(path)]
                numbers = ["30", "3", "64", "64", "16"]
                out = subprocess.run([*command, *numbers], check=True, capture_output=True)
                found[name].append(json.loads(out.stdout))
                sizes[name] = sum(f.stat().st_size for f in path.parent.iterdir())
    lines = ["| format | MB | prompt, ms a token | decode, ms a token |", "|---|---:|---:|---:|"]
    for name, turns in found.items():
        prompt, decode = (median(turn[key] for turn in turns) for key in ("prefill", "decode"))
        lines.append(f"| {name} | {sizes[name] / 1e6:.1f} | {prompt:.0f} | {decode:.0f} |")
    ratio = [median(t["decode"] for t in turns) for turns in found.values()]
    lines += ["", f"Decoding, `int8` against `q4_0`: {ratio[0] / ratio[1]:.1f} times as fast."]
    print("\n".join(lines))
    (RESULTS / "onnx_web.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
