"""The measurements of a manifest, made once more with the recipe's settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack.comparison.evaluate import Request, find_reference, find_text
from edgepack.core.artifact import OURS
from edgepack.core.disk import sha256
from edgepack.core.progress import Steps
from edgepack.measure.stage import compare_models
from edgepack.recipe.export import Measure as Options
from edgepack.recipe.texts import MEASURED, SOURCE
from edgepack.runtimes.models import Model, Runnable, Streamed
from edgepack.verify.checks import Failed, Skipped, refuse
from edgepack.verify.subject import Subject

SAME = 1e-3
"""Nats a token, and share of the perplexity: what another processor, or number of threads, may
change of a measurement (llama.cpp adds up in another order)."""


def measure(subject: Subject, model: str | None, text: Path | None) -> Steps[str]:
    """Mean KL, perplexity and share of the same top token, each within the standard error that the
    manifest states. `model` is where the original is, `text` what was measured on."""
    manifest = subject.manifest
    stated = manifest["measured"]
    if reason := stated.get("skipped"):
        raise Skipped(f"the build measured nothing: {reason}")
    if manifest["merged"]:
        raise Skipped("it was measured from the original with its adapters, which are not here")
    options = Options.model_validate(manifest["recipe"]["export"]["measure"])
    options = options.model_copy(update={"context": stated["context"]})
    _check_text(manifest, text)
    request = Request(subject.folder, context=options.context, original=model, source=text)
    with ExitStack() as stack:
        reference = yield from find_reference(request, stack)
        if reference is None:
            raise Failed("the original is not to be found here; --model names it")
        steps = compare_models(options, find_text(request), reference, [_ours(subject)])
        found = yield from steps
    if found["tokens"] != stated["tokens"]:
        raise Failed(
            f"{found['tokens']} tokens were measured, the manifest says {stated['tokens']}"
        )
    known, here = stated["results"][OURS], found["results"][OURS]
    refuse(_otherwise(known, here))
    return (
        f"KL {here['kl_mean']:.4f} ± {here['kl_error']:.4f}, perplexity {here['perplexity']:.3f}, "
        f"same top token {here['top1']:.1%}, as stated"
    )


def _check_text(manifest: Mapping[str, Any], text: Path | None) -> None:
    """Refuse a text that is not the one of the build."""
    known = [manifest["sources"].get(key) for key in (MEASURED, SOURCE)]
    if text is not None and text.is_file() and sha256(text) not in known:
        raise Failed(f"{text.name} is not the text that the build measured on")


def _ours(subject: Subject) -> Runnable:
    """The files, by the name that results have."""
    if subject.is_packed:
        return replace(Model.from_path(subject.folder), name=OURS)
    size = sum(path.stat().st_size for path in subject.listed(".safetensors"))
    return Streamed(OURS, subject.checkpoint, size)


def _otherwise(known: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for key, error, name in (("kl_mean", "kl_error", "mean KL"), ("top1", "top1_error", "top-1")):
        room = max(known[error], SAME)
        if not abs(here[key] - known[key]) <= room:
            says = f"the manifest says {known[key]:.4f} ± {known[error]:.4f}"
            yield f"{name} is {here[key]:.4f}, {says}"
    for key, name in (("perplexity", "perplexity"), ("reference_perplexity", "the original's")):
        room = max(known["kl_error"], SAME)
        if not abs(math.log(here[key]) - math.log(known[key])) <= room:
            yield f"{name} is {here[key]:.3f}, the manifest says {known[key]:.3f}"
