"""A checkpoint for transformers: the model as it is, sliced perhaps, and not packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from edgepack.core.progress import Steps
from edgepack.errors import RecipeError
from edgepack.planning.target import Library, Target
from edgepack.recipe.sections import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.checkpoint import Checkpoint
    from edgepack.formats.base import Format
    from edgepack.planning.target import Formats, Load
    from edgepack.runtimes.models import Runnable


class HuggingFace(Target):
    """A Hugging Face folder, which a recipe can name as its ``model:``."""

    name = "checkpoint"
    runtime = Library("torch", "torch", "")
    through = "our own forward pass in float32"
    packs = False

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: D102
        if recipe.compress or recipe.recover:
            section = "compress" if recipe.compress else "recover"
            raise RecipeError(
                f"{section}: a checkpoint is written before anything is compressed",
                hint=f"remove the section `{section}`, or write --target gguf",
            )

    def stores(self, fmt: Format) -> bool:  # noqa: D102
        return False

    def files_size(self, model: Checkpoint, formats: Formats) -> int:  # noqa: D102
        from edgepack.checkpoint.save import model_bytes

        return model_bytes(model)

    def write(  # noqa: D102
        self,
        model: Checkpoint,
        formats: Formats,
        load: Load,
        norms: Mapping[str, Tensor],
        folder: Path,
    ) -> Steps[None]:
        from edgepack.checkpoint.save import save

        yield from save(model, model.tensor, folder, "export")

    def written(self, folder: Path, model: Checkpoint) -> Runnable:  # noqa: D102
        from edgepack.runtimes.models import Streamed

        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return Streamed("edgepack", model, size)

    def write_original(self, original: Checkpoint, folder: Path, stage: str) -> Steps[Runnable]:  # noqa: D102
        from edgepack.runtimes.models import Streamed

        yield from ()
        return Streamed("original", original, 0)

    def commands(self, manifest: Mapping[str, Any], folder: PurePath) -> list[str]:  # noqa: D102
        return []


PLUGIN = HuggingFace
