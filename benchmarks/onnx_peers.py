"""ONNX graphs beside those of onnxruntime-genai's own builder, through one ONNX Runtime.

    python -m benchmarks.onnx_peers [--python OTHER/bin/python] [--olive ANOTHER/bin/python]
        [--rows …] [--shared ../shared]

SmolLM2-135M-Instruct (its source is a Q4_1 file, which flatters 4 bits on all sides alike). The
builder (`pip install onnxruntime-genai torch transformers onnx_ir` in an environment of its own,
named by `--python`) makes int4 with accuracy level 4, blocks of 32, by its default (symmetric
rounding to nearest), by k_quant with zero points, and so with 8 bits where it deems that wise
(k_quant_mixed). Olive (`pip install olive-ai requests datasets 'onnxruntime-genai<0.14'`, named by
`--olive`; later builders have lost what it calls) rounds by GPTQ in blocks of 32 with zero points,
64 × 512 tokens of the same text, embeddings to nearest, and stores them beside the head. Without
the option their rows are left as they were. A row of ours is a format
(embeddings too, unless it says otherwise), perhaps with a rank and the factors' format or with a
profile, or a size; calibrated on 49,152 tokens of calibration_datav3.
Each has plain rounding to the same types beside it. KL to the original as f16 on the first 4 × 512
tokens of WikiText-2's test split; tokens per second are medians of turns, and what of the first
row's they are. A run replaces its own rows in results/ and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
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
from edgepack.core.progress import finish
from edgepack.export.profiles import PROFILES
from edgepack.metrics.speed import speeds
from edgepack.planning.target import get
from edgepack.recipe.read import parse
from edgepack.runtimes.models import Model

BUILDER: dict[str, list[str]] = {
    "default": [],
    "k_quant": ["algo_config=k_quant", "is_symmetric=false"],
    "k_quant_mixed": ["algo_config=k_quant_mixed", "is_symmetric=false"],
}
"""Row → the builder's options (its former names, `int4_…`, go unheeded in 0.18)."""
GPTQ = {"bits": 4, "group_size": 32, "sym": False, "lm_head": True}
ROWS = "genai:default,genai:k_quant,genai:k_quant_mixed,olive:gptq,"
ROWS += "q4_0,int4_g32,88.6MB,int3_g64,q2_0+q4_0,q4_0:16:f16,q4_0:16:q8_0,q4_0:mobile"
OTHERS = {"genai": "python", "olive": "olive"}
"""Maker → the option that names its Python."""
KEPT = RESULTS / "onnx_peers.json"
PLAIN = "plain rounding, same types"


def original(folder: Path) -> Path:
    """The model as a Hugging Face folder."""
    source = folder / "original"
    if not source.exists():
        source.mkdir()
        checkpoint = open_checkpoint(MODEL)
        finish(save(checkpoint, checkpoint.tensor, source, "save"))
    return source


def olive(python: Path, shared: Path, folder: Path) -> Path:
    """Olive's folder."""
    words = (shared / "data/calib/calibration_datav3.txt").read_text().split(" ")
    parts = (" ".join(words[i : i + 600]) for i in range(0, len(words), 600))
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    data = {
        "name": "text",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "json", "data_files": str(text), "split": "train"},
        "pre_process_data_config": {
            "add_special_tokens": False,
            "max_seq_len": 512,
            "max_samples": 64,
            "strategy": "join",
            "text_cols": ["text"],
        },
        "dataloader_config": {"batch_size": 1},
    }
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    run = {
        "input_model": {"type": "HfModel", "model_path": str(original(folder))},
        "data_configs": [data],
        "passes": {
            "gptq": {"type": "Gptq", **GPTQ, "data_config": "text"},
            "rtn": {"type": "Rtn", **GPTQ, "embeds": True},
            "graph": {"type": "ModelBuilder", "precision": "int4", "int4_accuracy_level": 4},
        },
        "systems": {"local": {"type": "LocalSystem", "accelerators": [cpu]}},
        "host": "local",
        "target": "local",
        "output_dir": str(folder / "olive"),
        "cache_dir": str(folder / "olive-cache"),
    }
    config = folder / "olive.json"
    config.write_text(json.dumps(run))
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}
    command = [str(python), "-m", "olive", "run", "--config", str(config)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | quiet)
    return folder / "olive"


def genai(python: Path, algorithm: str, folder: Path) -> Path:
    """The builder's folder."""
    source, out = original(folder), folder / algorithm
    options = ["accuracy_level=4", *BUILDER[algorithm]]
    command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(folder / "cache")]
    subprocess.run([*command, "--extra_options", *options], check=True, capture_output=True)
    return out


def ours(what: str, shared: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Our folder, and its manifest."""
    types, *factors = what.split(":")
    form, _, embeddings = types.partition("+")
    compress: dict[str, Any] = {"format": form, "embeddings": embeddings or form}
    profile = factors.pop() if factors and factors[-1] in PROFILES else "cpu"
    if factors:
        compress |= {"rank": int(factors[0]), "factors": factors[1]}
    if what.endswith("MB"):
        compress = {"target_size": what}
    given = {
        "model": MODEL,
        "calibrate": {"source": str(shared / "data/calib/calibration_datav3.txt")},
        "compress": compress | {"damping": [0.03]},
        "export": {
            "onnx": {"profile": profile},
            "measure": {"text": str(text_of(shared)), "tokens": 2048, "context": 512},
        },
    }
    out = folder / what.replace(":", "-")
    return out, finish(pipeline.build(parse(given), "onnx", base=Path(), out=out)).manifest


def text_of(shared: Path) -> Path:
    return shared / "data/text/wikitext2-raw/wiki.test.raw"


def row(what: str, options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A row's folder and metrics."""
    shared = options.shared.resolve()
    maker, _, kind = what.partition(":")
    if maker not in OTHERS:
        out, manifest = ours(what, shared, folder)
        results, bits = manifest["measured"]["results"], manifest["bits_per_weight"]["all"]
        return out, {**results["edgepack"], "bits": bits, "plain": results[PLAIN]}
    if maker == "olive":
        out = olive(options.olive, shared, folder)
    else:
        out = genai(options.python, kind, folder)
    reference = folder / "reference"
    if not reference.exists():
        reference.mkdir()
        finish(get("onnx").write_original(open_checkpoint(MODEL), reference, "original"))
    found = edgepack.evaluate(
        out, reference=Model.from_path(reference).base, text=text_of(shared), tokens=2048
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
    parser.add_argument("--olive", type=Path)
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    missing = {maker for maker, option in OTHERS.items() if getattr(options, option) is None}
    names = [n for n in options.rows.split(",") if n.partition(":")[0] not in missing]
    rows = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for name in names:
            folders[name], rows[name] = row(name, options, Path(place))
            print([*table({name: rows[name]})][-1], flush=True)
            write(rows)
        found = finish(
            speeds({name: Model.from_path(path).open for name, path in folders.items()}, 5)
        )
    first = found[names[0]]
    for name, speed in found.items():
        rows[name] |= {"prompt": speed.prompt / first.prompt, "decode": speed.decode / first.decode}
    print(write(rows))


if __name__ == "__main__":
    main()
