"""Peak memory and time of slicing, for a 7B model's widths and two numbers of blocks.

    python -m benchmarks.slicing_memory [--blocks 2,4] [--width 3072]

Random bf16 weights in Llama-2-7B's shapes (4096 hidden, 11008 inner, 32 heads; 49,152 words),
sliced by one rotation on 2,048 tokens of text, each in a process of its own whose peak resident
memory is the kernel's figure. It is bounded by one block if it does not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.same_type import MODEL, RESULTS
from edgepack.checkpoint import open_checkpoint

HIDDEN, INNER, VOCAB = 4096, 11008, 49152  # SmolLM2's words, more than Llama's 32,000
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
RESIDENT = """
import re
from pathlib import Path
status = Path("/proc/self/status")  # ru_maxrss would remember the process before exec
def resident(): return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) << 10
"""
"""`resident()`: the peak of a process so far, in bytes."""
BUILD = """
import sys, time, edgepack
start = time.monotonic()
expected = edgepack.plan(sys.argv[1], "checkpoint").memory
edgepack.build(sys.argv[1], "checkpoint", out=sys.argv[2])
print(resident(), expected, time.monotonic() - start)
"""


def write_model(folder: Path, blocks: int) -> None:
    """A checkpoint in those shapes, one file per block, with SmolLM2's tokenizer."""
    folder.mkdir()
    open_checkpoint(MODEL).tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

    words = ("model.embed_tokens.weight", "lm_head.weight")
    files = {"outside": dict.fromkeys(words, (VOCAB, HIDDEN))}
    files["outside"]["model.norm.weight"] = (HIDDEN,)
    for i in range(blocks):
        norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (HIDDEN,))
        shapes: dict[str, tuple[int, ...]] = {**SHAPES, **norms}
        files[f"block-{i}"] = {f"model.layers.{i}.{k}.weight": s for k, s in shapes.items()}
    weight_map = {}
    for name, shapes in files.items():
        tensors = {key: random(*shape) for key, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": blocks,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": 32,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", default="2,4")
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    text = options.shared.resolve() / "data/text/wikitext2-raw/wiki.valid.raw"
    lines = ["| blocks | file | peak memory | expected | minutes |", "|---:|---:|---:|---:|---:|"]
    for blocks in map(int, options.blocks.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "model", blocks)
            size = sum(p.stat().st_size for p in (folder / "model").glob("*.safetensors"))
            recipe = {
                "model": "model",
                "slice": {"width": options.width},
                "calibrate": {"source": str(text), "tokens": 2048},
                "export": {"measure": {"tokens": 0}},
            }
            (folder / "recipe.yaml").write_text(json.dumps(recipe))
            command = [
                sys.executable,
                "-c",
                RESIDENT + BUILD,
                folder / "recipe.yaml",
                folder / "out",
            ]
            environment = os.environ | {"EDGEPACK_CACHE": str(folder / "cache")}
            found = subprocess.run(
                command, check=True, env=environment, capture_output=True, text=True
            )
            peak, expected, seconds = map(float, found.stdout.split())
        lines.append(
            f"| {blocks} | {size / 1e9:.1f} GB | {peak / 1e9:.1f} GB | {expected / 1e9:.1f} GB "
            f"| {seconds / 60:.1f} |"
        )
        print(lines[-1], flush=True)
    (RESULTS / "slicing_memory.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
