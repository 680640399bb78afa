"""Small recipes around a model in a folder, with a text and examples."""

import json
from pathlib import Path

from tests.support.tiny import TEXT


def write_texts(folder: Path, rows: int) -> None:
    """``text.txt`` to calibrate on, and so many examples in ``rows.jsonl``."""
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    examples = ({"prompt": f"{i} + 1?", "completion": f"{i + 1}"} for i in range(rows))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, examples)))


def write_recipe(folder: Path, name: str = "recipe", **sections) -> Path:
    """A recipe for the model ``model`` beside it, calibrated on ``text.txt`` and not measured."""
    calibrate = {"source": "text.txt", "tokens": 1024, "sequence_length": 64}
    recipe = {
        "model": "model",
        "export": {"measure": {"tokens": 0}},
        **sections,
        "calibrate": calibrate | sections.get("calibrate", {}),
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path
