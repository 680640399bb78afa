"""ONNX for ONNX Runtime, browsers and phones: a folder that other programs open as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.progress import Progress, Steps
from edgepack.errors import EdgepackError, RecipeError, missing_extra
from edgepack.planning.target import Library, Target
from edgepack.recipe.export import Onnx as Options
from edgepack.recipe.sections import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.architectures.base import Architecture
    from edgepack.checkpoint import Checkpoint
    from edgepack.formats.base import Format
    from edgepack.planning.target import Formats, Load, Types
    from edgepack.runtimes.base import Scorer
    from edgepack.runtimes.models import Model, Runnable

FLOAT = 4


class Onnx(Target):
    """A graph with quantized initializers, configuration, tokenizer and a model card."""

    name = "onnx"
    runtime = Library("onnxruntime", "onnxruntime", "onnx")
    through = "ONNX Runtime"
    ladder = (
        *("q8_0", "int4_g32", "q4_0", "int4_g64", "int4_g128", "int3_g32", "int3_g64", "int3_g128"),
        *("int2_g32", "q2_0", "int2_g128"),
    )
    maker = "plain rounding"
    copies = 2

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: D102
        if find_spec("onnx") is None:
            raise missing_extra("onnx", "onnx")

    @classmethod
    def why_not(cls, family: Architecture) -> str | None:  # noqa: D102
        from edgepack.export import onnx_families

        return onnx_families.why_not(family)

    def check_model(self, original: Checkpoint) -> list[str]:  # noqa: D102
        from edgepack.export import onnx_limits as limits

        if reason := self.why_not(original.architecture):
            raise RecipeError(f"model: {reason}", hint="write --target gguf")
        limits.check_profile(original, self.export.onnx)
        return limits.half_remarks(original, self.export.onnx)

    def options(self, model: Checkpoint) -> dict[str, Any]:  # noqa: D102
        return super().options(model) | self.export.onnx.model_dump()

    def stores(self, fmt: Format) -> bool:  # noqa: D102
        from edgepack.export.onnx import stores

        return stores(fmt)

    def files_size(self, model: Checkpoint, formats: Formats) -> int:  # noqa: D102
        from edgepack.export import onnx

        return onnx.files_size(model, formats, onnx.graph_options(model, self.export.onnx))

    def remarks(self, model: Checkpoint, formats: Formats) -> list[str]:  # noqa: D102
        from edgepack.export import onnx_limits as limits

        used = {fmt.Q for fmt in formats.values()}
        slow = limits.slow_formats(self.export.onnx.profile, used)
        return [*limits.context_remarks(model, self.export.onnx), *slow]

    def requires(self, model: Checkpoint, formats: Formats) -> str | None:  # noqa: D102
        from edgepack.export import onnx
        from edgepack.export.requirements import oldest_version

        options = onnx.graph_options(model, self.export.onnx)
        (major, minor), what = oldest_version(
            onnx.graph_without_values(model, formats, options), half=options.half
        )
        return f"ONNX Runtime {major}.{minor} or later (for {what})"

    def write(  # noqa: D102
        self,
        model: Checkpoint,
        formats: Formats,
        load: Load,
        norms: Mapping[str, Tensor],
        folder: Path,
    ) -> Steps[None]:
        from edgepack.export import onnx

        options = onnx.graph_options(model, self.export.onnx)
        yield from onnx.write_folder(folder, model, formats, load, options, norms)

    def written(self, folder: Path, model: Checkpoint) -> Model:  # noqa: D102
        from edgepack.runtimes.models import Model
        from edgepack.runtimes.onnx_runtime import model_file

        return Model("edgepack", model_file(folder))

    def check_written(self, runtime: Scorer) -> None:  # noqa: D102
        from edgepack.export import onnx_limits as limits

        if self.export.onnx.activations == "float16":
            limits.check_finite_logits(runtime)

    def write_original(self, original: Checkpoint, folder: Path, stage: str) -> Steps[Runnable]:  # noqa: D102
        from edgepack.export import onnx
        from edgepack.runtimes.models import Model

        yield Progress(stage, 0, 1, "writing the original as f16")
        options = onnx.graph_options(original, Options())
        path = yield from onnx.write_plain(folder, original, None, options, stage)
        return Model("original (f16)", path)

    def nearest_baselines(self, model: Checkpoint, formats: Formats) -> dict[str, Types]:  # noqa: D102
        return {"plain rounding, same types": {name: fmt.Q for name, fmt in formats.items()}}

    def all_baselines(self, model: Checkpoint, formats: Formats) -> dict[str, Types]:  # noqa: D102
        from edgepack.targets import _plain

        return dict(_plain.every(model, formats, self.ladder))

    def write_baseline(  # noqa: D102
        self,
        model: Checkpoint,
        types: Types,
        imatrix: Callable[[str], Tensor],
        place: Path,
        stage: str,
    ) -> Steps[Path]:
        from edgepack.export import onnx

        place.mkdir()
        options = onnx.graph_options(model, self.export.onnx)
        return (yield from onnx.write_plain(place, model, types, options, stage))

    def memory(self, elements: int, own: int, logits: int, *, stock: bool) -> int:
        """ONNX Runtime copies files, what is f16 as float32."""
        files = 2 if stock else 1
        return (2 + FLOAT) * elements + files * self.copies * own + 2 * (1 + files) * logits

    def without_factors(self) -> None:  # noqa: D102
        raise EdgepackError(
            "--no-factors: the factors of an ONNX model are part of its graph",
            hint="build the recipe with rank: 0",
        )


PLUGIN = Onnx
