"""The output folder of a merge alone: the checkpoint, its recipes, and a manifest."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from edgepack.core.artifact import MANIFEST, OPTIONAL, SOFTWARE, Artifact, digest
from edgepack.core.disk import clean
from edgepack.core.executor import Executor, Threads
from edgepack.core.progress import Steps
from edgepack.core.results import settle
from edgepack.merge.stage import Merge, all_stages_of, merge_sources, stages_of
from edgepack.output import software, vocabulary
from edgepack.output.environment import environment
from edgepack.output.folder import place_files, writing
from edgepack.output.provenance import RECIPE, note_place

VERSIONS = ("edgepack", "torch")
UNMEASURED = "a merge alone measures nothing; `edgepack evaluate` does"


def write_merge(
    stage: Merge,
    out: Path,
    *,
    base: Path,
    force: bool = False,
    executor: Executor | None = None,
) -> Steps[Artifact]:
    """Carry out a merge, and those that it needs, and put its files into the folder `out`.

    A killed run goes on where it was. `base` is the folder of the recipe. Results of earlier merges
    of the same file stay in the cache.
    """
    clean()
    settle()
    sources = merge_sources(stage)
    places = [path for path, _ in sources.values()]
    with writing(out, force=force, sources=places, recipe=base) as output:
        for path, key in sources.values():
            note_place(key, path)
        with ExitStack() as uses:
            for one in all_stages_of(stage):
                uses.enter_context(one.in_use())
                yield from one.complete(executor or Threads())
            files = place_files(stage, output.folder)
            manifest = _describe(stage, files, output.folder)
        output.publish([stage.result])
    return Artifact(out, manifest)


def _describe(stage: Merge, files: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write recipe and manifest beside the files; the manifest."""
    merges = [one.published for one in stages_of(stage)]
    recipe = {"merge": merges if len(merges) > 1 else merges[0]}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    (folder / RECIPE).write_text(text, encoding="utf-8")
    software.write(folder, stage.source, "checkpoint")
    own = {name: digest(folder / name) for name in (RECIPE, SOFTWARE)}
    numel = sum(tensor.numel for tensor in stage.layout.tensors)
    bits = 8 * stage.layout.nbytes / numel
    python = {"python": sys.version.split()[0]}
    manifest = OPTIONAL | {
        "edgepack": version("edgepack"),
        "target": "checkpoint",
        "model": stage.source,
        "sources": {key: found for key, (_, found) in merge_sources(stage).items()},
        "recipe": recipe,
        "versions": python | {name: version(name) for name in VERSIONS},
        "stages": {one.title: one.key for one in stages_of(stage)},
        "bytes": {"weights": stage.layout.nbytes},
        "bits_per_weight": {"blocks": bits, "all": bits},
        "fallbacks": [],
        "weights": {},
        "measured": {"skipped": UNMEASURED},
        "warnings": list(stage.notes),
        "environment": environment(),
        "tokenizer": vocabulary.describe(folder, files),
        "files": dict(sorted((files | own).items())),
        **stage.facts(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest
