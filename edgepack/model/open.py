"""The model that a recipe names: a checkpoint, or a base with adapters."""

from __future__ import annotations

from pathlib import Path

from edgepack.checkpoint import Checkpoint, hub, open_checkpoint
from edgepack.checkpoint.adapter_folder import open_adapter
from edgepack.checkpoint.lora import LoraAdapter
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError
from edgepack.model.adapted import Adapted
from edgepack.recipe.fine_tune import FineTune


def open_model(model: str | FineTune, folder: Path | None = None) -> Checkpoint:
    """Open the `model` of a recipe, reading headers only. Relative paths start at `folder` (the
    recipe's), else at the working directory."""
    if isinstance(model, str):
        return open_checkpoint(model, folder)
    place = folder or Path()
    first = open_adapter(model.adapters[0], place)
    if model.base is not None:
        base = open_checkpoint(model.base, folder)
    else:
        base = _own_base(first, place)
    adapters = [open_adapter(name, place, base.architecture) for name in model.adapters]
    return Adapted(base, adapters)


def _own_base(adapter: LoraAdapter, place: Path) -> Checkpoint:
    """The model that an adapter says it was trained on."""
    name, revision = adapter.config.base_model_name_or_path, adapter.config.revision
    if not name:
        raise CheckpointError(
            f"{adapter.name}: its adapter_config.json names no base",
            hint="name it in the recipe: model: {base: …, adapter: …}",
        )
    on_hub = not (place / Path(name).expanduser()).exists() and hub.ID.fullmatch(name)
    if revision and on_hub and "@" not in name:
        name = f"{name}@{revision}"
    try:
        return open_checkpoint(name, place)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.name}: its base {shorten(name, 100)} cannot be opened ({error.message})",
            hint="name the base in the recipe: model: {base: …, adapter: …}",
        ) from error
