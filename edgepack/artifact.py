"""What a build leaves behind: a folder, and a manifest that says all about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """An output folder. `manifest` holds inputs, options, versions, files (sha256, bytes),
    metrics, fallbacks and warnings."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def base(self) -> Path:
        """The file that the runtime opens: base.gguf (Q), or the ONNX graph."""
        names = [name for name in self.manifest["files"] if name.endswith((".gguf", ".onnx"))]
        if not names:
            raise EdgepackError(
                f"{self.folder}: is no model for a runtime, but a {self.manifest['target']}",
                hint="name it as `model:` of a recipe and build that with --target gguf",
            )
        return self.folder / str(min(names))

    @property
    def factors(self) -> Path | None:
        """The GGUF adapter of L and R, None at rank 0."""
        path = self.folder / "factors.gguf"
        return path if path.name in self.manifest["files"] else None

    @staticmethod
    def open(folder: Path) -> Artifact:
        """Read an output folder's manifest."""
        path = folder / MANIFEST
        try:
            return Artifact(folder, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise EdgepackError(
                f"{folder}: is not an output folder of edgepack (no {MANIFEST})",
                hint="edgepack build RECIPE --target gguf makes one",
            ) from None
        except (OSError, ValueError) as error:
            raise EdgepackError(f"{path}: cannot be read ({error})") from None


def digest(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    with path.open("rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }
