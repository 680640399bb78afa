"""The whole case: one valid file of everything that edgepack reads, made on the spot."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import yaml

from tests.support import profiles
from tests.support.tiny import CHAT, TEXT, make_model, write_gguf

RECIPE = {
    "model": "m",
    "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
    "compress": {
        "format": "q4_0",
        "rank": 2,
        "factors": "f16",
        "damping": [0.1],
        "overrides": {"*.q_proj": {"rank": 4}},
    },
    "recover": {"steps": 2},
    "export": {"name": "x", "measure": {"tokens": 0}},
}
MERGES = [
    {
        "name": "first",
        "merge_method": "slerp",
        "slices": [
            {
                "sources": [
                    {"model": "m", "layer_range": [0, 1]},
                    {"model": "n", "layer_range": [0, 1]},
                ]
            }
        ],
        "base_model": "m",
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
        "dtype": "float32",
    },
    {
        "merge_method": "ties",
        "base_model": "m",
        "models": [
            {"model": "first", "parameters": {"weight": 0.5, "density": 0.5}},
            {"model": {"model": "m", "lora": "peft"}, "parameters": {"weight": [0.1, 0.9]}},
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "tokenizer": {
            "source": "union",
            "tokens": {
                "<|im_start|>": {"source": {"kind": "model_token", "model": "m", "token_id": 1}},
                "<|im_end|>": {"source": "m", "force": True},
            },
            "pad_to_multiple_of": 8,
        },
        "chat_template": "chatml",
        "out_dtype": "bfloat16",
    },
]
"""Of mergekit's kind, two documents: the second takes the first's result and an adapter."""
ROWS = (
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]},
    {"prompt": "What is it?", "response": "A fox."},
    {"instruction": "Say it", "input": "loud", "output": "FOX"},
    {"text": "The quick brown fox jumps over the lazy dog."},
)
FAMILIES = (
    *("gemma2", "gemma3_text", "gemma4_text", "granitemoehybrid", "lfm2", "lfm2_moe", "phi3"),
    *("qwen3_5_text", "qwen3_moe", "ministral3", "olmo3", "smollm3", "exaone4", "opt"),
)
"""Families whose configurations have keys that no other has."""
MANIFEST = "manifest.json"
INDEX = "m/model.safetensors.index.json"
SMALL = {"hidden": 64, "layers": 1, "heads": 4, "kv_heads": 2, "intermediate": 64, "vocab": 300}


def make_template(folder: Path) -> None:
    """A whole case of everything: a model as folder ``m``, ``m.gguf``, two built folders, a cache,
    and what else is read beside them."""
    import edgepack
    from edgepack.checkpoint import open_checkpoint

    make_model(folder / "m", **SMALL)
    (folder / "m/chat_template.jinja").write_text(CHAT)
    names = header_of((folder / "m/model.safetensors").read_bytes())
    del names["__metadata__"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "index.json").write_text(json.dumps(index))
    write_gguf(folder / "m.gguf", open_checkpoint(str(folder / "m")), "F32")
    _write_models(folder)
    _write_texts(folder)
    _write_recipes(folder)
    bench = profiles.write(folder / "bench.json", _bench())
    for target in ("gguf", "onnx"):
        out = folder / f"out-{target}"
        edgepack.build(folder / "quick.yaml", target, out=out, device_profile=bench)
        _write_adapter(folder / f"out-{target}")
    edgepack.build(folder / "sized.yaml", "gguf", out=folder / "out-sized")
    for stage in ("grids", "allocate", "decompose"):
        shutil.copytree(Path(os.environ["EDGEPACK_CACHE"]) / stage, folder / "cache" / stage)
    _write_training(folder)


def _write_models(folder: Path) -> None:
    """Models in the other ways in which they are stored, and an adapter."""
    from tests.support.fine_tunes import make_adapter
    from tests.support.scaled import make_fp8
    from tests.support.tokenizer_files import write_sentencepiece, write_tekken

    make_model(folder / "n", seed=1, **SMALL)
    make_fp8(folder / "fp8", "qwen3")
    shutil.rmtree(folder / "fp8-plain")
    make_adapter(folder / "m", folder / "peft")
    for family in FAMILIES:
        make_model(folder / "families" / family, family, layers=2)
    spm = shutil.copytree(folder / "m", folder / "spm")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (spm / name).unlink()
    write_sentencepiece(spm)
    (spm / "added_tokens.json").write_text("{}")
    for kind in ("tokenizer.json", "tekken.json", "tokenizer.model"):
        place = folder / "tokenizers" / kind
        place.mkdir(parents=True)
        if kind == "tokenizer.json":
            for name in (kind, "tokenizer_config.json"):
                shutil.copy(folder / "m" / name, place)
        elif kind == "tekken.json":
            write_tekken(place / kind)
        else:
            write_sentencepiece(place)
            (place / "added_tokens.json").write_text("{}")


def _write_texts(folder: Path) -> None:
    """Texts and data sets."""
    (folder / "text.txt").write_text("\n".join(TEXT * 20))
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 20))
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "few.json").write_text(json.dumps(ROWS))


def _write_recipes(folder: Path) -> None:
    quick = {k: v for k, v in RECIPE.items() if k != "recover"}
    for name, recipe in {
        "recipe": RECIPE,
        "quick": quick,
        "gguf": {**quick, "model": "m.gguf"},
        "share": {**quick, "compress": {"target_size": "50%", "ranks": [0, 2]}},
        "sized": {**quick, "compress": {"target_size": "120kB", "ranks": [0, 2]}},
        "chats": {**quick, "calibrate": {**RECIPE["calibrate"], "source": "chats.jsonl"}},
        "spm": {**quick, "model": "spm"},
        "fp8": {**quick, "model": "fp8"},
        "tuned": {**quick, "model": {"base": "m", "adapter": "peft"}},
    }.items():
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    (folder / "merge.yaml").write_text(yaml.safe_dump_all(MERGES))
    _write_requests(folder)


def _write_requests(folder: Path) -> None:
    """What pages, clients of the API, workers and the hub say."""
    hello = [{"role": "user", "content": "Hi"}]
    sampling = {"max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"]}
    page = [
        {"id": "a", "to": "app", "do": "hello"},
        {"id": "b", "to": "app", "do": "models"},
        {"id": "c", "to": "chat", "do": "chat", "messages": hello, "scales": {}, **sampling},
        {"id": "d", "to": "chat", "do": "load", "model": "0", "adapters": ["notes"], "context": 64},
        {"id": "e", "to": "app", "do": "remove", "model": "0", "adapter": "x"},
        {"id": "f", "to": "tune", "do": "plan", "model": "0", "adapter": "x", "examples": [{}]},
        {"id": "g", "to": "bench", "do": "bench", "model": "0", "cases": [], "rounds": 1},
        {"id": "h", "to": "tune", "do": "train", "model": "0", "adapter": "x", "examples": [{}]},
        {"id": "i", "to": "tune", "do": "cancel", "request": "h"},
        {"id": "j", "to": "app", "do": "forget", "model": "0", "adapter": "x"},
    ]
    (folder / "page.requests").write_text("\n".join(map(json.dumps, page)))
    part = {"id": "i", "kind": "model", "name": "m.gguf", "part": "1", "of": "1"}
    (folder / "import.request").write_text(json.dumps({"query": part, "length": "3"}))
    chat = {"model": "m", "messages": hello, "logit_bias": {"3": 1.0}, "n": 1, **sampling}
    (folder / "chat.request").write_text(json.dumps(chat))
    text = {"prompt": ["Hi"], "logprobs": 1, "echo": False, "grammar": 'root ::= "a"', **sampling}
    (folder / "text.request").write_text(json.dumps(text))
    lines = [
        {"event": "ready", "version": 1},
        {"id": "a", "event": "loaded", "seconds": 1},
        {"id": "b", "event": "token", "text": "x"},
        {"id": "b", "event": "ended", "reason": "stop"},
    ]
    (folder / "worker.lines").write_text("\n".join(map(json.dumps, lines)))
    hub = shutil.copytree(folder / "m", folder / "hub")
    shutil.copy(folder / "index.json", hub / "model.safetensors.index.json")
    answers = {"status": 206, "range": "bytes {0}-{1}/{2}", "sha": "0" * 40, "cut": 0, "fail": ""}
    (hub / "answers.json").write_text(json.dumps(answers))


def _bench() -> dict[str, Any]:
    """Of a phone, on which a model was run."""
    times = {"f32": 0.4, "f16": 0.2, "q8_0": 0.1, "q4_0": 0.05, "q2_0": 0.5}
    cases = (("prompt", 64, 0.5), ("decode", 16, 0.4))
    timings = [profiles.timing(*case) for case in cases]
    work = {"types": {"q4_0": 18 * 10**6}, "flops": 10**8, "head": 10**7, "head_type": "q4_0"}
    return profiles.content(times, models=[profiles.model(work, *timings)])


def _write_adapter(out: Path) -> None:
    from edgepack.adapters import files
    from edgepack.adapters.base import PackedBase
    from tests.support.adapters import random_adapter

    base = PackedBase.open(out)
    adapter = random_adapter(base, rank=2, names=("q_proj",))
    files.write(files.place(out, "notes"), adapter, base)


def _write_training(folder: Path) -> None:
    """A training graph, the state after a step, and the factors after two."""
    from edgepack.core.progress import finish
    from edgepack.finetune.graph.folder import export_training
    from edgepack.finetune.graph.options import Options
    from edgepack.finetune.graph.runner import train

    place, rows = folder / "training", [([5, 6, 7], [6, 7, -100])]
    finish(export_training(folder / "out-onnx", place, Options(length=8)))
    state = place / "state.safetensors"
    run = train(place, rows, steps=2, rate=1e-3, state_file=state, every=1, threads=1)
    next(run)
    next(run)  # the state of the first step is written
    run.close()
    finish(train(place, rows, steps=2, rate=1e-3, threads=1)).write_factors(
        place / "factors.safetensors"
    )


def header_of(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, Any] = json.loads(data[8 : 8 + length])
    return found
