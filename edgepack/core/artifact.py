"""The result of a build: a folder, and the manifest that describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from edgepack.core.disk import sha256
from edgepack.core.speeds import Prediction
from edgepack.core.untrusted import NOT_OPENED, Untrusted, read_json, validate
from edgepack.errors import EdgepackError

MANIFEST, SOFTWARE = "manifest.json", "sbom.cdx.json"
OURS, APART = "edgepack", "edgepack, L·R apart"
"""Names in the results: the files of the folder, and where factors were merged the files that it
would have had without that."""


def _inside(name: str) -> str:
    """Check that a name stays inside the folder."""
    parts = PurePosixPath(name).parts
    plain = not name.startswith("/") and ".." not in parts and "\\" not in name
    if not (parts and plain and name.isprintable() and len(name) < 1000) or ":" in parts[0]:
        raise ValueError("is no name of a file in the folder")
    return name


FileName = Annotated[str, AfterValidator(_inside)]
SourceKey = (
    Literal[
        "model", "calibrate.source", "export.measure.text", "finetune.data", "finetune.validation"
    ]
    | Annotated[str, Field(pattern=r"^merge\..+$", max_length=1000)]
    | Annotated[str, Field(pattern=r"^model\.(base|adapter(\.\d{1,3})?)$")]
)
"""Key of the recipe; of a merge, ``merge.`` and a name in it; of a fine-tune, its base and its
adapters."""
Count = Annotated[int, Field(ge=0)]


class File(Untrusted):
    """A file of the folder: its digest and size when it was written."""

    sha256: str
    bytes: Count


class Model(Untrusted):
    """The model that the folder was built from."""

    model: str
    files: dict[str, str] = Field(default_factory=dict)


class Formats(Untrusted):
    """Formats of the parts of W ≈ Q + L·R."""

    Q: str
    L: str | None = None
    R: str | None = None


class Weight(Untrusted):
    """How one matrix was stored, and its errors."""

    formats: Formats
    rank: Count
    error: float
    error_plain: float
    damping: float | None = None
    method: str
    clipped: Count = 0
    lost: Count = 0
    dtype: str | None = None


class Result(Untrusted):
    """Metrics of one model."""

    bytes: Count
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_error: float
    kl_p999: float
    top1: float
    top1_error: float


class Measured(Untrusted):
    """The measured results, or why nothing was measured."""

    skipped: str | None = None
    text: str = ""
    tokens: Count = 0
    context: Count = 0
    reference_kl: float | None = None
    reference: str | None = None
    """``streamed`` if KL is measured from our own forward pass."""
    results: dict[str, Result] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.skipped is None and not self.results:
            raise ValueError("has neither results nor the reason why there are none")
        return self


class Bits(Untrusted):
    """Bits per weight."""

    blocks: float
    all: float


class Fallback(Untrusted):
    """A format that did not fit a matrix, and the one used instead."""

    name: str
    asked: str
    given: str
    columns: Count


class Allocation(Untrusted):
    """What a size led to."""

    target: Count
    size: Count
    expected_kl: float | None
    expected_kl_rank_0: float | None


class OnType(Untrusted):
    """What lies on the grids of one type."""

    weights: Count
    numbers: Count


class Grids(Untrusted):
    """How much of the matrices lies on a grid, by the smallest type that has it; and of how many
    matrices and numbers."""

    types: dict[str, OnType]
    weights: Count
    numbers: Count


class Distilled(Untrusted):
    """What training gained: held-out KL."""

    start: float
    best: float
    best_step: Count
    steps: Count
    dtype: str = ""
    device: str = ""
    text_tokens: Count = 0


class MergedAdapter(Untrusted):
    """An adapter that was merged, and its scale."""

    name: str
    scale: float


class Merged(Untrusted):
    """How adapters were merged into the weights."""

    adapters: list[MergedAdapter]
    method: str
    onto: str
    metric: str
    weights: Count
    folded_factors: Count


class MergeOf(Untrusted):
    """How several models became the one that was built."""

    method: str
    models: list[str]
    layers: Count
    bytes: Count


class MergedFactors(Untrusted):
    """How L·R was folded into Q."""

    rounded: str
    weights: Count


class Machines(Untrusted):
    """Machines of one kind that shared the work."""

    cpu: str
    instructions: str
    cores: Count
    count: Count


class Cluster(Untrusted):
    """What did the work, where several machines did; nothing names one."""

    machines: list[Machines]
    items: Count
    done_again: Count
    models_sent: Count
    files_sent: Count
    bytes_received: Count


DEVICE = r"^[a-z]{1,20}( \([\x20-\x5f\x61-\x7e]{1,100}\))?$"


class Vocabulary(Untrusted):
    """The tokenizer in the files: its tokens, sha256 of all of it and of the chat template."""

    tokens: Count
    vocabulary: str
    chat_template: str | None = None


class Manifest(Untrusted):
    """The fields of manifest.json. A folder is usable only if they are valid."""

    edgepack: str
    target: str
    model: Model
    files: Annotated[dict[FileName, File], Field(max_length=100_000)]
    recipe: dict[str, Any]
    versions: dict[str, str]
    stages: dict[str, str]
    bytes: dict[str, Count]
    bits_per_weight: Bits
    fallbacks: list[Fallback]
    warnings: list[str]
    weights: dict[str, Weight]
    measured: Measured
    slice: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]] | None = None
    allocation: Allocation | None = None
    grids: Grids | None = None
    prediction: Prediction | None = None
    requires: str | None = None
    sources: dict[SourceKey, str] = Field(default_factory=dict)
    rft: Distilled | None = None
    recovered: Distilled | None = None
    merge: MergeOf | None = None
    merged: Merged | None = None
    merged_factors: MergedFactors | None = None
    cluster: Cluster | None = None
    device: Annotated[str, Field(pattern=DEVICE)] = "cpu"
    """Where it was computed, as ``cuda (NVIDIA L4)``."""
    environment: dict[str, Any] | None = None
    tokenizer: Vocabulary | None = None


OPTIONAL = {
    name: field.get_default(call_default_factory=True)
    for name, field in Manifest.model_fields.items()
    if not field.is_required()
}
"""Fields that manifests of earlier versions may lack."""


@dataclass(frozen=True)
class Artifact:
    """An output folder. `manifest` holds inputs, options, versions, files (sha256, bytes),
    metrics, fallbacks and warnings."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def base(self) -> Path:
        """The file that the runtime opens: base.gguf (Q), or the ONNX graph."""
        files = (name for name in self.manifest["files"] if not name.startswith("adapters/"))
        names = [name for name in files if name.endswith((".gguf", ".onnx"))]
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
        """Read an output folder's manifest, and check its files against their sha256."""
        artifact = Artifact.read(folder)
        changed = artifact.changed_files()
        if changed:
            gone = not (folder / changed[0]).exists()
            what = "is missing" if gone else "is not the file that manifest.json describes (sha256)"
            raise EdgepackError(
                f"{folder}: {changed[0]} {what}",
                hint="copy the folder again, or build it again; a single .gguf or .onnx file can "
                "be evaluated by its own name",
            )
        return artifact

    @staticmethod
    def read(folder: Path) -> Artifact:
        """Read an output folder's manifest without checking its files."""
        path = folder / MANIFEST
        try:
            content = read_json(path, place=str(path))
        except FileNotFoundError:
            raise EdgepackError(
                f"{folder}: is not an output folder of edgepack (no {MANIFEST})",
                hint="edgepack build RECIPE --target gguf makes one",
            ) from None
        except OSError as error:
            raise EdgepackError(
                f"{path}: cannot be read ({error.strerror})", hint=NOT_OPENED
            ) from None
        validate(Manifest, content, str(path), hint="build the folder again")
        return Artifact(folder, OPTIONAL | content)

    def changed_files(self) -> list[str]:
        """Files of the manifest that are missing or differ from its description."""
        return [
            name
            for name, known in self.manifest["files"].items()
            if not _is(self.folder / name, known)
        ]

    def foreign_files(self) -> list[str]:
        """Files in the folder that the build did not write, or that were changed since."""
        listed = {*self.manifest["files"], MANIFEST}
        found = (path for path in sorted(self.folder.rglob("*")) if not _is_folder(path))
        names = [path.relative_to(self.folder).as_posix() for path in found]
        changed = [name for name in self.changed_files() if (self.folder / name).exists()]
        return [name for name in names if name not in listed] + changed


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is(path: Path, known: dict[str, Any]) -> bool:
    """Whether a file matches its entry in the manifest."""
    try:
        return path.stat().st_size == known["bytes"] and digest(path) == known
    except OSError:
        return False


def digest(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}
