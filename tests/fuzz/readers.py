"""All that edgepack reads, each as a way to spoil it and the command that then meets it."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.fuzz.binary import Gguf, spoil_gguf, spoil_metadata, spoil_onnx
from tests.fuzz.harness import Reader, command
from tests.fuzz.mutators import spoil_bytes, spoil_json, spoil_template, spoil_yaml
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
ROWS = (
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]},
    {"prompt": "What is it?", "response": "A fox."},
    {"text": "The quick brown fox jumps over the lazy dog."},
)


def make_template(folder: Path) -> None:
    """A whole case of everything: a model as folder ``m``, ``m.gguf`` and two built folders."""
    import edgepack
    from edgepack.checkpoint import open_checkpoint

    make_model(folder / "m", hidden=64, layers=1, heads=4, kv_heads=2, intermediate=64, vocab=300)
    (folder / "m/chat_template.jinja").write_text(CHAT)
    names = _header((folder / "m/model.safetensors").read_bytes())
    del names["__metadata__"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "index.json").write_text(json.dumps(index))
    write_gguf(folder / "m.gguf", open_checkpoint(str(folder / "m")), "F32")
    (folder / "text.txt").write_text("\n".join(TEXT * 20))
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 20))
    quick = {k: v for k, v in RECIPE.items() if k != "recover"}
    for name, recipe in {
        "recipe": RECIPE,
        "quick": quick,
        "gguf": {**quick, "model": "m.gguf"},
        "share": {**quick, "compress": {"target_size": "50%", "ranks": [0, 2]}},
        "chats": {**quick, "calibrate": {**RECIPE["calibrate"], "source": "chats.jsonl"}},
    }.items():
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    bench = profiles.write(folder / "bench.json", _bench())
    for target in ("gguf", "onnx"):
        out = folder / f"out-{target}"
        edgepack.build(folder / "quick.yaml", target, out=out, device_profile=bench)
        _write_adapter(folder / f"out-{target}")
    _write_training(folder)


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


def _header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, Any] = json.loads(data[8 : 8 + length])
    return found


# ---------------------------------------------------------------------------- reading


def plan_and_open(recipe: str, model: str, folder: Path) -> None:
    """`edgepack plan`, then what `build` reads before its first long stage: tokenizer, metadata,
    all tensors, a few tokens through the model."""
    import torch

    from edgepack.checkpoint import open_checkpoint
    from edgepack.model.decoder import Decoder

    command("plan", str(folder / recipe))
    checkpoint = open_checkpoint(model, folder)
    checkpoint.gguf_metadata()
    checkpoint.generation_config()
    for name in checkpoint.specs:
        checkpoint.tensor(name)
    with torch.no_grad():
        Decoder(checkpoint).logits(torch.arange(8)[None])


def calibration_text(folder: Path) -> None:
    """The calibration's text from a JSONL, as `build` reads it after planning."""
    from edgepack.calibration import text
    from edgepack.checkpoint import open_checkpoint
    from edgepack.recipe.read import load

    command("plan", str(folder / "chats.yaml"))
    recipe = load(folder / "chats.yaml")
    model = open_checkpoint("m", folder)
    text.read_tokens(model, recipe.calibrate, folder / recipe.calibrate.source)


def template_renders(folder: Path) -> None:
    """Rows of chats through the template, and the openings of chats that models write."""
    from edgepack.calibration.self_text import chat_script
    from edgepack.checkpoint import open_checkpoint

    calibration_text(folder)
    chat_script(open_checkpoint("m", folder).tokenizer)


def chat(name: str, folder: Path) -> None:
    """One token of an answer, through the runtime."""
    command("chat", str(folder / name), "--prompt", "Hi", "--max-tokens", "1", "--context", "64")


def show_and_chat(folder: Path) -> None:
    """Both look at the manifest."""
    command("show", str(folder / "out-gguf"))
    chat("out-gguf", folder)


def show_recipe(folder: Path) -> None:
    """Read it, and plan it."""
    command("show", str(folder / "recipe.yaml"))
    command("plan", str(folder / "recipe.yaml"))


def plan_for_device(folder: Path) -> None:
    """A recipe for the device of a profile, with formats of its own and for a size."""
    for name in ("quick", "share"):
        command("plan", str(folder / f"{name}.yaml"), "--device-profile", f"{folder}/bench.json")


def compare_benchmarks(folder: Path) -> None:
    """A benchmark beside itself."""
    command("bench", "--compare", str(folder / "bench.json"), str(folder / "bench.json"))


def show_and_plan_gguf(folder: Path) -> None:
    """A model of others, as a source."""
    command("show", str(folder / "m.gguf"))
    plan_and_open("gguf.yaml", "m.gguf", folder)


def show_and_chat_adapter(folder: Path) -> None:
    """Factors beside the base."""
    command("show", str(folder / "out-gguf/factors.gguf"))
    chat("out-gguf", folder)


def adapter(folder: Path) -> None:
    """A user's adapter: its files one by one, as those of others, and then as a whole."""
    from edgepack.adapters import files
    from edgepack.adapters.base import PackedBase

    command("show", str(folder / "out-gguf"))
    base, place = PackedBase.open(folder / "out-gguf"), folder / "out-gguf/adapters/notes"
    for path in (place / "adapter.gguf", place / "peft", place):
        files.read(path, base)


def adapter_of_graph(folder: Path) -> None:
    """An adapter beside the factors of a graph."""
    from edgepack.runtimes.models import Model

    place = folder / "out-onnx"
    path = place / "adapters/notes/peft/adapter_model.safetensors"
    model = replace(Model.from_path(place), adapters=((path, 1.0),))
    with model.open(64) as runtime:
        runtime.logits([1, 2, 3])


def graph_read_back(folder: Path) -> None:
    """An ONNX folder as a checkpoint: every weight, and a few tokens through the model."""
    import torch

    from edgepack.export.onnx_checkpoint import OnnxCheckpoint
    from edgepack.model.decoder import Decoder

    checkpoint = OnnxCheckpoint(folder / "out-onnx")
    for name in checkpoint.formats:
        checkpoint.weight(name)
    with torch.no_grad():
        Decoder(checkpoint).logits(torch.arange(8)[None])


def training_step(folder: Path) -> None:
    """Two steps with a training graph, the second with the state of the first."""
    from edgepack.core.progress import finish
    from edgepack.finetune.graph.runner import read_factors, train

    rows = [([5, 6, 7], [6, 7, -100])]
    state = folder / "training/state.safetensors"
    finish(train(folder / "training", rows, steps=2, rate=1e-3, state_file=state, threads=1))
    read_factors(folder / "training/factors.safetensors")


# ---------------------------------------------------------------------------- spoiling


def chance_of(reader: str, number: int) -> random.Random:
    """The chance of an input: the same for ever."""
    return random.Random(f"{reader} {number}")


Make = Callable[[bytes, random.Random], bytes]


def spoil_file(reader: str, files: dict[str, Make], folder: Path, number: int) -> list[str]:
    """Spoil one of `files`, which are whole in the folder."""
    chance = chance_of(reader, number)
    pattern = chance.choice(list(files))
    name = pattern
    if "*" in pattern:
        name = str(next(folder.glob(pattern)).relative_to(folder))
    source = folder / ("index.json" if name == INDEX else name)
    (folder / name).write_bytes(files[pattern](source.read_bytes(), chance))
    out = Path(name).parts[0]
    manifest = f"{out}/{MANIFEST}"
    if not out.startswith("out-") or name == manifest or chance.random() < 0.03:
        return [name]
    _sign(folder / manifest, str((folder / name).relative_to(folder / out)), folder / name)
    return [name, manifest]


MANIFEST = "manifest.json"


def _sign(manifest: Path, name: str, file: Path) -> None:
    """Let the manifest say what the spoiled file is: who means harm does so as well, and a digest
    that is wrong would be all that a reader looks at."""
    content = json.loads(manifest.read_bytes())
    data = file.read_bytes()
    known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if name in content["files"]:
        content["files"][name] = known
    manifest.write_text(json.dumps(content))


NOTES = "out-gguf/adapters/notes"
INDEX = "m/model.safetensors.index.json"


def json_file(data: bytes, chance: random.Random) -> bytes:
    """Any JSON file."""
    return spoil_json(_parsed(data), chance)


@cache
def _parsed(data: bytes) -> Any:
    return json.loads(data)


def yaml_file(data: bytes, chance: random.Random) -> bytes:
    """A recipe."""
    return spoil_yaml(_parsed(data), chance)


def safetensors_file(data: bytes, chance: random.Random) -> bytes:
    """Its header as JSON, or bytes of it, or of the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    kind = chance.random()
    if kind < 0.4:
        return spoil_bytes(data, chance, 8 + length)
    if kind < 0.5:
        return spoil_bytes(data, chance)
    header = spoil_json(_header(data), chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def gguf_file(data: bytes, chance: random.Random) -> bytes:
    """One key or tensor."""
    return spoil_gguf(_gguf(data), chance)


@cache
def _gguf(data: bytes) -> Gguf:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        return Gguf.read(Path(file.name))


def gguf_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes of the header, mostly."""
    return spoil_bytes(data, chance, chance.choice((64, 2_000, 20_000, None)))


def jsonl_file(data: bytes, chance: random.Random) -> bytes:
    """One row of many."""
    rows = data.splitlines()
    at = chance.randrange(len(rows))
    rows[at] = spoil_json(_parsed(rows[at]), chance)
    found = b"\n".join(rows)
    return spoil_bytes(found, chance) if chance.random() < 0.05 else found


def template_file(data: bytes, chance: random.Random) -> bytes:
    """A chat template."""
    return spoil_template(data.decode(), chance).encode("utf-8", "surrogatepass")


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

FILES: dict[str, tuple[dict[str, Make], Callable[[Path], None]]] = {
    "config.json": (
        {"m/config.json": json_file, "m/generation_config.json": json_file},
        partial(plan_and_open, "quick.yaml", "m"),
    ),
    "shard index": ({INDEX: json_file}, partial(plan_and_open, "quick.yaml", "m")),
    "safetensors": (
        {"m/model.safetensors": safetensors_file},
        partial(plan_and_open, "quick.yaml", "m"),
    ),
    "tokenizer": (
        {f"m/{name}": json_file for name in TOKENIZER},
        partial(plan_and_open, "quick.yaml", "m"),
    ),
    "chat template": ({"m/chat_template.jinja": template_file}, template_renders),
    "GGUF keys": ({"m.gguf": gguf_file}, show_and_plan_gguf),
    "GGUF bytes": ({"m.gguf": gguf_bytes}, show_and_plan_gguf),
    "recipe": ({"recipe.yaml": yaml_file}, show_recipe),
    "JSONL": ({"chats.jsonl": jsonl_file}, calibration_text),
    "manifest": ({"out-gguf/manifest.json": json_file}, show_and_chat),
    "base.gguf": (
        {"out-gguf/base.gguf": gguf_file, "out-gguf/./base.gguf": gguf_bytes},
        partial(chat, "out-gguf"),
    ),
    "adapter": (
        {"out-gguf/factors.gguf": gguf_file, "out-gguf/./factors.gguf": gguf_bytes},
        show_and_chat_adapter,
    ),
    "user's adapter": (
        {
            f"{NOTES}/adapter.json": json_file,
            f"{NOTES}/adapter.gguf": gguf_file,
            f"{NOTES}/peft/adapter_config.json": json_file,
            f"{NOTES}/peft/adapter_model.safetensors": safetensors_file,
        },
        adapter,
    ),
    "adapter of a graph": (
        {
            "out-onnx/adapters/notes/peft/adapter_model.safetensors": safetensors_file,
            "out-onnx/factors.onnx_adapter": spoil_bytes,
        },
        adapter_of_graph,
    ),
    "ONNX graph": ({"out-onnx/onnx/*.onnx": spoil_onnx}, partial(chat, "out-onnx")),
    "ONNX read back": (
        {
            "out-onnx/onnx/*.onnx": spoil_onnx,
            "out-onnx/./onnx/*.onnx": spoil_metadata,
            "out-onnx/config.json": json_file,
        },
        graph_read_back,
    ),
    "device profile": ({"bench.json": json_file}, plan_for_device),
    "benchmark": ({"bench.json": json_file}, compare_benchmarks),
    "training graph": (
        {
            "training/training.json": json_file,
            "training/theta.f32": spoil_bytes,
            "training/training.onnx": spoil_onnx,
            "training/state.safetensors": safetensors_file,
            "training/factors.safetensors": safetensors_file,
        },
        training_step,
    ),
    "ONNX folder": (
        {
            f"out-onnx/{name}": json_file
            for name in ("genai_config.json", "config.json", "tokenizer.json", "manifest.json")
        },
        partial(chat, "out-onnx"),
    ),
}

READERS = {
    name: Reader(name, partial(spoil_file, name, files), read, may_name_any=name == "recipe")
    for name, (files, read) in FILES.items()
}

SLOW = {"chat template": 8, "JSONL": 2}
"""Readers that start a process for every input (templates run in a child with limits of its own)
get so many times fewer inputs."""
