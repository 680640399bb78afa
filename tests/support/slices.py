"""Recipes that slice a random model."""

import json
from pathlib import Path

import torch

from tests.support.commands import fails
from tests.support.tiny import TEXT

HIDDEN, NARROW = 64, 32


IDS = torch.arange(3, 67).view(2, 32)


def recipe(folder: Path, width: int | None = None, **options) -> Path:
    """A recipe that slices the model in `folder`."""
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    given = {
        "model": "model",
        "slice": {"allow_growth": True, **options} | ({"width": width} if width else {}),
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "export": {"measure": {"tokens": 0}},
    }
    path = folder / "slice.yaml"
    path.write_text(json.dumps(given))
    return path


def says(*command) -> str:
    """The error of a command, its hint included."""
    message, hint, _ = fails(*command)
    return f"{message} {hint}"
