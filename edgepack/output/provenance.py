"""Where an output came from. Its folder may be given away, so it names models and texts without
this machine's folders; where they lie is a note in the cache, found by digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.lora import LoraAdapter
from edgepack.core.artifact import Artifact
from edgepack.core.disk import atomic, root
from edgepack.errors import EdgepackError
from edgepack.merge.checkpoint import MergedCheckpoint
from edgepack.merge.fisher.plan import TEXT
from edgepack.merge.stage import MERGE, merge_sources, stages_of
from edgepack.model.adapted import Adapted
from edgepack.planning.plan import Plan
from edgepack.recipe.fine_tune import FineTune
from edgepack.recipe.merging import Merge
from edgepack.recipe.read import load, parse
from edgepack.recipe.sections import Recipe
from edgepack.recipe.texts import DISTILLED, EXAMPLES, MEASURED, SOURCE, VALIDATION

MODEL = "model"
RECIPE = "recipe.yaml"
OTHER = "--reference FILE.gguf names another reference"


def sources(plan: Plan) -> dict[str, Path]:
    """Key of the recipe → the file or folder on this machine that it names."""
    recipe, base = plan.recipe, plan.base
    named = {
        SOURCE: recipe.calibrate.source,
        DISTILLED: recipe.recover.source if recipe.recover else None,
        MEASURED: recipe.export.measure.text,
        EXAMPLES: recipe.finetune.data if recipe.finetune else None,
        VALIDATION: recipe.finetune.validation if recipe.finetune else None,
    }
    files = {key: name for key, name in named.items() if name and not _is_self(key, name)}
    found = {key: base / Path(name).expanduser() for key, name in files.items()}
    if isinstance(plan.original, MergedCheckpoint):
        return found | {key: path for key, (path, _) in merge_sources(plan.original.stage).items()}
    return {key: path for key, (path, _) in _models(plan).items()} | found


def _is_self(key: str, name: str) -> bool:
    """Whether a text is the model's own."""
    return key in (SOURCE, DISTILLED) and name == "self"


def _models(plan: Plan) -> dict[str, tuple[Path, str]]:
    """Key of the recipe → (where the model or adapter that it names is on this machine, its
    digest)."""
    model, original = plan.recipe.model, plan.original
    named: list[tuple[str, str | None, Checkpoint | LoraAdapter]]
    if isinstance(model, FineTune) and isinstance(original, Adapted):
        opened: list[Checkpoint | LoraAdapter] = [original.base, *original.adapters]
        places = zip(model.places(), opened, strict=True)
        named = [(key, name, one) for (key, name), one in places]
    else:
        named = [(MODEL, str(model), original)]
    found = {}
    for key, name, opened_as in named:
        path = None if name is None else plan.base / Path(name).expanduser()
        if path is not None and not _is_on_hub(opened_as) and path.exists():
            found[key] = (path, opened_as.key)
    return found


def _is_on_hub(opened: Checkpoint | LoraAdapter) -> bool:
    if isinstance(opened, LoraAdapter):
        return opened.revision is not None
    return bool(opened.source["kind"] == "hub")


def digests(plan: Plan) -> dict[str, str]:
    """Key of the recipe → digest of what it names on this machine."""
    original = plan.original
    known = dict(plan.texts)
    if not isinstance(original, MergedCheckpoint):
        known |= {key: digest for key, (_, digest) in _models(plan).items()}
    else:
        known |= {key: digest for key, (_, digest) in merge_sources(original.stage).items()}
    return {key: known[key] for key in sources(plan) if key in known}


def remember(plan: Plan) -> None:
    """Note where the sources are. Best effort: without the note, people are asked for a path."""
    for key, digest in digests(plan).items():
        note_place(digest, sources(plan)[key])


def note_place(digest: str, path: Path) -> None:
    """Note where the file or folder with a digest is. Best effort."""
    note = _note(digest)
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic(note) as temporary:
            temporary.write_text(json.dumps({"path": str(path.resolve())}), encoding="utf-8")


def published(plan: Plan) -> dict[str, Any]:
    """The recipe with every default, its paths cut to the names of what they lead to."""
    recipe = plan.recipe.model_dump(mode="json")
    if isinstance(plan.original, MergedCheckpoint):
        found = [stage.published for stage in stages_of(plan.original.stage)]
        recipe["merge"] = found if len(found) > 1 else found[0]
    for key, path in sources(plan).items():
        if key.startswith(MERGE):
            continue
        section, name = _place(recipe, key)
        section[name] = path.resolve().name
    return recipe


def located(artifact: Artifact) -> Recipe:
    """The recipe of an output folder, with paths that hold on this machine where those of its
    sources are known; the rest stays as it is written. Without fine-tuning: whoever asks wants the
    model before it, and the examples may be long gone."""
    loaded = load(artifact.folder / RECIPE)
    recipe = loaded.model_dump(mode="json", exclude_unset=True)
    recipe.pop("finetune", None)
    known = artifact.manifest.get("sources", {})
    if loaded.merge is not None:
        recipe["merge"] = _located_merges(loaded.merge, known)
    for key, digest in known.items():
        path = _find(digest)
        if path is not None and not key.startswith(("finetune.", MERGE)):
            section, name = _place(recipe, key)
            section[name] = str(path)
    return parse(recipe)


def _located_merges(merge: Merge | list[Merge], digests: Mapping[str, str]) -> Any:
    """The merges with paths of this machine for models, where they are known."""

    def place_of(name: str) -> str:
        digest = digests.get(MERGE + name)
        path = None if digest is None else _find(digest)
        return name if path is None else str(path)

    def place_of_text(name: str) -> str:
        path = _find(digests.get(MERGE + TEXT + name, ""))
        return name if path is None else str(path)

    several = merge if isinstance(merge, list) else [merge]
    found = [
        one.renamed(place_of, place_of_text).model_dump(mode="json", exclude_defaults=True)
        for one in several
    ]
    return found if isinstance(merge, list) else found[0]


def without_none(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped recipe as somebody would have written it: without what is not there."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in recipe.items()
        if value is not None
    }


def _place(recipe: dict[str, Any], key: str) -> tuple[Any, Any]:
    """The section, or list, that a key of the recipe is in, and its name or index there."""
    *sections, name = key.split(".")
    inner: Any = recipe
    for section in sections:
        inner = inner.setdefault(section, {})
    return (inner, int(name)) if isinstance(inner, list) else (inner, name)


def _note(digest: str) -> Path:
    return root() / "places" / f"{digest}.json"


def _find(digest: str) -> Path | None:
    """Where something was; None if nobody knows, or nothing is there now. What is there may be
    another by now: whoever opens it holds it against its digest."""
    try:
        path = Path(json.loads(_note(digest).read_text(encoding="utf-8"))["path"])
        return path if path.exists() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_same(found: Mapping[str, Any], noted: Mapping[str, Any]) -> bool:
    """Whether a model (`Checkpoint.source`) has the content that a manifest noted."""
    return bool(_content(found) == _content(noted))


def _content(source: Mapping[str, Any]) -> Any:
    base, adapters = source.get("base"), source.get("adapters") or ()
    parts = [*([base] if base else []), *adapters]
    return source.get("files"), source.get("revision"), [_content(part) for part in parts]


def changed(recipe: Recipe, artifact: Artifact) -> EdgepackError:
    """The error for a model that is not what the folder was made of."""
    return EdgepackError(
        f"{recipe.model}: is not what {artifact.folder} was made of any more", hint=OTHER
    )


def gone(recipe: Recipe, artifact: Artifact) -> EdgepackError:
    """The error for a model that cannot be found or read."""
    return EdgepackError(
        f"{recipe.model}: what {artifact.folder} was made of is not to be found here", hint=OTHER
    )
