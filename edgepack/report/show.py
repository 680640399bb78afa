"""What lies at a path (recipe, output folder, GGUF model or adapter), or in a plan: facts, and the
same facts as text. Nothing here prints."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edgepack.core import adapters
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.core.headers import NotReadError, reading_headers
from edgepack.core.tables import align, format_size
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.recipe.read import load
from edgepack.report.page import (
    bought,
    commands,
    grids,
    measurements,
    merge,
    merged,
    predicted,
    sliced,
)

if TYPE_CHECKING:
    from edgepack.checkpoint.gguf_header import GgufHeader
    from edgepack.planning.plan import Plan

Facts = dict[str, Any]

REPORT, CARD = "report.md", "README.md"
"""What a build says of itself; a merge alone has a model card in its place."""
_WORST = 8  # weights in the summary of an output folder
_LONG = 48  # characters of a metadata value that are shown


def describe(path: Path) -> Facts:
    """The facts of whatever is at `path`; ``kind`` says what that is."""
    if path.is_dir():
        if (path / MANIFEST).is_file():
            facts = {"kind": "output", "folder": str(path), **Artifact.open(path).manifest}
            return facts | {"adapters": [_adapter(found) for found in adapters.listed(path)]}
        hint = "edgepack build RECIPE makes one"
        if (path / "config.json").is_file():
            hint = "it looks like a model: write `model: FOLDER` in a recipe, then edgepack plan"
        raise EdgepackError(f"{path}: not an output folder (no {MANIFEST})", hint=hint)
    if not path.exists():
        raise EdgepackError(f"{path}: no such file or folder", hint="check the spelling")
    if path.suffix in (".yaml", ".yml"):
        return {"kind": "recipe", **load(path).model_dump(exclude_none=True)}
    if path.suffix == ".gguf" or _magic(path) == b"GGUF":
        return _gguf(path)
    raise EdgepackError(
        f"{path}: neither a recipe nor a GGUF file",
        hint="show takes a .yaml recipe, an output folder, a .gguf model or adapter",
    )


def _adapter(found: adapters.Found) -> Facts:
    """What ``adapter.json`` of a user's adapter says, and what is wrong with it, if anything."""
    about = found.about
    known = {"mode": about.mode, "rank": about.rank, "bytes": about.bytes} if about else {}
    return {"name": found.name, **known, "problem": found.problem}


def render(facts: Facts) -> str:
    """The facts of `describe` as text."""
    shown = {key: value for key, value in facts.items() if key != "kind"}
    renderers = {"output": _output_text, "model": _model_text, "adapter": _adapter_text}
    if facts["kind"] == "recipe":
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip()
    return "\n".join(renderers[facts["kind"]](facts))


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _gguf(path: Path) -> Facts:
    from edgepack.checkpoint.gguf_header import GgufHeader

    header = GgufHeader(path)
    metadata = {shorten(key): _value(entry[0]) for key, entry in header.metadata.items()}
    facts = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "architecture": metadata.get("general.architecture"),
        "metadata": metadata,
        "types": _types(header),
    }
    if metadata.get("general.type") == "adapter":
        return {"kind": "adapter", **facts, "ranks": _ranks(header)}
    return {"kind": "model", **facts, "bits_per_weight": _bits(header)}


def _value(value: Any) -> Any:
    """A metadata value that can be shown: long lists and texts by their length."""
    if isinstance(value, list) and len(str(value)) > _LONG:
        return f"[{len(value)} values]"
    if isinstance(value, str) and (len(value) > _LONG or not value.isprintable()):
        return f"[{len(value)} characters]"
    return value


def _types(header: GgufHeader) -> list[Facts]:
    """Tensors, weights and bytes by type, the type with the most bytes first."""
    found: dict[str, Facts] = {}
    for stored in header.tensors.values():
        name = stored.kind.name
        entry = found.setdefault(name, {"type": name, "tensors": 0, "weights": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["weights"] += prod(stored.shape)
        entry["bytes"] += stored.nbytes
    return sorted(found.values(), key=lambda entry: -int(entry["bytes"]))


def _bits(header: GgufHeader) -> Facts:
    """Bits stored per element of the matrices, in the blocks and in all."""
    matrices = {name: t for name, t in header.tensors.items() if len(t.shape) > 1}
    blocks = {name: t for name, t in matrices.items() if name.startswith("blk.")}
    return {
        part: 8 * sum(t.nbytes for t in found.values()) / sum(prod(t.shape) for t in found.values())
        for part, found in (("blocks", blocks), ("all", matrices))
        if found
    }


def _ranks(header: GgufHeader) -> dict[str, int]:
    """Weight → rank: the rows of its ``lora_a``."""
    suffix = ".lora_a"
    return {
        name.removesuffix(suffix): stored.shape[0]
        for name, stored in header.tensors.items()
        if name.endswith(suffix)
    }


def _file_text(facts: Facts, what: str) -> list[str]:
    lines = [f"{what}: {facts['file']}, {format_size(facts['bytes'])}", ""]
    width = max(map(len, facts["metadata"]), default=0)
    lines += [f"{key:<{width}}  {value}" for key, value in facts["metadata"].items()]
    rows = [["type", "tensors", "weights", "bytes", "size"]]
    for kind in facts["types"]:
        counts = [f"{kind[key]:,}" for key in ("tensors", "weights", "bytes")]
        rows.append([kind["type"], *counts, format_size(kind["bytes"])])
    return [*lines, "", *align(rows)]


def _model_text(facts: Facts) -> list[str]:
    bits = [f"{value:.3f} ({part})" for part, value in facts["bits_per_weight"].items()]
    lines = _file_text(facts, f"GGUF model ({facts['architecture']})")
    return [*lines, "", "bits per weight: " + ", ".join(bits)]


def _adapter_text(facts: Facts) -> list[str]:
    counts: dict[int, int] = {}
    for rank in facts["ranks"].values():
        counts[rank] = counts.get(rank, 0) + 1
    ranks = ", ".join(f"{rank} ({count} weights)" for rank, count in sorted(counts.items()))
    lines = _file_text(facts, f"GGUF adapter for a {facts['architecture']} model")
    return [*lines, "", f"ranks: {ranks or 'none'}"]


def _output_text(facts: Facts) -> list[str]:
    worst = sorted(facts["weights"].items(), key=lambda item: -float(item[1]["error"]))[:_WORST]
    rows = [["weight", "format", "rank", "error", "plain", "method"]]
    for name, a in worst:
        errors = [f"{a['error']:.2e}", f"{a['error_plain']:.2e}"]
        short = name.removesuffix(".weight").removeprefix("model.")
        rows.append([short, a["formats"]["Q"], str(a["rank"]), *errors, a["method"]])
    lines = [*summary(facts, Path(facts["folder"])), *_adapters_text(facts["adapters"])]
    if not worst:
        return lines
    return [
        *lines,
        "",
        "Largest relative errors on held-out tokens:",
        *align(rows),
    ]


def _adapters_text(listed: Sequence[Facts]) -> list[str]:
    """A table of a folder's adapters."""
    if not listed:
        return []
    rows = [["adapter", "mode", "rank", "size", "base"]]
    for a in listed:
        known = [a["mode"], str(a["rank"]), format_size(a["bytes"])] if "mode" in a else [""] * 3
        rows.append([a["name"], *known, a["problem"] or "this one"])
    return ["", "Adapters:", *align(rows)]


def summary(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """What a build says at its end: sizes, measurements, remarks, and what to do next."""
    total, bits = sum(manifest["bytes"].values()), manifest["bits_per_weight"]
    parts = ", ".join(f"{part} {format_size(count)}" for part, count in manifest["bytes"].items())
    measured = manifest["measured"]
    table = [f"Not measured: {measured['skipped']}"] if "skipped" in measured else []
    lines = [
        f"{manifest['model']['model']} for {manifest['target']}, {format_size(total)}",
        f"  {parts}",
        f"  bits per weight: {bits['blocks']:.3f} (blocks), {bits['all']:.3f} (all)",
        *([f"  needs {needs}"] if (needs := manifest.get("requires")) else []),
        *(f"  merge: {line}" for line in merge(manifest.get("merge"))),
        *(f"  merged: {line}" for line in merged(manifest["merged"])),
        *(f"  {line}" for line in textwrap.wrap(grids(manifest.get("grids")) or "", 77)),
        "",
        *_sliced_text(manifest["slice"]),
        *(table or align([row[:-1] for row in measurements(measured)])),
        *_predicted_text(manifest["prediction"]),
        *remarks(manifest["fallbacks"], manifest["warnings"]),
    ]
    running = [f"  {line}" for line in commands(manifest, folder)]
    what = "Files" if running else "The model for transformers"
    page = REPORT if (folder / REPORT).is_file() else CARD
    return [*lines, "", f"{what} and {page} are in {folder}/", *running]


def _predicted_text(prediction: Mapping[str, Any] | None) -> list[str]:
    lines = predicted(prediction)
    return ["", *(wrap for line in lines for wrap in textwrap.wrap(line, 79))] if lines else []


def _sliced_text(parts: Mapping[str, Sequence[int]] | None) -> list[str]:
    return [*align(sliced(parts)), ""] if parts else []


def remarks(fallbacks: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> list[str]:
    """Fallbacks (those of one kind on one line) and warnings, if there are any."""
    kinds: dict[str, int] = {}
    for f in fallbacks:
        kind = f"{f['asked']} → {f['given']} where a row has {f['columns']} columns"
        kinds[kind] = kinds.get(kind, 0) + 1
    lines = [f"fallback: {kind} ({count} weights)" for kind, count in kinds.items()]
    lines += [f"warning: {warning}" for warning in warnings]
    return ["", *(wrap for line in lines for wrap in textwrap.wrap(line, 79))] if lines else []


def plan_facts(plan: Plan) -> Facts:
    """A plan for ``--json``; `memory` is its expected peak in bytes, `disk` what it needs in the
    cache and what is free there. Keys of stages are None while the digests of the model's files are
    not known: the first build computes them."""
    try:
        with reading_headers():
            return _plan_facts(plan)
    except NotReadError:
        return _plan_facts(plan)


def _plan_facts(plan: Plan) -> Facts:
    from edgepack.core.disk import free_space
    from edgepack.planning.room import disk

    counts: dict[str, int] = {}
    for fmt in plan.formats.values():
        key = f"{fmt.Q}, rank {fmt.rank}" if fmt.rank else fmt.Q
        counts[key] = counts.get(key, 0) + 1
    from edgepack.core import accelerator

    facts, prediction = plan.facts, plan.prediction
    return {
        "model": dict(plan.model.source),
        "architecture": plan.model.architecture.name,
        "parameters": sum(spec.numel for spec in plan.model.specs.values()),
        "device": accelerator.describe(plan.device),
        "accelerators": accelerator.found(),
        "stages": [
            {"stage": s.label, "key": s.known_key, "cached": s.is_done, "begun": s.has_begun}
            for s in plan.stages
        ],
        "slice": facts.get("slice"),
        "allocation": facts.get("allocation"),
        "formats": counts,
        "bytes": plan.bytes_by_part(),
        "bits_per_weight": {
            "blocks": plan.bits_per_weight(blocks_only=True),
            "all": plan.bits_per_weight(blocks_only=False),
        },
        "memory": plan.memory,
        "disk": {"needed": disk(plan), "free": free_space()},
        "prediction": prediction.model_dump(mode="json") if prediction else None,
        "fallbacks": [vars(fallback) for fallback in plan.fallbacks],
        "requires": plan.target.requires(plan.model, plan.formats),
        "warnings": plan.warnings,
    }


def plan_text(facts: Facts) -> list[str]:
    """A plan for people."""
    bits, parts = facts["bits_per_weight"], facts["bytes"]
    formats = ", ".join(f"{name} ({count} matrices)" for name, count in facts["formats"].items())
    states = [[s["stage"], _state(s)] for s in facts["stages"]]
    sizes = [
        [part, format_size(count)]
        for part, count in [*parts.items(), ("total", sum(parts.values()))]
    ]
    return [
        f"{facts['model']['model']} ({facts['architecture']}, "
        f"{facts['parameters'] / 1e6:,.1f} M weights)",
        *textwrap.wrap(formats, 79, initial_indent="  ", subsequent_indent="  "),
        *(textwrap.wrap(bought(facts["allocation"]), 79) if facts["allocation"] else []),
        "",
        *align([["stage", "state"], *states]),
        *_device_text(facts),
        "",
        *_sliced_text(facts["slice"]),
        *align([["part", "size"], *sizes]),
        "",
        f"bits per weight: {bits['blocks']:.3f} (blocks), {bits['all']:.3f} (all)",
        f"expected peak memory: {format_size(facts['memory'])}",
        f"expected use of disk: {format_size(facts['disk']['needed'])} in the cache "
        f"({format_size(facts['disk']['free'])} are free)",
        *([f"needs {facts['requires']}"] if facts["requires"] else []),
        *_predicted_text(facts["prediction"]),
        *remarks(facts["fallbacks"], facts["warnings"]),
    ]


def _device_text(facts: Facts) -> list[str]:
    """Where the build computes, if there is a choice."""
    if facts["device"] != "cpu":
        return [f"computes on {facts['device']}"]
    return [f"computes on the cpu; --device {kind} is there" for kind in facts["accelerators"]]


def _state(stage: Facts) -> str:
    if stage["cached"]:
        return "cached"
    return "begun, goes on" if stage["begun"] else "to do"
