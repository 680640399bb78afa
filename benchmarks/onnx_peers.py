"""ONNX graphs beside those of onnxruntime-genai's own builder, through one ONNX Runtime.

    python -m benchmarks.onnx_peers [--python OTHER/bin/python] [--rows …] [--shared ../shared]

SmolLM2-135M-Instruct (its source is a Q4_1 file, which flatters 4 bits on all sides alike). The
builder (`pip install onnxruntime-genai torch transformers onnx_ir` in an environment of its own,
named by `--python`) makes int4 with accuracy level 4, blocks of 32, by its default (symmetric
rounding to nearest), by k_quant with zero points, and so with 8 bits where it deems that wise
(k_quant_mixed); without `--python` its rows are left as they were. A row of ours is a format
(embeddings too, unless it says otherwise) or a size; rank 0, calibrated on 49,152 tokens of
calibration_datav3.
Each has plain rounding to the same types beside it. KL to the original as f16 on the first 4 × 512
tokens of WikiText-2's test split; tokens per second are medians of turns, and what of the first
row's they are. A run replaces its own rows in results/ and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgepack
from benchmarks.same_type import MODEL, RESULTS
from edgepack import pipeline
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.save import save
from edgepack.evaluate.speed import speeds
from edgepack.measure import Model, write_original
from edgepack.progress import finish
from edgepack.recipe import parse

BUILDER: dict[str, list[str]] = {
    "default": [],
    "k_quant": ["algo_config=k_quant", "is_symmetric=false"],
    "k_quant_mixed": ["algo_config=k_quant_mixed", "is_symmetric=false"],
}
"""Row → the builder's options (its former names, `int4_…`, go unheeded in 0.18)."""
ROWS = "genai:default,genai:k_quant,genai:k_quant_mixed,q4_0,int4_g32,88.6MB,int3_g64,q2_0+q4_0"
KEPT = RESULTS / "onnx_peers.json"
PLAIN = "plain rounding, same types"


def genai(python: Path, algorithm: str, folder: Path) -> Path:
    """The builder's folder."""
    source, out = folder / "original", folder / algorithm
    if not source.exists():
        source.mkdir()
        checkpoint = open_checkpoint(MODEL)
        finish(save(checkpoint, checkpoint.tensor, source, "save"))
    options = ["accuracy_level=4", *BUILDER[algorithm]]
    command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(folder / "cache")]
    subprocess.run([*command, "--extra_options", *options], check=True, capture_output=True)
    return out


def ours(what: str, shared: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Our folder, and its manifest."""
    form, _, embeddings = what.partition("+")
    compress: dict[str, Any] = {"format": form, "embeddings": embeddings or form}
    if what.endswith("MB"):
        compress = {"target_size": what}
    given = {
        "model": MODEL,
        "calibrate": {"source": str(shared / "data/calib/calibration_datav3.txt")},
        "compress": compress | {"damping": [0.03]},
        "export": {"measure": {"text": str(text_of(shared)), "tokens": 2048, "context": 512}},
    }
    out = folder / what
    return out, finish(pipeline.build(parse(given), "onnx", base=Path(), out=out)).manifest


def text_of(shared: Path) -> Path:
    return shared / "data/text/wikitext2-raw/wiki.test.raw"


def row(what: str, options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A row's folder and metrics."""
    shared = options.shared.resolve()
    if not what.startswith("genai:"):
        out, manifest = ours(what, shared, folder)
        results, bits = manifest["measured"]["results"], manifest["bits_per_weight"]["all"]
        return out, {**results["edgepack"], "bits": bits, "plain": results[PLAIN]}
    out = genai(options.python, what.removeprefix("genai:"), folder)
    reference = folder / "reference"
    if not reference.exists():
        reference.mkdir()
        finish(write_original("onnx", open_checkpoint(MODEL), reference))
    found = edgepack.evaluate(
        out, reference=Model.at(reference).base, text=text_of(shared), tokens=2048
    ).as_dict()["models"][str(out)]
    return out, {**found["text"], "bytes": found["bytes"]}


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield "| | MB | mean KL | top-1 | plain rounding | prompt | decode |"
    yield "|---|" + "---:|" * 6
    for name, r in rows.items():
        plain = f"{r['plain']['kl_mean']:.3f}" if "plain" in r else "–"
        kl = f"{r['kl_mean']:.4f} ± {r['kl_error']:.4f}"
        speed = [f"×{r[key]:.2f}" if key in r else "–" for key in ("prompt", "decode")]
        cells = [name, f"{r['bytes'] / 1e6:.1f}", kl, f"{r['top1']:.1%}", plain, *speed]
        yield "| " + " | ".join(cells) + " |"


def write(rows: dict[str, dict[str, Any]]) -> str:
    """The rows into results/, in order; the table."""
    known = dict.fromkeys([*ROWS.split(","), *rows])
    ordered = {name: rows[name] for name in known if name in rows}
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(table(ordered))
    (RESULTS / "onnx_peers.md").write_text(text + "\n", encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", type=Path)
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    names = [n for n in options.rows.split(",") if options.python or not n.startswith("genai:")]
    rows = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for name in names:
            folders[name], rows[name] = row(name, options, Path(place))
            print([*table({name: rows[name]})][-1], flush=True)
            write(rows)
        found = finish(speeds({name: Model.at(path).open for name, path in folders.items()}, 5))
    first = found[names[0]]
    for name, speed in found.items():
        rows[name] |= {"prompt": speed.prompt / first.prompt, "decode": speed.decode / first.decode}
    print(write(rows))


if __name__ == "__main__":
    main()
