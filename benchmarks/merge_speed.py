"""Time and peak memory of a merge, beside mergekit's, on synthetic Llama checkpoints.

    python -m benchmarks.merge_speed --mergekit VENV/bin/mergekit-yaml

Runs alternate; each is a process of its own, with its imports, as a user starts it. edgepack's
cache is empty before every run, so that it hashes its inputs anew. The page cache is warm: every
input is read once before each run. Outputs are removed in between. Peaks are VmHWM of the process
(mergekit's includes the pages of files that it has mapped, edgepack maps none).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from edgepack.merge.write import Writer, torch_dtype
from tests.support.tiny import make_tokenizer

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 4, 32000
"""TinyLlama's, with fewer layers."""
MODELS = ("base", "one", "two")
RECIPES = {
    "slerp": {
        "merge_method": "slerp",
        "base_model": "one",
        "models": [{"model": "one"}, {"model": "two"}],
        "parameters": {"t": 0.4},
        "dtype": "bfloat16",
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"density": 0.5, "weight": 0.5}},
            {"model": "two", "parameters": {"density": 0.5, "weight": 0.3}},
        ],
        "parameters": {"normalize": True},
        "dtype": "bfloat16",
    },
}


class Tensor:
    """A tensor of a checkpoint to come."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape, self.dtype = name, shape, "BF16"
        self.nbytes = 2 * torch.Size(shape).numel()


def tensors(layers: int) -> list[Tensor]:
    """A Llama's."""
    kv = HIDDEN // HEADS * KV_HEADS
    found = [Tensor("model.embed_tokens.weight", VOCAB, HIDDEN)]
    for i in range(layers):
        layer = f"model.layers.{i}"
        found += [
            Tensor(f"{layer}.input_layernorm.weight", HIDDEN),
            Tensor(f"{layer}.self_attn.q_proj.weight", HIDDEN, HIDDEN),
            Tensor(f"{layer}.self_attn.k_proj.weight", kv, HIDDEN),
            Tensor(f"{layer}.self_attn.v_proj.weight", kv, HIDDEN),
            Tensor(f"{layer}.self_attn.o_proj.weight", HIDDEN, HIDDEN),
            Tensor(f"{layer}.post_attention_layernorm.weight", HIDDEN),
            Tensor(f"{layer}.mlp.gate_proj.weight", INTERMEDIATE, HIDDEN),
            Tensor(f"{layer}.mlp.up_proj.weight", INTERMEDIATE, HIDDEN),
            Tensor(f"{layer}.mlp.down_proj.weight", HIDDEN, INTERMEDIATE),
        ]
    return [*found, Tensor("model.norm.weight", HIDDEN), Tensor("lm_head.weight", VOCAB, HIDDEN)]


def make_checkpoint(folder: Path, layers: int, seed: int) -> None:
    """A random checkpoint; `one` and `two` are near the base."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save_pretrained(folder)
    writer = Writer(folder, tensors(layers), 1 << 40)
    base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    for tensor in tensors(layers):
        values = torch.empty(tensor.shape).normal_(0, 0.02, generator=base)
        if seed:
            values += torch.empty(tensor.shape).normal_(0, 0.002, generator=own)
        writer.write(tensor.name, values.to(torch_dtype(tensor.dtype)))
    writer.write_index()
    writer.close()


class Run(NamedTuple):
    """Seconds, seconds of all cores together, and VmHWM in bytes of a process."""

    wall: float
    cpu: float
    peak: int


def run(command: list[str], env: dict[str, str], log: Path) -> Run:
    """Run a process to its end."""
    start = time.monotonic()
    peak = 0
    with log.open("wb") as said:
        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said)
        status = Path(f"/proc/{child.pid}/status")
        while True:
            with contextlib.suppress(OSError):
                lines = status.read_text().splitlines()
                found = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")]
                peak = max([peak, *found])
            ended, code, usage = os.wait4(child.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.01)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Run(time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak)


def warm(folder: Path) -> None:
    """Read the inputs, so that they are in the page cache."""
    for path in sorted(folder.glob("*/model.safetensors")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def same(one: Path, other: Path) -> float:
    """Largest difference of two results."""
    from safetensors import safe_open

    largest = 0.0
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        assert set(a.keys()) == set(b.keys())
        for name in a.keys():  # noqa: SIM118
            difference = (a.get_tensor(name).float() - b.get_tensor(name).float()).abs().max()
            largest = max(largest, float(difference))
    return largest


def main() -> None:
    """Make the checkpoints, run both, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mergekit", required=True, help="path of mergekit-yaml")
    parser.add_argument("--folder", type=Path, default=Path("build/merge_speed"))
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default="slerp,ties")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    for number, name in enumerate(MODELS):
        make_checkpoint(folder / "models" / name, arguments.layers, number)
    size = (folder / "models/one/model.safetensors").stat().st_size
    print(
        f"{arguments.layers} layers, {size / 1e9:.2f} GB a checkpoint in bfloat16; page cache warm"
    )
    cache = folder / "cache"
    env = {**os.environ, "EDGEPACK_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

    def edgepack(config: Path, out: Path) -> list[str]:
        return [sys.executable, "-m", "edgepack", "merge", str(config), str(out)]

    def mergekit(config: Path, out: Path) -> list[str]:
        return [
            arguments.mergekit,
            str(config),
            str(out),
            "--lazy-unpickle",
            "--no-write-model-card",
        ]

    programs: dict[str, Callable[[Path, Path], list[str]]] = {
        "mergekit": mergekit,
        "edgepack": edgepack,
    }
    for method in arguments.methods.split(","):
        config = folder / f"{method}.yaml"
        recipe = json.loads(json.dumps(RECIPES[method]))
        models = folder / "models"
        recipe["base_model"] = str(models / recipe["base_model"])
        for entry in recipe["models"]:
            entry["model"] = str(models / entry["model"])
        config.write_text(yaml.safe_dump(recipe, sort_keys=False))
        found: dict[str, list[Run]] = {name: [] for name in programs}
        for number in range(arguments.rounds):
            order = list(programs) if number % 2 == 0 else list(programs)[::-1]
            for name in order:
                out = folder / f"out-{name}"
                shutil.rmtree(out, ignore_errors=True)
                shutil.rmtree(cache, ignore_errors=True)
                os.sync()
                warm(models)
                found[name].append(run(programs[name](config, out), env, folder / "log"))
        report(method, found, folder)


def report(method: str, found: dict[str, list[Run]], folder: Path) -> None:
    """Print medians and ratios, and how far apart the results are."""
    weights = [folder / f"out-{name}" for name in found]
    files = [next(path.glob("*.safetensors")) for path in weights]
    print(f"\n{method}: largest difference of the results {same(*files):.3g}")
    medians = {}
    for name, runs in found.items():
        one = Run(*(statistics.median(values) for values in zip(*runs, strict=True)))
        medians[name] = one
        each = ", ".join(f"{entry.wall:.1f}" for entry in runs)
        print(
            f"  {name:<9} {one.wall:6.1f} s ({each}), {one.cpu:6.1f} s of CPU, "
            f"peak {one.peak / 1e6:5.0f} MB"
        )
    ours, theirs = medians["edgepack"], medians["mergekit"]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print("  ratio: time {:.2f}, CPU {:.2f}, memory {:.2f}".format(*ratios), flush=True)


if __name__ == "__main__":
    main()
