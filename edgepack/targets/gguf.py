"""GGUF for llama.cpp: Q as stock blocks, L and R as an adapter, a Modelfile for Ollama."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from edgepack.core.progress import Progress, Steps
from edgepack.errors import RecipeError
from edgepack.export import programs
from edgepack.planning.target import Library, Target
from edgepack.recipe.sections import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.architectures.base import Architecture
    from edgepack.checkpoint import Checkpoint
    from edgepack.formats.base import Format
    from edgepack.planning.target import Formats, Load, Types
    from edgepack.runtimes.models import Model, Runnable

BASE, FACTORS = "base.gguf", "factors.gguf"
STOCK_FILES = 2
"""Stock files that are measured beside ours, usually."""


class Gguf(Target):
    """Files for llama.cpp and what is built on it."""

    name = "gguf"
    runtime = Library("llama_cpp", "llama-cpp-python", "llama")
    through = "llama.cpp"
    ladder = (
        *("q8_0", "q6_k", "q5_1", "q5_k", "q5_0", "q4_1", "q4_k", "iq4_nl", "iq4_xs", "mxfp4"),
        *("iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "q2_0"),
    )
    """Types that no other of about their size betters after error feedback
    (`benchmarks/types.py`), or that fit widths where those do not."""
    maker = "stock + imatrix"

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: D102
        if recipe.slice is not None and recipe.slice.method == "per_block":
            raise RecipeError(
                "slice.method: no GGUF architecture has the shortcut matrices of a per_block model",
                hint="use method: global, or write --target checkpoint",
            )

    @classmethod
    def why_not(cls, family: Architecture) -> str | None:  # noqa: D102
        return None if family.gguf else f"{family.name} models cannot be written as GGUF"

    def check_model(self, original: Checkpoint) -> list[str]:  # noqa: D102
        from edgepack.checkpoint import vocabulary_check

        if reason := self.why_not(original.architecture):
            raise RecipeError(f"model: {reason}", hint="--target checkpoint writes them, sliced")
        return [*original.gguf_warnings(), *vocabulary_check.check(original)]

    def options(self, model: Checkpoint) -> dict[str, Any]:
        """The model card's part of the metadata is not in the model's key."""
        metadata = model.gguf_metadata().items()
        general = {key: str(entry[0]) for key, entry in metadata if key.startswith("general.")}
        return super().options(model) | {"metadata": general}

    def stores(self, fmt: Format) -> bool:  # noqa: D102
        from edgepack.formats.base import GgmlFormat

        return isinstance(fmt, GgmlFormat)

    def files_size(self, model: Checkpoint, formats: Formats) -> int:  # noqa: D102
        from edgepack.export import gguf

        types = {name: fmt.Q for name, fmt in formats.items()}
        return gguf.files_size(model, types, _with_factors(formats))

    def can_open(self, formats: Formats) -> bool:  # noqa: D102
        proposed = programs.PROPOSED.intersection(fmt.Q for fmt in formats.values())
        return super().can_open(formats) and not proposed

    def remarks(self, model: Checkpoint, formats: Formats) -> list[str]:  # noqa: D102
        architecture = str(model.gguf_metadata()["general.architecture"][0])
        types = {fmt.Q for fmt in formats.values()}
        waiting = [f"{name}: {why}" for name in sorted(types) if (why := _waits(name))]
        factors = bool(_with_factors(formats))
        return [*waiting, *programs.refusals(architecture, types, factors=factors)]

    def requires(self, model: Checkpoint, formats: Formats) -> str | None:  # noqa: D102
        return programs.llama_cpp({fmt.Q for fmt in formats.values()})

    def write(  # noqa: D102
        self,
        model: Checkpoint,
        formats: Formats,
        load: Load,
        norms: Mapping[str, Tensor],
        folder: Path,
    ) -> Steps[None]:
        from edgepack.export.gguf import write_factors, write_model
        from edgepack.export.modelfile import modelfile, stops

        yield Progress("export", 0, 1, BASE)
        types = {name: fmt.Q for name, fmt in formats.items()}
        write_model(folder / BASE, model, types, lambda name: load(name).Q, norms)
        ranked = _with_factors(formats)
        if ranked:
            write_factors(folder / FACTORS, model, ranked, load)
        text = modelfile(factors=FACTORS if ranked else None, stops=stops(model))
        (folder / "Modelfile").write_text(text, encoding="utf-8")

    def written(self, folder: Path, model: Checkpoint) -> Model:  # noqa: D102
        from edgepack.runtimes.models import Model

        factors = folder / FACTORS
        return Model("edgepack", folder / BASE, factors if factors.exists() else None)

    def write_original(self, original: Checkpoint, folder: Path, stage: str) -> Steps[Runnable]:  # noqa: D102
        from edgepack.export.gguf import write_plain
        from edgepack.runtimes.models import Model

        yield Progress(stage, 0, 1, "writing the original as f16")
        write_plain(folder / "original.gguf", original)
        return Model("original (f16)", folder / "original.gguf")

    def nearest_baselines(self, model: Checkpoint, formats: Formats) -> dict[str, Types]:  # noqa: D102
        from edgepack.targets import _stock

        return dict(_stock.nearest(model, formats))

    def all_baselines(self, model: Checkpoint, formats: Formats) -> dict[str, Types]:  # noqa: D102
        from edgepack.targets import _stock

        return dict(_stock.every(model, formats))

    def write_baseline(  # noqa: D102
        self,
        model: Checkpoint,
        types: Types,
        imatrix: Callable[[str], Tensor],
        place: Path,
        stage: str,
    ) -> Steps[Path]:
        from edgepack.targets import _stock

        yield from ()  # it takes no longer than one step
        path = place.with_suffix(".gguf")
        _stock.write(model, imatrix, types, path)
        return path

    def memory(self, elements: int, own: int, logits: int, *, stock: bool) -> int:
        """llama.cpp maps the files, whose pages the system drops when memory is short: only what it
        computes with counts."""
        return 3 * (2 + (STOCK_FILES if stock else 0)) * logits

    def commands(self, manifest: Mapping[str, Any], folder: PurePath) -> list[str]:  # noqa: D102
        weights = manifest["weights"].values()
        used = {about["formats"]["Q"] for about in weights}
        base, modelfile = (shlex.quote(str(folder / name)) for name in (BASE, "Modelfile"))
        ranked = any(about["rank"] for about in weights)
        files = f"-m {base}" + (f" --lora {_listed(folder / FACTORS)}" if ranked else "")
        lines = [f"edgepack {verb} {shlex.quote(str(folder))}" for verb in ("chat", "serve")]
        lines += [f"{program} {files}" for program in ("llama-cli", "llama-server")]
        if not programs.PROPOSED.isdisjoint(used):  # of a llama.cpp that was built for them
            return lines[-2:]
        if programs.UNREAD.isdisjoint(used):
            lines.append(f"ollama create NAME -f {modelfile} && ollama run NAME")
        if not ranked:  # LM Studio has no adapters; without --copy it would take the file away
            lines.append(f"lms import --copy --user-repo edgepack/NAME {base}")
        return lines


def _listed(path: PurePath) -> str:
    """A path for --lora, which takes several with commas between (`parse_csv_row`)."""
    text = str(path)
    quoted = '"{}"'.format(text.replace('"', '""')) if set(text) & set('",') else text
    return shlex.quote(quoted)


def _waits(name: str) -> str:
    """Why a type is experimental; empty if it is not."""
    from edgepack.formats import get
    from edgepack.formats.base import GgmlFormat

    fmt = get(name)
    return fmt.waits if isinstance(fmt, GgmlFormat) else ""


def _with_factors(formats: Formats) -> Formats:
    """Those that have L and R."""
    return {name: fmt for name, fmt in formats.items() if fmt.rank}


PLUGIN = Gguf
