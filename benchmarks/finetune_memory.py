"""Memory and speed of a training step on packed weights, beside what is planned.

    python -m benchmarks.finetune_memory [--rounds 3]

MeSP's set-up (arXiv 2602.13069, table 1): Qwen2.5-0.5B, rank 8 on all seven projections, batch 1,
256 tokens, exact gradients. They state a peak of 136 MB by the framework, and 361 MB for MeBP;
MobileFineTuner's process has 2,887 MB (arXiv 2512.08211, 128 tokens). A random model of that shape
in q4_0 with a head in q8_0 serves, since values change no sizes; and SmolLM2-135M-Instruct.

Every row is a process of its own. `tensors` is the most that torch has allocated at a time by its
own profiler: parameters, gradients, moments, activations, decoded matrices. `process` is the peak
of the resident memory, libraries included. `planned` is what `--memory` is held against, for
training with general text. Freed memory is handed back at once, as with `--memory`. All positions
are learnt, the worst case for the logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.same_type import MODEL, RESULTS

QWEN = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
TOKENS, RANK = 256, 8
ROWS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "moments in 8 bits": {"optimizer_states": "int8"},
    "moments in 8 bits, activations on disk": {"optimizer_states": "int8", "activations": "disk"},
    "products in bfloat16": {"arithmetic": "bfloat16"},
}
PAGE = Path(RESULTS) / "finetune_memory.md"


def random_gguf(path: Path) -> None:
    """A random model of Qwen2.5-0.5B's shape, blocks in q4_0 and the tied head in q8_0."""
    import torch
    import transformers

    from edgepack.checkpoint import open_checkpoint
    from edgepack.core import plugins
    from edgepack.export.gguf import write_model

    folder = path.parent / "model"
    config = transformers.Qwen2Config(**QWEN)
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    model.tie_weights()
    draw = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data.copy_(0.02 * torch.randn(value.shape, generator=draw))
    model.save_pretrained(folder)
    del model
    _tokenizer(folder)
    checkpoint = open_checkpoint(str(folder))
    formats = {
        name: "q4_0" if spec.block is not None else "q8_0"
        for name, spec in checkpoint.specs.items()
        if len(spec.shape) > 1
    }

    def load(name: str) -> Any:
        return plugins.find("formats", formats[name]).quantize(checkpoint.tensor(name))

    write_model(path, checkpoint, formats, load)


def _tokenizer(folder: Path) -> None:
    """SmolLM2's tokenizer, padded to the vocabulary: training reads none of it."""
    from tokenizers import AddedToken

    from edgepack.checkpoint import open_checkpoint

    tokenizer = open_checkpoint(MODEL).tokenizer
    missing = QWEN["vocab_size"] - len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<|more_{i}|>", special=False) for i in range(missing)])
    tokenizer.save_pretrained(folder)


def work(model: Path, given: dict[str, Any], steps: int) -> dict[str, float]:
    """In a process of its own: train, and say what it took."""
    import torch

    from edgepack.adapters.base import PackedBase
    from edgepack.core.hardware import return_freed_memory
    from edgepack.finetune.arithmetic import choose
    from edgepack.finetune.examples import Example
    from edgepack.finetune.frozen import FrozenModel
    from edgepack.finetune.memory import Packed, choose_layout
    from edgepack.finetune.trained import Stack, targets
    from edgepack.finetune.training import Data, Run
    from edgepack.recipe.training import Finetune

    base = PackedBase(model.parent, "benchmark", "gguf", {model.name: "0" * 64})
    frozen = base.checkpoint
    options = Finetune(data="-", r=RANK, steps=steps, batch_size=1, held_out=0, **given)
    names = targets(base.checkpoint, options)
    layout = choose_layout(Packed(frozen, base.ranks), names, options, TOKENS)
    draw = torch.Generator().manual_seed(0)
    vocab = frozen.dimensions.vocab_size
    ids = torch.randint(0, min(vocab, 40000), (TOKENS + 1,), generator=draw)
    return_freed_memory()
    trained = Stack.start(base, names, options, {})
    run = Run(
        FrozenModel(frozen, choose(options.arithmetic)),
        trained,
        Data([Example(ids[:-1], ids[1:])]),
        options,
        model.parent / "state",
        layout.kind,
        layout.positions,
    )
    seconds = []
    with torch.no_grad():
        for _ in range(steps):
            begin = time.monotonic()
            run.step()
            seconds.append(time.monotonic() - begin)
        process = _peak()
        tensors = _kept(run) + _allocated(run.step)
    return {
        "parameters": sum(master.numel() for master in trained.masters.values()),
        "tensors": tensors,
        "process": process,
        "planned": layout.peak,
        "seconds": median(seconds[1:]),
    }


def _kept(run: Any) -> int:
    """Bytes of masters and moments, which live from step to step."""
    states = (part for state in run.states.values() for part in state.values())
    return sum(tensor.nbytes for tensor in (*run.trained.masters.values(), *states))


def _allocated(work: Callable[[], object]) -> int:
    """The most that a call has allocated at a time."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs=3)
    arguments = parser.parse_args()
    if arguments.work:
        path, given, steps = arguments.work
        print(json.dumps(work(Path(path), json.loads(given), int(steps))))
        return
    rows = ["| model | | trained | tensors | process | planned | a step | tokens/s |"]
    rows.append("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        models = {"Qwen2.5-0.5B's shape": Path(place) / "base.gguf"}
        random_gguf(models["Qwen2.5-0.5B's shape"])
        models["SmolLM2-135M"] = _smollm(Path(place))
        for name, path in models.items():
            for about, given in ROWS.items():
                found = _measured(path, given, arguments.rounds)
                if found is None:
                    continue
                rows.append(_row(name, about, found))
                print(rows[-1], flush=True)
    PAGE.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _smollm(place: Path) -> Path:
    from edgepack.checkpoint import open_checkpoint

    source = open_checkpoint(MODEL)
    path = place / "smollm" / "base.gguf"
    path.parent.mkdir()
    path.symlink_to(source.path)  # type: ignore[attr-defined]
    return path


def _measured(path: Path, given: dict[str, Any], rounds: int) -> dict[str, float] | None:
    """Medians of several processes; None where the machine lacks the arithmetic."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.finetune_memory"]
        command += ["--work", str(path), json.dumps(given), "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr.splitlines()[-1], file=sys.stderr)
            return None
        found.append(json.loads(done.stdout))
    return {key: median(each[key] for each in found) for key in found[0]}


def _row(name: str, about: str, found: dict[str, float]) -> str:
    sizes = " | ".join(f"{found[key] / 1e6:,.0f} MB" for key in ("tensors", "process", "planned"))
    trained = f"{found['parameters'] / 1e6:.1f} M"
    speed = f"{found['seconds']:.2f} s | {TOKENS / found['seconds']:.0f}"
    return f"| {name} | {about} | {trained} | {sizes} | {speed} |"


if __name__ == "__main__":
    main()
