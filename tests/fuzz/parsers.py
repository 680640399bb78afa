"""What reads one file by itself, without a command: fast enough for tens of thousands of inputs,
and for a fuzzer that is guided by coverage (`guided`)."""

from __future__ import annotations

import bz2
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.binary import Gguf
from tests.fuzz.case import MERGES, ROWS
from tests.fuzz.harness import LINE
from tests.fuzz.mutators import spoil_bytes, spoil_lines
from tests.fuzz.spoil import Make, json_file, jsonl_file, safetensors_file, yaml_documents

Seeds = Callable[[Path], Iterable[bytes]]
"""Whole files, from the folder of the whole case."""


@dataclass(frozen=True)
class Parser:
    """A file called `file`, what reads it, and a way to spoil it. `beside` are files that lie in
    the same folder."""

    file: str
    read: Callable[[Path], object]
    seeds: Seeds
    spoil: Make
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def parse(self, data: bytes, folder: Path) -> None:
        """Read some bytes as this file, in a folder of one's own."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, content in self.beside.items():
            (path.parent / name).write_bytes(content)
        path.write_bytes(data)
        self.read(path)


def _files(*patterns: str) -> Seeds:
    """The content of files of the case."""

    def read(folder: Path) -> list[bytes]:
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        return [path.read_bytes() for path in found]

    return read


def _given(*contents: bytes | str) -> Seeds:
    data = [c.encode() if isinstance(c, str) else c for c in contents]
    return lambda _: data


# ---------------------------------------------------------------------------- models


def _gguf_header(path: Path) -> None:
    from edgepack.checkpoint.gguf_header import GgufHeader
    from edgepack.report.show import describe, render

    header = GgufHeader(path)
    for name in header.tensors:
        header.bytes_of(name)
    render(describe(path))


def _small_gguf(_: Path) -> list[bytes]:
    kinds = {4: 7, 6: 0.5, 7: True, 8: "llama", 10: 2**40}
    entries = [[f"a.{kind}", kind, value, None] for kind, value in kinds.items()]
    entries += [
        ["b", 9, ["x", "yz"], 8],
        ["c", 9, [1, 2, 3], 5],
        ["general.alignment", 4, 32, None],
    ]
    tensors = [["t.weight", [4, 2], 0, bytes(32)], ["u", [32, 1], 2, bytes(18)]]
    return [Gguf(entries, tensors).to_bytes()]


def _safetensors(path: Path) -> None:
    from edgepack.checkpoint.shards import header
    from edgepack.checkpoint.source_files import SourceFiles

    files = SourceFiles()
    for entry in header(path, files).values():
        files.read(path, entry.start, entry.nbytes)


def _small_safetensors(_: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save

    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.uint8)}
    return [save(tensors, {"format": "pt"})]


def _config(path: Path) -> None:
    from edgepack.checkpoint import config
    from edgepack.checkpoint.source_files import SourceFiles

    content = SourceFiles().read_json(path)
    if isinstance(content, dict):
        config.read(content, "m")


def _tokenizer(path: Path) -> None:
    """As a folder's, and as the keys that a GGUF gets of it."""
    import gguf

    from edgepack.checkpoint import vocabulary
    from edgepack.checkpoint.tokenizer import from_folder

    tokenizer = from_folder(path.parent)
    tokenizer.encode("Hi <|im_start|> é")
    vocabulary.write(gguf.GGUFWriter(None, "llama"), tokenizer, len(tokenizer), {})


def _adapter_config(path: Path) -> None:
    from edgepack.checkpoint.lora import LoraAdapter

    adapter = LoraAdapter(path.parent, "adapter")
    adapter.config.scale("model.layers.0.mlp.down_proj", 4)
    adapter.config.rows_of("model.embed_tokens")


# ---------------------------------------------------------------------------- recipes and data


def _recipe(path: Path) -> None:
    from edgepack.recipe.read import load

    load(path).model_dump(mode="json")


def _merges(path: Path) -> None:
    from edgepack.merge.documents import in_order
    from edgepack.recipe.read import load_merges

    for merge in in_order(load_merges(path)):
        merge.references()


def _examples(path: Path) -> list[bytes]:
    import edgepack

    folder = Path(edgepack.__file__).parent / "recipe/examples"
    return [file.read_bytes() for file in sorted(folder.glob("*.yaml"))]


def _rows(path: Path) -> None:
    from edgepack.calibration.rows import read_rows
    from edgepack.calibration.text import read

    list(read_rows(read(path, "data"), "data", path.name))


def _task(name: str, path: Path) -> None:
    from edgepack.metrics import tasks

    folder = path.parents[1] if "/" in tasks.TASKS[name].file else path.parent
    tasks.load(name, folder)


_QUESTION = {"query": "Passage: A fox.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1}
_TASKS: dict[str, tuple[str, str]] = {
    "arc_easy": (
        "arc_easy_test.jsonl",
        json.dumps(
            {
                "question": {"stem": "Which?", "choices": [{"text": "a"}, {"text": "b"}]},
                "answerKey": "B",
            }
        ),
    ),
    "boolq": ("boolq_dev.first1000.jsonl", json.dumps(_QUESTION)),
    "copa": ("copa_dev.jsonl", json.dumps(_QUESTION)),
    "piqa": ("piqa/valid.jsonl", json.dumps({"goal": "Cut", "sol1": "a", "sol2": "b"})),
    "winogrande": ("winogrande-debiased-eval.csv", "i1,The _ was big.,fox,dog,1"),
    "hellaswag": ("hellaswag_val_full.txt.bz2", "Run: A man\n1\na\nb\nc\nd"),
}


def _task_parser(name: str, file: str, row: str) -> Parser:
    content = f"{row}\n".encode()
    packed = file.endswith(".bz2")
    spoil = jsonl_file if file.endswith(".jsonl") else spoil_lines
    return Parser(
        file,
        partial(_task, name),
        _given(bz2.compress(content * 2) if packed else content * 2),
        _inside_bz2 if packed else spoil,
        {"valid-labels.lst": b"0\n1\n"} if name == "piqa" else {},
    )


def _inside_bz2(data: bytes, chance: Any) -> bytes:
    if chance.random() < 0.3:
        return spoil_bytes(data, chance)
    return bz2.compress(spoil_lines(bz2.decompress(data), chance))


# ---------------------------------------------------------------------------- benchmarks, devices


def _bench(path: Path) -> None:
    from edgepack.bench.compare import compare, table
    from edgepack.bench.results import read

    found = read(path)
    table(compare(found, found)[0])


def _profile(path: Path) -> None:
    from edgepack.device_profile.profile import read_profile

    read_profile(path)


def _llama_bench(path: Path) -> None:
    from edgepack.bench.llama_bench import beside, read_llama_bench
    from edgepack.bench.results import Bench
    from tests.support import profiles

    work = {"types": {"q4_0": 1}, "flops": 1, "head": 1, "head_type": "q4_0"}
    model = profiles.model(work, profiles.timing("prompt", 64, 0.5))
    beside(Bench.model_validate(profiles.content(models=[model])), read_llama_bench(path))


_LLAMA_BENCH = {
    "model_filename": "x/m.gguf",
    "n_prompt": 64,
    "n_gen": 0,
    "n_depth": 0,
    "n_threads": 1,
    "samples_ns": [10**9, 11 * 10**8],
}


def _events(path: Path) -> None:
    """What a benchmark's worker printed, as bytes, and what is taken from it."""
    from edgepack.bench.protocol import Ended, Loaded, Started, read_events
    from edgepack.bench.workers import one

    events = read_events(path.read_bytes().decode(errors="replace"), "adb")
    for kind in (Started, Loaded, Ended):
        one(events, kind)


_MEMORY = {"anonymous": 1, "mapped": 1, "peak": 1}
_EVENTS = (
    {"event": "started", "version": 1, "runtime": "llama.cpp", "memory": _MEMORY},
    {"event": "loaded", "seconds": 0.5, "memory": _MEMORY},
    {"event": "case", "index": 0, "seconds": 0.5, "memory": _MEMORY},
    {"event": "memory", "threads": 1, "bytes_per_second": 1e9},
    {"event": "product", "type": "q4_0", "batch": 1, "seconds": 0.1, "bytes": 100},
    {"event": "ended", "cpu_seconds": 1.0, "memory": _MEMORY},
)


def _job(path: Path) -> None:
    from edgepack.bench.protocol import read_job

    read_job(path.read_bytes().decode(errors="replace"))


_JOBS = (
    {"job": "model", "model": "m.gguf", "threads": 1, "cases": [{"kind": "prompt", "tokens": 4}]},
    {"job": "memory", "threads": [1, 2]},
    {"job": "multiply", "threads": 1, "types": ["q4_0"]},
)


def _facts(path: Path) -> None:
    from edgepack.devices import _facts

    text = path.read_bytes().decode(errors="replace")
    json.dumps([_facts.describe(text), _facts.condition(text)], allow_nan=False)


_FACTS = """machine=aarch64
system=Linux
kernel=5.10.0
cores=8
cache=2048K
memory_kib=7800000
processor=Qualcomm
arm_features=fp asimd
khz=1800000
khz=2400000
ro.product.model=Phone 1
ro.build.version.sdk=33
ro.kernel.qemu=0
load=0.52 0.60 0.61 2/900 1234
zone=41000
governor=walt
capacity=83
status=Charging
battery.level=83
battery.temperature=301
battery.AC powered=true
thermal_status=0
saver=0
"""


# ---------------------------------------------------------------------------- our own files


def _about(path: Path) -> None:
    from edgepack.core.adapters import read_about

    about = read_about(path.parent)
    _ = about.rank, about.bytes, about.belongs_to


def _manifest(path: Path) -> None:
    from edgepack.core.artifact import Artifact
    from edgepack.report.show import summary

    summary(Artifact.read(path.parent).manifest, path.parent)


def _graph_metadata(path: Path) -> None:
    from edgepack.export.onnx_metadata import read

    for matrix in read(path.read_bytes().decode(errors="replace"), "graph").matrices.values():
        _ = matrix.formats


def _graph_seeds(folder: Path) -> list[bytes]:
    import onnx

    (path,) = (folder / "out-onnx/onnx").glob("*.onnx")
    model = onnx.load_model(path, load_external_data=False)
    return [model.metadata_props[0].value.encode()]


def _compared(path: Path) -> None:
    from edgepack.cli.compare import _claim

    _claim(path.parent)


def _traces(path: Path) -> None:
    from edgepack.publish.traces import Machine, find

    find(path.parent, (path.name,), Machine.here(path.parent))


def _setting(path: Path) -> None:
    """The words of a command line."""
    from edgepack.cli.merge import parse_size
    from edgepack.errors import EdgepackError, RecipeError
    from edgepack.finetune.run import pairs
    from edgepack.recipe.references import parse

    text = path.read_bytes().decode(errors="replace")
    reads = (parse, parse_size, lambda text: pairs([text]))
    refusals: list[EdgepackError] = []
    for read in reads:
        try:
            read(text)
        except ValueError as error:  # pydantic makes one line of it
            refusals.append(RecipeError(str(error), hint="write it otherwise"))
        except EdgepackError as error:
            refusals.append(error)
    for refusal in refusals:
        if not refusal.hint or "\n" in refusal.message or len(refusal.message) > LINE:
            raise refusal
    if len(refusals) == len(reads):
        raise refusals[0]


PARSERS: dict[str, Parser] = {
    "GGUF header": Parser("x.gguf", _gguf_header, _small_gguf, spoil_bytes),
    "safetensors header": Parser(
        "w.safetensors", _safetensors, _small_safetensors, safetensors_file
    ),
    "configuration": Parser(
        "config.json", _config, _files("m/config.json", "families/*/config.json"), json_file
    ),
    "tokenizer.json": Parser(
        "tokenizer.json", _tokenizer, _files("tokenizers/tokenizer.json/tokenizer.json"), json_file
    ),
    "tekken.json": Parser(
        "tekken.json", _tokenizer, _files("tokenizers/tekken.json/tekken.json"), json_file
    ),
    "tokenizer.model": Parser(
        "tokenizer.model",
        _tokenizer,
        _files("tokenizers/tokenizer.model/tokenizer.model"),
        spoil_bytes,
    ),
    "adapter_config.json": Parser(
        "adapter_config.json", _adapter_config, _files("peft/adapter_config.json"), json_file
    ),
    "recipe's YAML": Parser("r.yaml", _recipe, _examples, yaml_documents),
    "mergekit's YAML": Parser(
        "merge.yaml", _merges, _given(yaml.safe_dump_all(MERGES)), yaml_documents
    ),
    "rows": Parser(
        "rows.jsonl", _rows, _given("\n".join(json.dumps(row) for row in ROWS)), jsonl_file
    ),
    **{f"task {name}": _task_parser(name, *about) for name, about in _TASKS.items()},
    "bench.json": Parser("bench.json", _bench, _files("bench.json"), json_file),
    "profile": Parser("bench.json", _profile, _files("bench.json"), json_file),
    "llama-bench": Parser("l.json", _llama_bench, _given(json.dumps([_LLAMA_BENCH])), json_file),
    "worker's events": Parser(
        "events", _events, _given("\n".join(map(json.dumps, _EVENTS))), jsonl_file
    ),
    "worker's job": Parser("job", _job, _given(*map(json.dumps, _JOBS)), json_file),
    "device's facts": Parser("facts", _facts, _given(_FACTS), spoil_lines),
    "adapter.json": Parser(
        "adapter.json", _about, _files("out-gguf/adapters/notes/adapter.json"), json_file
    ),
    "manifest.json": Parser("manifest.json", _manifest, _files("out-*/manifest.json"), json_file),
    "graph's metadata": Parser("metadata", _graph_metadata, _graph_seeds, json_file),
    "compare.json": Parser(
        "compare.json",
        _compared,
        _given('[{"label": "a", "maker": "b", "kl_mean": 0.1}]'),
        json_file,
    ),
    "traces in safetensors": Parser("w.safetensors", _traces, _small_safetensors, safetensors_file),
    "command line": Parser(
        "words", _setting, _given("m+l@main", "r=16", "target_modules=[a, b]", "5GB"), spoil_bytes
    ),
}
