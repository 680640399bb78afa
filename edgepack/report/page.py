"""The manifest as a page a person can read, and the numbers and tables it is made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import Any

from edgepack.core.artifact import APART, OURS, SOFTWARE
from edgepack.core.speeds import Prediction
from edgepack.core.tables import format_size, markdown
from edgepack.planning.target import get

Manifest = Mapping[str, Any]

IN_BLOCK = re.compile(r"(?:.*\.)?layers\.\d+\.(?P<role>.+?)(?:\.weight)?")
FOUR_BIT = {"Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"}
"""Source types of about the precision most users compress to."""

METHODS = {
    "ldlq": "rounded with error feedback on the calibration's H",
    "caldera": "rounded so, alternating with a low-rank correction L·R",
    "plain": "rounded to nearest, where error feedback gains nothing",
    "corrected": "rounded to nearest, with the low-rank correction L·R of what that leaves",
    "exact": "taken as it is: the source's numbers lie on this very grid",
    "source": "copied: the source stores it in this very format",
}
"""What the column `method` means."""


def bought(allocation: Mapping[str, Any]) -> str:
    """What a budget led to."""
    target, files = format_size(allocation["target"]), format_size(allocation["size"])
    text = f"chosen for {target}: files of {files}"
    if allocation["expected_kl"] is None:
        return text + "; a guess from the bits alone until every format is tried"
    return (
        f"{text}, expected KL {allocation['expected_kl']:.3f} "
        f"({allocation['expected_kl_rank_0']:.3f} without ranks)"
    )


def predicted(prediction: Mapping[str, Any] | None) -> list[str]:
    """What a prediction says, a line each; nothing without a device profile."""
    return Prediction.model_validate(prediction).text() if prediction else []


def role(weight: str) -> str:
    """What a weight is in every block: ``mlp.down_proj``; outside them its own name."""
    found = IN_BLOCK.fullmatch(weight)
    return found["role"] if found else weight.removesuffix(".weight")


def measurements(measured: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table of measurements, header and original included."""
    header = ["model", "size", "perplexity", "mean KL", "same top token", "99.9 % KL"]
    results = measured["results"]
    reference = next(iter(results.values()))["reference_perplexity"]
    name = "original" if measured.get("reference") else "original (f16)"
    rows = [header, [name, "–", f"{reference:.3f}", "–", "–", "–"]]
    for name, r in results.items():
        row = [name, format_size(r["bytes"]), f"{r['perplexity']:.3f}"]
        row += [f"{r['kl_mean']:.4f} ± {r['kl_error']:.4f}"]
        row += [f"{100 * r['top1']:.1f} ± {100 * r['top1_error']:.1f} %"]
        rows.append([*row, f"{r['kl_p999']:.3f}"])
    return rows


def errors_by_role(weights: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Mean held-out errors over the blocks, ours and plain rounding's, header included."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, about in weights.items():
        groups.setdefault(role(name), []).append(about)
    rows = [["weight", "count", "error", "plain rounding", "ratio"]]
    for name, group in groups.items():
        error, plain = (fmean(a[key] for a in group) for key in ("error", "error_plain"))
        ratio = f"{error / plain:.3f}" if plain else "–"
        rows.append([name, str(len(group)), f"{error:.3e}", f"{plain:.3e}", ratio])
    return rows


def render(manifest: Manifest) -> str:
    """report.md of an output folder."""
    weights = manifest["weights"]
    sections = {
        "Slice": markdown(sliced(manifest["slice"])) if manifest["slice"] else [],
        "Size": _sizes(manifest) if weights else [],
        "Measured": _measured(manifest),
        "Predicted speed": [f"- {line}" for line in predicted(manifest["prediction"])],
        "Fallbacks and warnings": _remarks(manifest),
        "Error of the layers": [ERRORS, "", *markdown(errors_by_role(weights))] if weights else [],
        "Run it": _run(manifest),
        "Make it again": _again(manifest),
        "Every weight": [*_methods(weights), "", *markdown(_every(weights))] if weights else [],
    }
    lines = _head(manifest)
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""] if content else []
    return "\n".join(lines[:-1]) + "\n"


def grids(about: Mapping[str, Any] | None) -> str | None:
    """How much of the model lies on a grid; None if it was not looked for."""
    if about is None:
        return None
    weights, numbers = (
        sum(one[key] for one in about["types"].values()) for key in ("weights", "numbers")
    )
    if not weights:
        return "no matrix of the source lies on a format's grid"
    types = ", ".join(f"{name} × {one['weights']}" for name, one in about["types"].items())
    share = 100 * numbers / about["numbers"]
    text = f"{weights} of {about['weights']} matrices of the source ({share:.1f} % of the numbers)"
    return f"{text} lie exactly on a grid: {types}"


def sliced(parts: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Weights before and after slicing by part of the model, as numbers and as bytes of float16."""
    totals = [sum(counts) for counts in zip(*parts.values(), strict=True)]
    rows = [["part", "weights", "sliced", "as f16", "sliced as f16"]]
    for part, counts in [*parts.items(), ("total", totals)]:
        numbers = [f"{count / 1e6:,.1f} M" if count else "–" for count in counts]
        rows.append(
            [part, *numbers, *(format_size(2 * count) if count else "–" for count in counts)]
        )
    return rows


ERRORS = (
    "tr(H_out E H Eᵀ) / tr(H_out W H Wᵀ), E = W − Q − L·R, on tokens held out from calibration,\n"
    "mean over the blocks, beside plain rounding to the same format (H_out is the identity unless\n"
    "the objective is `model`)."
)


def _head(manifest: Manifest) -> list[str]:
    """What was made of what, with which options."""
    narrow = manifest["recipe"]["slice"]
    model, recipe = manifest["model"], manifest["recipe"]
    title = PurePath(str(model["model"])).name.removesuffix(".gguf")
    compress, calibrate = recipe["compress"], recipe["calibrate"]
    lines = [f"# {title} for {manifest['target']}", "", f"- model: `{model['model']}`"]
    if "revision" in model:
        lines.append(f"- revision: `{model['revision']}`")
    lines += [f"- sha256 of {file}: `{sha}`" for file, sha in model.get("files", {}).items()]
    if narrow:
        widths = model["slice"]["widths"]
        width = f"{widths[0]}" + (f" to {widths[-1]}" if len(widths) > 1 else "")
        lines.append(f"- slice: {narrow['method']}, width {width}, {narrow['orientation']} basis")
        lines += [f"- fine-tuned: {_recovery(manifest['rft'])}"] if manifest["rft"] else []
    lines += [f"- merge: {line}" for line in merge(manifest.get("merge"))]
    lines.append(f"- compress: {_compression(compress)}")
    if on_grids := grids(manifest["grids"]):
        lines.append(f"- grids: {on_grids}")
    if "calibrate" in manifest["stages"]:
        source = calibrate["source"]
        source = "text the model wrote itself" if source == "self" else f"`{source}`"
        tokens = f"{calibrate['tokens']} tokens" if calibrate["tokens"] else "32 tokens per column"
        lines.append(f"- calibrate: {calibrate['objective']}, {tokens} of {source}")
    if manifest["recovered"]:
        lines.append(f"- recover: {_recovery(manifest['recovered'])}")
    if manifest["merged_factors"]:
        lines.append(f"- {_folded(manifest)}")
    lines += [f"- merged: {line}" for line in merged(manifest["merged"])]
    lines.append(f"- made by: edgepack {manifest['edgepack']}")
    return [*lines, ""]


def _folded(manifest: Manifest) -> str:
    """How factors were merged, and what that costs."""
    about, results = manifest["merged_factors"], manifest["measured"].get("results") or {}
    text = f"factors: merged, {about['rounded']} of {about['weights']} weights rounded at rank 0"
    if not {OURS, APART} <= set(results):
        return f"{text}; not measured"
    merged, apart = (results[name]["kl_mean"] for name in (OURS, APART))
    return f"{text}; mean KL {merged:.4f}, with L·R apart {apart:.4f}"


def merge(about: Mapping[str, Any] | None) -> list[str]:
    """Which models were merged, and in which metric."""
    if about is None:
        return []
    lines = [f"{about['method']} of {', '.join(about['models'])}"]
    weighted = about.get("weighted")
    if weighted is not None:
        others = ", ".join(f"{count} {role}" for role, count in weighted["plain_mean"].items())
        text = f"weighted: {weighted['by']}, {weighted['weights']} weights; plain mean of {others}"
        if "held_out_cost" in weighted:
            text += f"; held-out cost {weighted['held_out_cost']:.3f} of the plain mean's"
        lines.append(text)
    return lines


def merged(about: Mapping[str, Any] | None) -> list[str]:
    """Which adapters were merged, onto what, and how that was rounded."""
    if about is None:
        return []
    names = ", ".join(f"{one['name']} × {one['scale']:g}" for one in about["adapters"])
    folded = about["folded_factors"]
    return [
        f"{names} (by {about['method']}), {about['weights']} weights",
        f"onto {about['onto']}, rounded with {about['metric']}",
        *([f"L·R of {folded} weights folded into Q"] if folded else []),
    ]


def _recovery(recovered: Mapping[str, Any]) -> str:
    """What distillation gained."""
    if not recovered["best_step"]:
        return f"nothing gained in {recovered['steps']} steps, all is as it was"
    how = f", {recovered['dtype']} on {recovered['device']}" if "dtype" in recovered else ""
    if seen := recovered.get("text_tokens"):
        how += f", from a text of {seen:,} tokens"
    return (
        f"held-out KL {recovered['start']:.4f} → {recovered['best']:.4f} "
        f"after {recovered['best_step']} of {recovered['steps']} steps{how}"
    )


def _compression(compress: Mapping[str, Any] | None) -> str:
    if compress is None:
        return "nothing, all matrices are f16"
    trained = "each block trained between its roundings" if compress.get("compensate") else ""
    if compress["target_size"] or compress["bits_per_weight"]:
        return "; ".join(filter(None, ["formats and ranks chosen for a size", trained]))
    rank = f"rank {compress['rank']} in {compress['factors']}" if compress["rank"] else "rank 0"
    text = f"blocks {compress['format']}, {rank}; embeddings {compress['embeddings']}"
    text += f"; head {compress['head']}" if compress["head"] else ""
    overrides = [
        f"`{glob}`: "
        + ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
        for glob, options in compress["overrides"].items()
    ]
    return "; ".join(filter(None, [text, *overrides, trained]))


def _sizes(manifest: Manifest) -> list[str]:
    parts, bits = manifest["bytes"], manifest["bits_per_weight"]
    total = sum(parts.values())
    rows = [["part", "bytes", "size", "share"]]
    for part, count in [*parts.items(), ("total", total)]:
        rows.append([part, f"{count:,}", format_size(count), f"{100 * count / total:.1f} %"])
    return [
        *markdown(rows),
        "",
        f"True bits per weight, scales and factors counted: {bits['blocks']:.3f} in the blocks, "
        f"{bits['all']:.3f} in all matrices.",
        "The files add metadata and the tokenizer to this.",
        *(_bought(manifest) if manifest["allocation"] else []),
    ]


def _bought(manifest: Manifest) -> list[str]:
    """What the size was spent on, by what a weight is in its block."""
    groups: dict[str, Counter[str]] = {}
    for name, about in manifest["weights"].items():
        rank = f" + rank {about['rank']}" if about["rank"] else ""
        groups.setdefault(role(name), Counter())[about["formats"]["Q"] + rank] += 1
    rows = [["weight", "formats"]]
    for name, formats in groups.items():
        counts = (f"{form} × {count}" for form, count in formats.most_common())
        rows.append([name, ", ".join(counts)])
    text = bought(manifest["allocation"])
    return ["", f"{text[0].upper()}{text[1:]}.", "", *markdown(rows)]


def _measured(manifest: Manifest) -> list[str]:
    measured = manifest["measured"]
    if "skipped" in measured:
        return [f"Not measured: {measured['skipped']}."]
    by = get(manifest["target"]).through
    return [
        f"{measured['tokens']} tokens of {measured['text']} in chunks of {measured['context']}, "
        f"the second half of each scored, through {by}.",
        "KL is that from the original's predictions in nats per token, ± the standard error.",
        "",
        *markdown(measurements(measured)),
        *(["", REFERENCE.format(measured["reference_kl"])] if "reference_kl" in measured else []),
        *(["", FLATTERED] if is_flattered(manifest) else []),
    ]


REFERENCE = (
    "The original (f16) in its runtime against edgepack's own reading of the checkpoint: mean KL\n"
    "{:.1e}."
)
FLATTERED = (
    "Mind the origin: the source stores its weights in 4 bits already, so they lie near a 4-bit\n"
    "grid and 4-bit results look better here than they would on the model as it was trained."
)


def is_flattered(manifest: Manifest) -> bool:
    """Whether 4-bit weights were made of 4-bit weights."""
    return any(
        about.get("dtype") in FOUR_BIT and about["formats"]["Q"].upper() in FOUR_BIT
        for about in manifest["weights"].values()
    )


def _remarks(manifest: Manifest) -> list[str]:
    lines = [
        f"- {f['name']}: blocks of {f['asked']} do not divide its {f['columns']} columns, "
        f"so it is {f['given']}"
        for f in manifest["fallbacks"]
    ]
    lines += [f"- {warning}" for warning in manifest["warnings"]]
    if needs := manifest.get("requires"):
        lines.append(f"- The files need {needs}.")
    return lines or ["None."]


def _run(manifest: Manifest) -> list[str]:
    found = commands(manifest, PurePath())
    if not found:
        return ["This folder is a model for transformers, and `model:` of another recipe."]
    lines = ["In this folder:", "", "```sh", *found, "```"]
    if "README.md" in manifest.get("files", ()):
        return [*lines, "", "README.md says how other programs open it."]
    return lines


def commands(manifest: Manifest, folder: PurePath) -> list[str]:
    """Lines that talk to an output folder; none for a checkpoint."""
    return get(manifest["target"]).commands(manifest, folder)


def _again(manifest: Manifest) -> list[str]:
    if manifest["merged"]:
        return ["With `edgepack merge-adapter`, on the folder and adapters that it was made of."]
    versions = " ".join(f"{name} {number}," for name, number in manifest["versions"].items())
    kind = manifest["device"].split()[0]
    device = "" if kind == "cpu" else f" --device {kind}"
    where = f" on {manifest['device']}" if device else ""
    command = f"edgepack build recipe.yaml --target {manifest['target']} --out again{device}"
    stages = ", ".join(f"{name} `{key}`" for name, key in manifest["stages"].items())
    return [
        "`recipe.yaml` in this folder is the recipe with every default written out.",
        "",
        *["```sh", command, "```"],
        "",
        f"With {versions.rstrip(',')}{where}.",
        f"`{SOFTWARE}` lists all software that took part, `environment` in manifest.json what the",
        "bytes depend on; `edgepack verify` compares both with the machine that it runs on.",
        f"Stages, by their keys in the cache: {stages}.",
        *_machines(manifest["cluster"]),
    ]


def _machines(cluster: Mapping[str, Any] | None) -> list[str]:
    """What shared the work. Kinds of machines may round differently, so they are named."""
    if cluster is None:
        return []
    kinds = [
        f"{m['count']} × {m['cpu']} ({m['instructions']}, {m['cores']} cores)"
        for m in cluster["machines"]
    ]
    note = "; their last digits may differ" if len(kinds) > 1 else ""
    return [f"Work shared by {', '.join(kinds)}{note}."]


def _methods(weights: Mapping[str, Mapping[str, Any]]) -> list[str]:
    used = sorted({about["method"] for about in weights.values()})
    return [f"- {method}: {METHODS[method]}" for method in used if method in METHODS]


def _every(weights: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = [["weight", "format", "rank", "error", "plain", "damping", "method"]]
    for name, a in weights.items():
        damping = "–" if a["damping"] is None else f"{a['damping']:g}"
        row = [name.removesuffix(".weight"), a["formats"]["Q"], str(a["rank"])]
        rows.append(
            [*row, f"{a['error']:.3e}", f"{a['error_plain']:.3e}", damping, a["method"]],
        )
    return rows
