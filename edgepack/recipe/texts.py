"""Texts that a recipe names: by which of its keys, and where they are."""

from __future__ import annotations

from pathlib import Path

from edgepack.core.untrusted import shorten
from edgepack.errors import CalibrationError

SOURCE = "calibrate.source"
MEASURED = "export.measure.text"
DISTILLED = "recover.source"
EXAMPLES, VALIDATION = "finetune.data", "finetune.validation"


def source_path(source: str, base: Path, key: str = SOURCE) -> Path:
    """The file a source names, relative to the recipe's folder; an error where there is none."""
    hint = "give the path of a text or .jsonl file, relative to the recipe's folder"
    try:
        path = Path(source).expanduser()
        path = path if path.is_absolute() else base / path
        if path.is_file():
            return path
        what = "is not a file" if path.exists() else "there is no such file"
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, nobody's home
        what = getattr(error, "strerror", None) or shorten(str(error), 100)
    raise CalibrationError(f"{key}: {shorten(str(source), 120)}: {what}", hint=hint)
