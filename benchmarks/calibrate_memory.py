"""Memory of calibration at the shapes of large models: one block, both sides of H, real processes.

    python -m benchmarks.calibrate_memory [--shapes 7B] [--allow 8] [--tokens 4608]

A checkpoint with one block of random weights in bfloat16 is written, and calibrated on random
tokens within `--allow` GiB (`--memory` of the command line), in a process of its own. What it took
(peak resident, VmHWM) stands beside what `edgepack plan` says. By default the second run has one
sequence; `planned` counts a full batch beside the sums of two
runs (--tokens 8192 makes one). The vocabulary is small: a head takes time, and less memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.same_type import RESULTS
from edgepack.calibration.stage import Calibrate
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Threads
from edgepack.core.hardware import limit_memory, peak_memory
from edgepack.core.progress import finish
from edgepack.model.stream import Tokens
from edgepack.planning.plan import PROCESS
from edgepack.recipe import sections

SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "heads": (32, 4), "vocab_size": 4096},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "heads": (32, 32), "vocab_size": 4096},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "heads": (64, 8), "vocab_size": 4096},
}
GIB = 1 << 30


def write_model(folder: Path, name: str) -> None:
    """A Llama with one block."""
    s = SHAPES[name]
    h, inner, (heads, kv), vocabulary = (s[k] for k in list(s))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        **{key: s[key] for key in ("hidden_size", "intermediate_size", "vocab_size")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    wide, narrow = h, h // heads * kv
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens": (vocabulary, h),
        "lm_head": (vocabulary, h),
        **{f"{block}self_attn.{n}_proj": (wide, h) for n in "qo"},
        **{f"{block}self_attn.{n}_proj": (narrow, h) for n in "kv"},
        **{f"{block}mlp.{n}_proj": (inner, h) for n in ("gate", "up")},
        f"{block}mlp.down_proj": (h, inner),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{n}.weight": torch.empty(shape, dtype=torch.bfloat16).normal_(
            0, 0.02, generator=generator
        )
        for n, shape in shapes.items()
    }
    for norm in ("model.norm", f"{block}input_layernorm", f"{block}post_attention_layernorm"):
        tensors[f"{norm}.weight"] = torch.ones(h, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True)
class RandomText:
    """Tokens of no text."""

    tokens: Tokens
    key: str = "random"


def calibrate(folder: Path, tokens: int, allow: int) -> dict[str, float]:
    """Calibrate, and say what it took."""
    limit_memory(allow)
    options = sections.Calibrate(tokens=tokens)
    model = open_checkpoint(str(folder))
    count = tokens // options.sequence_length
    generator = torch.Generator().manual_seed(1)
    shape = (count + max(1, count // 8), options.sequence_length)
    ids = torch.randint(model.dimensions.vocab_size, shape, generator=generator)
    stage = Calibrate(model, RandomText(Tokens(ids[:count], ids[count:])), options)
    start, out = time.perf_counter(), folder / "hessians"
    out.mkdir()
    finish(stage.run(out, Threads()), lambda step: print(f"  {step.label}", file=sys.stderr))
    return {
        "planned": stage.memory() + PROCESS,
        "peak": peak_memory(),
        "hessians": sum(p.stat().st_size for p in (out / "0").iterdir()),
        "planned_hessians": sum(stage.sizes.hessians),
        "seconds": time.perf_counter() - start,
        "passes": stage.passes,
    }


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=list(SHAPES), default="7B")
    parser.add_argument("--allow", type=float, default=8, metavar="GIB")
    parser.add_argument("--tokens", type=int, default=4608)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    allow = int(given.allow * GIB)
    if given.worker:
        print(json.dumps(calibrate(given.worker, given.tokens, allow)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), given.shapes)
        command = [sys.executable, "-m", "benchmarks.calibrate_memory", "--worker", name]
        command += ["--tokens", str(given.tokens), "--allow", str(given.allow)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(done.stdout) | {
        "shapes": given.shapes,
        "allowed": allow,
        "tokens": given.tokens,
    }
    path = RESULTS / "calibrate_memory.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    key = ("shapes", "allowed", "tokens")
    rows = [old for old in rows if any(old[k] != row[k] for k in key)] + [row]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    write_table(rows)


def write_table(rows: list[dict[str, float]]) -> None:
    """The same for people."""
    lines = [
        "One block, H and H_out (`python -m benchmarks.calibrate_memory --shapes … --allow …`):",
        "",
        "| shapes | allowed | passes | planned | peak of the process | H of the block on disk |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        sizes = [f"{row[k] / GIB:.2f} GiB" for k in ("allowed", "planned", "peak", "hessians")]
        allowed, planned, peak, hessians = sizes
        lines.append(
            f"| {row['shapes']} | {allowed} | {row['passes']} | {planned} | {peak} | {hessians} |"
        )
    (RESULTS / "calibrate_memory.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
