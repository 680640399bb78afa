"""A recipe for the builds with what docs/extending.md adds."""

from __future__ import annotations

from pathlib import Path

import yaml

RECIPE = {
    "model": "model",
    "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
    "compress": {"format": "q4_0", "damping": [0.1], "iterations": 1},
    "export": {"measure": {"tokens": 0}},
}


def recipe(here: Path, **sections) -> Path:
    """Write `RECIPE` with other sections; of those that are None, none."""
    path = here / "recipe.yaml"
    chosen = {key: value for key, value in (RECIPE | sections).items() if value is not None}
    path.write_text(yaml.safe_dump(chosen))
    return path
