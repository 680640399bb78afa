"""A file that was trained or sent becomes an adapter of its model, for every runtime."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack.adapters import files
from edgepack.core.adapters import place
from edgepack.core.disk import sync_tree
from edgepack.demo.store import Model
from edgepack.errors import EdgepackError


def publish(model: Model, name: str, trained: Path, about: Mapping[str, Any]) -> Path:
    """Write the folder of an adapter from a GGUF adapter (of ours, or another program's): the files
    of `edgepack finetune`, so that `edgepack chat DIR --adapter NAME` takes it. It appears whole.
    Raises `EdgepackError` for an adapter of another base, and for a name that is taken.
    """
    out = place(model.places, name)
    if out.exists():
        raise EdgepackError(
            f"{model.name} has already learnt something called {name}",
            hint="choose another name, or delete that first",
        )
    adapter = replace(files.read(trained, model.base), about=about)
    working = out.with_name(f".{name}.new")
    shutil.rmtree(working, ignore_errors=True)  # of a killed run
    files.write(working, adapter, model.base)
    sync_tree(working)
    working.rename(out)
    return out
