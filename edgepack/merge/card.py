"""README.md of a merged model: its header as the hub wants it, what was merged, and how."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from edgepack.checkpoint import card
from edgepack.merge.inputs import Input
from edgepack.merge.methods.base import Method
from edgepack.recipe.references import Reference

TAGS = ("merge", "mergekit", "edgepack")
"""`mergekit` is what the hub's users look for merges by, and the recipe is in its schema."""
LICENCE = ("license", "license_name", "license_link")
TEXT = """\
# {title}

A merge of {count} by the method {method} ({meaning}), made with
edgepack {version}.

| model | licence |
|---|---|
{rows}
{licences}
The recipe is in mergekit's schema:

```yaml
{recipe}```
"""


def entries(title: str, inputs: Sequence[Input], base: Reference | None) -> dict[str, Any]:
    """The header: sources, licence if all models have the same, tags."""
    licences = {_licence(model) for model in inputs}
    hub = [str(m.source["model"]).partition("@")[0] for m in inputs if _is_on_hub(m)]
    found: dict[str, Any] = {"model_name": title, "library_name": "transformers"}
    if hub:
        found |= {"base_model": list(dict.fromkeys(hub)), "base_model_relation": "merge"}
    if len(licences) == 1 and None not in licences:
        found |= _licence_entries(inputs[0])
    return found | {"pipeline_tag": "text-generation", "tags": list(TAGS)}


def render(
    header: dict[str, Any], title: str, inputs: Sequence[Input], method: Method, recipe: str
) -> str:
    """The whole card."""
    licences = {_licence(model) for model in inputs}
    remark = "" if len(licences) == 1 else "\nThe models have different licences: all apply.\n"
    text = TEXT.format(
        title=title,
        count="one model" if len(inputs) == 1 else f"{len(inputs)} models",
        method=method.name,
        meaning=method.meaning,
        version=version("edgepack"),
        rows="\n".join(
            f"| {_shown(model)} | {_licence(model) or 'not stated'} |" for model in inputs
        ),
        licences=remark,
        recipe=recipe,
    )
    return card.with_header(header, text)


def _licence(model: Input) -> str | None:
    """What the model's own card says."""
    return card.licence(model.folder) if model.folder and model.folder.is_dir() else None


def _licence_entries(model: Input) -> dict[str, Any]:
    """The same as entries of a header; one that the hub has no name for is ``other``, and named."""
    entries = card.read(model.folder)[0] if model.folder else {}
    return {key: entries[key] for key in LICENCE if key in entries}


def _is_on_hub(model: Input) -> bool:
    return model.source.get("kind") == "hub"


def _shown(model: Input) -> str:
    if _is_on_hub(model):
        name = str(model.source["model"]).partition("@")[0]
        return f"[{name}](https://huggingface.co/{name}) at {model.source['revision'][:12]}"
    return model.name.replace("|", "\\|")
