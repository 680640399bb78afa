"""What edgepack asks of a target: a kind of files that a runtime reads.

Plug-ins of the kind ``targets``: one file each, whose ``PLUGIN`` is a subclass of `Target`. They
import what is heavy when they are asked, so that ``edgepack show`` answers at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from edgepack.core import plugins
from edgepack.core.progress import Progress
from edgepack.core.untrusted import quote
from edgepack.errors import RecipeError, missing_extra
from edgepack.recipe.export import Export
from edgepack.recipe.sections import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.architectures.base import Architecture
    from edgepack.checkpoint import Checkpoint
    from edgepack.core.progress import Steps
    from edgepack.core.weights import FactoredWeight, WeightFormat
    from edgepack.formats.base import Format
    from edgepack.runtimes.base import Scorer
    from edgepack.runtimes.models import Runnable

    Formats = Mapping[str, WeightFormat]
    """Matrix → how it is stored."""
    Types = Mapping[str, str]
    """Matrix → format of Q, in a file of another's making."""
    Load = Callable[[str], FactoredWeight]


class Library(NamedTuple):
    """What runs the files of a target: a module, the package that has it, our extra for that."""

    module: str
    package: str
    extra: str

    @property
    def is_installed(self) -> bool:
        """Whether it is there."""
        return find_spec(self.module) is not None

    def check(self) -> None:
        """Refuse to go on without it."""
        if not self.is_installed:
            raise missing_extra(self.package, self.extra)


class Target(ABC):
    """A kind of files, with what a recipe says of them under ``export``."""

    name: ClassVar[str]
    runtime: ClassVar[Library]
    through: ClassVar[str]
    """What its files are measured through, in words."""
    packs: ClassVar[bool] = True
    """Whether matrices are stored in formats, not as the floats that they are."""
    ladder: ClassVar[tuple[str, ...]] = ()
    """Formats worth trying for a size, the largest first."""
    maker: ClassVar[str | None] = None
    """Whose files stand beside ours in a comparison; None where nobody's do."""
    copies: ClassVar[int] = 1
    """How often its runtime holds the weights in memory."""

    def __init__(self, export: Export) -> None:
        self.export = export

    @property
    def module(self) -> str:
        """Where its code is, on which its files depend."""
        return plugins.module("targets", self.name)

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise `RecipeError` for what this target cannot do, before any model is opened."""
        return

    @classmethod
    def why_not(cls, family: Architecture) -> str | None:
        """Why models of a family cannot be written as this target; None if they can."""
        return None

    def check_model(self, original: Checkpoint) -> list[str]:
        """Raise `RecipeError` for a model that this target cannot hold; warnings."""
        return []

    def options(self, model: Checkpoint) -> dict[str, Any]:
        """What its files depend on beside formats and weights, as JSON."""
        return {"model": str(model.source["model"])}

    @abstractmethod
    def stores(self, fmt: Format) -> bool:
        """Whether its files can hold a format."""

    @abstractmethod
    def files_size(self, model: Checkpoint, formats: Formats) -> int:
        """Bytes of the files: tensors, factors, metadata."""

    def remarks(self, model: Checkpoint, formats: Formats) -> list[str]:
        """Warnings about formats, or about what its files will not know of the model."""
        return []

    def requires(self, model: Checkpoint, formats: Formats) -> str | None:
        """What the files need of their runtime, where that is not any version edgepack runs."""
        return None

    @abstractmethod
    def write(
        self,
        model: Checkpoint,
        formats: Formats,
        load: Load,
        norms: Mapping[str, Tensor],
        folder: Path,
    ) -> Steps[None]:
        """Write the files into `folder`, which a target that packs finds empty. `load` gives
        decomposed weights, `norms` trained norms and biases."""

    @abstractmethod
    def written(self, folder: Path, model: Checkpoint) -> Runnable:
        """The files in a folder, to be run."""

    def check_written(self, runtime: Scorer) -> None:
        """Raise `ExportError` for files that compute no numbers; `runtime` has them open."""
        return

    @abstractmethod
    def write_original(self, original: Checkpoint, folder: Path, stage: str) -> Steps[Runnable]:
        """The model as it was found, its matrices as f16: what KL is measured from."""

    def nearest_baselines(self, model: Checkpoint, formats: Formats) -> dict[str, Types]:
        """Label → types of the files to measure beside ours: the nearest in size."""
        return {}

    def all_baselines(self, model: Checkpoint, formats: Formats) -> dict[str, Types]:
        """Label → types of all files that others would make of the model."""
        return {}

    def write_baseline(
        self,
        model: Checkpoint,
        types: Types,
        imatrix: Callable[[str], Tensor],
        place: Path,
        stage: str,
    ) -> Steps[Path]:
        """Write a baseline's file beside `place` (a path without suffix); the file to open."""
        raise NotImplementedError
        yield

    def write_baselines(
        self,
        model: Checkpoint,
        chosen: Mapping[str, Types],
        imatrix: Callable[[str], Tensor],
        folder: Path,
        stage: str,
    ) -> Steps[dict[str, Path]]:
        """Write several into `folder`, given as label → types; label → file to open."""
        files = {}
        for number, (label, types) in enumerate(chosen.items()):
            yield Progress(stage, 0, 1, f"{label} ({number + 1} of {len(chosen)})")
            place = folder / f"baseline-{number}"
            files[label] = yield from self.write_baseline(model, types, imatrix, place, stage)
        return files

    def memory(self, elements: int, own: int, logits: int, *, stock: bool) -> int:
        """Expected peak bytes while files are measured: the original of so many `elements` (0: its
        predictions come from elsewhere), `own` bytes of files of ours, the bytes of a chunk's
        `logits`; with `stock`, others' files too."""
        return 0

    def without_factors(self) -> None:
        """Raise `EdgepackError` where files cannot be run without L and R."""
        return

    def can_open(self, formats: Formats) -> bool:
        """Whether the runtime, as it is installed, reads files with these formats."""
        return self.runtime.is_installed

    def commands(self, manifest: Mapping[str, Any], folder: PurePath) -> list[str]:
        """Lines that talk to an output folder."""
        return [f"edgepack chat {folder}"]


def names() -> tuple[str, ...]:
    """All targets."""
    return plugins.names("targets")


def kind(name: str) -> type[Target]:
    """The class of the target of that name."""
    if name not in names():
        hint = "choose one of: " + ", ".join(names())
        raise RecipeError(f"--target: {quote(name)} is not built", hint=hint)
    plugin: type[Target] = plugins.find("targets", name)
    return plugin


def get(name: str, export: Export | None = None) -> Target:
    """The target of that name, for what a recipe says under ``export``."""
    return kind(name)(export or Export())
