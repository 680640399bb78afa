"""AutoRound's GGUF of SmolLM2-135M-Instruct beside ours and stock's, on the same text.

    python -m benchmarks.autoround --python OTHER/bin/python [--iters 20] [--shared ../shared]

AutoRound (`pip install auto-round`, in an environment of its own, named by `--python`) tunes the
rounding of every block by sign gradients (Cheng et al., arXiv 2309.05516). It is given the same
calibration text, 64 sequences of 512 tokens, and as many iterations a block as `--iters` says (its
own default is 200; the table says how long it took). Ours and stock's are the row of
`benchmarks.same_type`, calibrated on 49,152 tokens of that text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import edgepack
from benchmarks.same_type import MODEL, RESULTS
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.save import save
from edgepack.core.progress import finish
from edgepack.export.gguf import write_plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--iters", type=int, default=20)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    text = options.shared.resolve() / "data/calib/calibration_datav3.txt"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = open_checkpoint(MODEL)
        (folder / "model").mkdir()
        finish(save(checkpoint, checkpoint.tensor, folder / "model", "save"))
        write_plain(folder / "original.gguf", checkpoint)
        data = folder / "text.jsonl"
        words = text.read_text().split(" ")
        parts = (" ".join(words[i : i + 600]) for i in range(0, len(words), 600))
        data.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
        start = time.monotonic()
        command = [str(options.python), "-m", "auto_round", "--model", str(folder / "model")]
        command += ["--format", f"gguf:{options.format}", "--iters", str(options.iters)]
        command += ["--nsamples", "64", "--seqlen", "512", "--batch_size", "4"]
        command += ["--dataset", str(data), "--output_dir", str(folder / "out")]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        subprocess.run(command, check=True, env=os.environ | offline)
        minutes = (time.monotonic() - start) / 60
        (theirs,) = (folder / "out").rglob("*.gguf")
        found = edgepack.evaluate(
            theirs,
            reference=folder / "original.gguf",
            text=options.shared.resolve() / "data/text/wikitext2-raw/wiki.test.raw",
        ).as_dict()["models"][str(theirs)]
    rows = {r["type"]: r for r in json.loads((RESULTS / "same_type.json").read_text())}
    label = f"AutoRound, {options.iters} iterations, {minutes:.0f} minutes"
    sides = {label: {"bytes": found["bytes"], **found["text"]}}
    sides |= {"stock + imatrix": rows[options.format]["stock"]}
    sides |= {"edgepack": rows[options.format]["edgepack"]}
    lines = [f"| {options.format} | MB | mean KL | top-1 |", "|---|---:|---:|---:|"]
    for name, r in sides.items():
        kl = f"{r['kl_mean']:.4f} ± {r['kl_error']:.4f}"
        lines.append(f"| {name} | {r['bytes'] / 1e6:.1f} | {kl} | {r['top1']:.1%} |")
    print("\n".join(lines))
    (RESULTS / f"autoround_{options.format}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
