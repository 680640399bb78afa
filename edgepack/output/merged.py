"""The output folder of a merge alone: the checkpoint, its recipes, and a manifest."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from edgepack.core.artifact import MANIFEST, OPTIONAL, Artifact, digest
from edgepack.core.disk import clean
from edgepack.core.executor import Threads
from edgepack.core.progress import Steps
from edgepack.merge.stage import Merge, all_stages_of, merge_sources, stages_of
from edgepack.output.folder import place_files, writing
from edgepack.output.provenance import RECIPE, note_place

VERSIONS = ("edgepack", "torch")
UNMEASURED = "a merge alone measures nothing; `edgepack evaluate` does"


def write_merge(stage: Merge, out: Path, *, base: Path, force: bool = False) -> Steps[Artifact]:
    """Carry out a merge, and those that it needs, and put its files into the folder `out`.

    A killed run goes on where it was. `base` is the folder of the recipe. Results of earlier merges
    of the same file stay in the cache.
    """
    clean()
    sources = merge_sources(stage)
    places = [path for path, _ in sources.values()]
    with writing(out, force=force, sources=places, recipe=base) as output:
        for path, key in sources.values():
            note_place(key, path)
        for one in all_stages_of(stage):
            yield from one.complete(Threads())
        files = place_files(stage, output.folder)
        manifest = _describe(stage, files, output.folder)
        stage.drop()  # before: a kill after `publish` must leave nothing behind
        output.publish()
    return Artifact(out, manifest)


def _describe(stage: Merge, files: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write recipe and manifest beside the files; the manifest."""
    merges = [one.published for one in stages_of(stage)]
    recipe = {"merge": merges if len(merges) > 1 else merges[0]}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    (folder / RECIPE).write_text(text, encoding="utf-8")
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
        "files": dict(sorted((files | {RECIPE: digest(folder / RECIPE)}).items())),
        **stage.facts(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest
