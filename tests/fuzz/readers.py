"""All that edgepack reads, each as a way to spoil it and the command that then meets it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from tests.fuzz import reading, servers
from tests.fuzz.binary import spoil_metadata, spoil_onnx
from tests.fuzz.case import FAMILIES, INDEX
from tests.fuzz.harness import Reader
from tests.fuzz.mutators import spoil_bytes
from tests.fuzz.parsers import PARSERS, Parser
from tests.fuzz.reading import plan_and_open
from tests.fuzz.spoil import (
    Make,
    chance_of,
    gguf_bytes,
    gguf_file,
    json_file,
    jsonl_file,
    safetensors_file,
    spoil_file,
    template_file,
    yaml_documents,
    yaml_file,
)

NOTES = "out-gguf/adapters/notes"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
NAMES_ANY = {"recipe", "merge", "model and adapter", "located recipe"}
"""Readers of what a user wrote, who may name any file."""

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
    "chat template": ({"m/chat_template.jinja": template_file}, reading.template_renders),
    "GGUF keys": ({"m.gguf": gguf_file}, reading.show_and_plan_gguf),
    "GGUF bytes": ({"m.gguf": gguf_bytes}, reading.show_and_plan_gguf),
    "recipe": ({"recipe.yaml": yaml_file}, reading.show_recipe),
    "JSONL": ({"chats.jsonl": jsonl_file}, reading.calibration_text),
    "manifest": ({"out-gguf/manifest.json": json_file}, reading.show_and_chat),
    "base.gguf": (
        {"out-gguf/base.gguf": gguf_file, "out-gguf/./base.gguf": gguf_bytes},
        partial(reading.chat, "out-gguf"),
    ),
    "adapter": (
        {"out-gguf/factors.gguf": gguf_file, "out-gguf/./factors.gguf": gguf_bytes},
        reading.show_and_chat_adapter,
    ),
    "user's adapter": (
        {
            f"{NOTES}/adapter.json": json_file,
            f"{NOTES}/adapter.gguf": gguf_file,
            f"{NOTES}/peft/adapter_config.json": json_file,
            f"{NOTES}/peft/adapter_model.safetensors": safetensors_file,
        },
        reading.adapter,
    ),
    "adapter of a graph": (
        {
            "out-onnx/adapters/notes/peft/adapter_model.safetensors": safetensors_file,
            "out-onnx/factors.onnx_adapter": spoil_bytes,
        },
        reading.adapter_of_graph,
    ),
    "ONNX graph": ({"out-onnx/onnx/*.onnx": spoil_onnx}, partial(reading.chat, "out-onnx")),
    "ONNX read back": (
        {
            "out-onnx/onnx/*.onnx": spoil_onnx,
            "out-onnx/./onnx/*.onnx": spoil_metadata,
            "out-onnx/config.json": json_file,
        },
        reading.graph_read_back,
    ),
    "device profile": ({"bench.json": json_file}, reading.plan_for_device),
    "benchmark": ({"bench.json": json_file}, reading.compare_benchmarks),
    "training graph": (
        {
            "training/training.json": json_file,
            "training/theta.f32": spoil_bytes,
            "training/training.onnx": spoil_onnx,
            "training/state.safetensors": safetensors_file,
            "training/factors.safetensors": safetensors_file,
        },
        reading.training_step,
    ),
    "ONNX folder": (
        {
            f"out-onnx/{name}": json_file
            for name in ("genai_config.json", "config.json", "tokenizer.json", "manifest.json")
        },
        partial(reading.chat, "out-onnx"),
    ),
    "merge": ({"merge.yaml": yaml_documents}, reading.check_merge),
    "model and adapter": (
        {
            "peft/adapter_config.json": json_file,
            "peft/adapter_model.safetensors": safetensors_file,
            "tuned.yaml": yaml_file,
        },
        reading.plan_tuned,
    ),
    "training data": ({"few.jsonl": jsonl_file, "few.json": json_file}, reading.training_data),
    "sentencepiece": (
        {
            "spm/tokenizer.model": spoil_bytes,
            "spm/added_tokens.json": json_file,
            "spm/tokenizer_config.json": json_file,
        },
        partial(plan_and_open, "spm.yaml", "spm"),
    ),
    "FP8": (
        {"fp8/config.json": json_file, "fp8/model.safetensors": safetensors_file},
        partial(plan_and_open, "fp8.yaml", "fp8"),
    ),
    "init": ({"m/config.json": json_file, "bench.json": json_file}, reading.init),
    "push": (
        {
            "out-gguf/manifest.json": json_file,
            "out-gguf/base.gguf": gguf_bytes,
            "out-gguf/report.md": spoil_bytes,
            "out-onnx/config.json": json_file,
            "out-onnx/factors.onnx_adapter": spoil_bytes,
            f"{NOTES}/adapter.json": json_file,
        },
        reading.push,
    ),
    "verify": (
        {
            "out-gguf/manifest.json": json_file,
            "out-gguf/base.gguf": gguf_file,
            "out-gguf/factors.gguf": gguf_bytes,
            "out-gguf/recipe.yaml": yaml_file,
            "out-onnx/manifest.json": json_file,
            "out-onnx/config.json": json_file,
            "out-onnx/genai_config.json": json_file,
            "out-onnx/tokenizer.json": json_file,
            "out-onnx/onnx/*.onnx": spoil_onnx,
            "out-onnx/factors.onnx_adapter": spoil_bytes,
            f"{NOTES}/adapter.json": json_file,
            f"{NOTES}/adapter.gguf": gguf_file,
            f"{NOTES}/peft/adapter_config.json": json_file,
            f"{NOTES}/peft/adapter_model.safetensors": safetensors_file,
        },
        reading.verify,
    ),
    "located recipe": (
        {"out-gguf/recipe.yaml": yaml_file, "out-gguf/manifest.json": json_file},
        reading.located_recipe,
    ),
    "cache": (
        {
            **{f"cache/{stage}/*/stage.json": json_file for stage in ("decompose", "allocate")},
            "cache/grids/*/*q_proj*.json": json_file,
            "cache/allocate/*/*q_proj*.json": json_file,
            "cache/decompose/*/*q_proj*.safetensors": safetensors_file,
        },
        reading.cache,
    ),
    "serve": ({"chat.request": json_file, "text.request": json_file}, servers.serve),
    "demo": ({"page.requests": jsonl_file, "import.request": json_file}, servers.demo),
    "demo's workers": ({"worker.lines": jsonl_file}, servers.worker_lines),
    "hub": (
        {
            "hub/answers.json": json_file,
            "hub/model.safetensors": safetensors_file,
            "hub/model.safetensors.index.json": json_file,
        },
        servers.hub_headers,
    ),
}


def spoil_family(folder: Path, number: int) -> list[str]:
    """Spoil the configuration of one of the families; ``family`` says of which."""
    family, chance = FAMILIES[number % len(FAMILIES)], chance_of("families", number)
    name = f"families/{family}/config.json"
    (folder / name).write_bytes(json_file((folder / name).read_bytes(), chance))
    (folder / "family").write_text(family)
    return [name, "family"]


def parser_reader(name: str, parser: Parser) -> Reader:
    """A parser's file in a folder of its own."""

    @cache
    def seeds(folder: Path) -> list[bytes]:
        return list(parser.seeds(folder))

    def spoil(folder: Path, number: int) -> list[str]:
        chance = chance_of(name, number)
        data = parser.spoil(chance.choice(seeds(folder)), chance)
        (folder / INPUT).write_bytes(data)
        return [INPUT]

    def read(folder: Path) -> None:
        whole = (folder / INPUT).is_file()
        data = (folder / INPUT).read_bytes() if whole else next(iter(seeds(folder)))
        parser.parse(data, folder.parent / "home/parsed")

    return Reader(name, spoil, read)


INPUT = "input"
"""The file of a case that has a parser's bytes."""

READERS = {
    **{
        name: Reader(name, partial(spoil_file, name, files), read, may_name_any=name in NAMES_ANY)
        for name, (files, read) in FILES.items()
    },
    "families": Reader("families", spoil_family, reading.plan_family),
    **{name: parser_reader(name, parser) for name, parser in PARSERS.items()},
}

SLOW = {"chat template": 8, "JSONL": 2, "training data": 4}
"""Readers that start a process for every input (templates run in a child with limits of its own)
get so many times fewer inputs."""
