"""From the name of a model and of a device to a recipe that was planned, and then written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.hub_headers import open_headers
from edgepack.core.disk import atomic
from edgepack.errors import RecipeError
from edgepack.init.choose import Choice, choose
from edgepack.init.devices import DEVICES, find
from edgepack.init.text import recipe_text
from edgepack.pipeline import make_plan
from edgepack.planning.plan import Plan
from edgepack.recipe import plain_yaml
from edgepack.recipe.read import parse

SUFFIX = ".yaml"
USUAL = ("phone-4gb", "phone-8gb", "laptop")
"""Devices that a recipe is for if none is named, the smallest first."""


@dataclass(frozen=True)
class Written:
    """A recipe that is there."""

    path: Path
    choice: Choice
    plan: Plan
    warnings: list[str]


def write_recipe(
    name: str,
    device: str | None = None,
    target: str | None = None,
    out: Path | None = None,
    *,
    force: bool = False,
) -> Written:
    """Write a recipe for a model and a device; without `device`, for the smallest named one that
    the model fits on. Of the model headers are read, nothing else.

    Raises `EdgepackError` for what is no model or no device, for a model that does not fit, and for
    a file that exists (unless `force`). Nothing is written then.
    """
    wished = find(device) if device is not None else None
    with open_headers(name) as model:
        choice = _smallest(model, target) if wished is None else choose(model, wished, target)
        path = out or Path(_slug(name) + f"-{_slug(choice.device.name)}{SUFFIX}")
        _check_place(path, force=force)
        text = recipe_text(model, _from(path.parent, name), choice, path.name)
        plan = _planned(text, choice, model, path)
        warnings = [*plan.notes, *plan.target.remarks(plan.model, plan.formats)]
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Written(path, choice, plan, warnings)


def _check_place(path: Path, *, force: bool) -> None:
    """Refuse to replace a file, and to write where nothing can be."""
    if path.is_dir() or (path.exists() and not force):
        raise RecipeError(
            f"{path}: already exists", hint="--out FILE writes elsewhere, --force replaces a file"
        )
    if not path.parent.is_dir():
        raise RecipeError(f"{path.parent}: no such folder", hint="make it, or give another --out")


def _smallest(model: Checkpoint, target: str | None) -> Choice:
    """The choice for the first named device on which the model fits in fast formats, else for the
    first on which it fits at all."""
    found: list[Choice] = []
    for device in USUAL:
        try:
            found.append(choose(model, DEVICES[device], target))
        except RecipeError:
            if not found and device == USUAL[-1]:
                raise
            continue
        if not found[-1].small:
            return found[-1]
    return found[0]


def _planned(text: str, choice: Choice, model: Checkpoint, path: Path) -> Plan:
    """The plan of the recipe, as `edgepack plan` would make it of the file."""
    recipe = parse(plain_yaml.parse(text, path.name))
    return make_plan(recipe, choice.target.name, path.parent, choice.device.profile, original=model)


def _slug(name: str) -> str:
    """A name for a file: the last part of a model's, in small letters."""
    last = re.split(r"[/\\:]", name.partition("@")[0].rstrip("/\\"))[-1].removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", last.lower()).strip("-.") or "model"


def _from(folder: Path, name: str) -> str:
    """A model's name as a recipe in `folder` has to call it: paths are relative to the recipe."""
    path = Path(name).expanduser()
    if name.startswith("~") or path.is_absolute() or not path.exists():
        return name
    return os.path.relpath(path, folder)
