"""edgepack: language models for phones and laptops, W ≈ Q + L·R on stock GGUF blocks or ONNX.

>>> import edgepack
>>> artifact = edgepack.build("recipe.yaml", target="gguf")  # doctest: +SKIP
>>> artifact.manifest["bits_per_weight"]["blocks"]  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgepack.core import telemetry
from edgepack.core.progress import finish

if TYPE_CHECKING:
    from edgepack.comparison.compare import Point
    from edgepack.comparison.scoreboard import Scoreboard
    from edgepack.core.artifact import Artifact
    from edgepack.core.executor import Executor
    from edgepack.core.progress import Progress
    from edgepack.device_profile.profile import DeviceProfile
    from edgepack.finetune.graph.options import Options
    from edgepack.planning.plan import Plan
    from edgepack.recipe.sections import Recipe

telemetry.switch_off()

__all__ = [
    "build",
    "compare",
    "evaluate",
    "export_training",
    "merge_adapters",
    "merge_models",
    "plan",
]


def plan(
    recipe: str | Path,
    target: str = "gguf",
    *,
    device_profile: str | Path | None = None,
    experimental_types: bool = False,
    device: str = "cpu",
) -> Plan:
    """What `build` would do: stages, bytes, bits per weight; reads headers only.

    `device_profile` is a ``bench.json`` of the device that the files are for. With
    `experimental_types`, types that stock runtimes do not have yet are allowed. `device` is where
    this machine would compute (see `build`). Raises `edgepack.errors.EdgepackError` for everything
    in the recipe that cannot be done.
    """
    from edgepack.core import accelerator
    from edgepack.pipeline import make_plan

    path, chosen = Path(recipe), accelerator.choose(device)
    loaded = _loaded(path, experimental_types)
    return make_plan(loaded, target, path.parent, _profile(device_profile), device=chosen)


def _loaded(path: Path, experimental_types: bool) -> Recipe:
    from edgepack.recipe.read import load

    recipe = load(path)
    if not experimental_types or recipe.compress is None:
        return recipe
    compress = recipe.compress.model_copy(update={"experimental_types": True})
    return recipe.model_copy(update={"compress": compress})


def _profile(path: str | Path | None) -> DeviceProfile | None:
    from edgepack.device_profile.profile import read_profile

    return None if path is None else read_profile(Path(path))


def build(
    recipe: str | Path,
    target: str = "gguf",
    *,
    out: str | Path | None = None,
    force: bool = False,
    device_profile: str | Path | None = None,
    experimental_types: bool = False,
    device: str = "cpu",
    cluster: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Carry a recipe out and return the output folder.

    `out` defaults to ``NAME-TARGET`` in the working directory; an existing folder is replaced
    only with `force`. `device_profile` is a ``bench.json`` of the device that the files are for.
    With `experimental_types`, types that stock runtimes do not have yet are allowed. `device` is
    where this machine computes: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``, or ``auto`` for an
    accelerator if there is one. `cluster` is the address of a Ray cluster that shares the work
    (``auto``: the one of this machine). `progress` hears what is being done. A killed build goes on
    where it stopped.
    """
    from edgepack import pipeline
    from edgepack.core import accelerator

    path, chosen = Path(recipe), accelerator.choose(device)
    loaded = _loaded(path, experimental_types)
    folder = pipeline.output_folder(loaded, path.stem, target, Path(out) if out else None)
    profile = _profile(device_profile)
    place = {"base": path.parent, "out": folder}
    with _executor(cluster, device) as executor:
        steps = pipeline.build(
            loaded,
            target,
            **place,
            force=force,
            profile=profile,
            device=chosen,
            executor=executor,
        )
        return finish(steps, progress)


@contextmanager
def _executor(cluster: str | None, device: str = "cpu") -> Iterator[Executor | None]:
    """What does the work: the cluster at an address, or None for this machine alone."""
    if cluster is None:
        yield None
        return
    from edgepack.cluster.connect import connect, refuse_device
    from edgepack.core import accelerator

    refuse_device(accelerator.choose(device).type)
    with connect(cluster) as executor:
        yield executor


def evaluate(
    path: str | Path,
    *,
    against: Sequence[str | Path] = (),
    reference: str | Path | None = None,
    text: str | Path | None = None,
    tokens: int = 6144,
    context: int = 512,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    adapters: Sequence[tuple[Path, float]] = (),
    device: str = "cpu",
    cluster: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Scoreboard:
    """Perplexity, KL and top-1 agreement of models on a text, and their zero-shot accuracy.

    `path` and `against` are output folders or ``.gguf`` files. KL is that to `reference`, by
    default to the original that the folder `path` was made of; for a bare file there is none then.
    `text` is a file, by default what the folder's build measured on; `tokens` of it are used (0:
    none), in chunks of `context`. `tasks` (names in `edgepack.metrics.tasks.TASKS`) are read from
    the folder `data`; `limit` is how many items of each, evenly spread. With `adapters` (files and
    scales, see `Model.adapters`), `path` is measured without them and with them. `device` is where
    edgepack's own forward pass computes (see `build`), which runs what no other runtime does.
    `cluster` is the address of a Ray cluster that shares the chunks of the text.
    """
    from edgepack.comparison.evaluate import Request
    from edgepack.comparison.evaluate import evaluate as run
    from edgepack.core import accelerator

    def optional(place: str | Path | None) -> Path | None:
        return None if place is None else Path(place)

    request = Request(
        path=Path(path),
        against=tuple(map(Path, against)),
        reference=optional(reference),
        text=optional(text),
        tokens=tokens,
        context=context,
        tasks=tuple(tasks),
        data=optional(data),
        limit=limit,
        adapters=tuple(adapters),
        device=accelerator.choose(device),
    )
    with _executor(cluster, device) as executor:
        return finish(run(request, executor), progress)


def merge_adapters(
    folder: str | Path,
    adapters: Sequence[tuple[str, float]],
    out: str | Path,
    *,
    method: Literal["cat", "svd", "linear", "ties"] = "cat",
    rank: int | None = None,
    density: float = 0.2,
    merge_factors: bool = False,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Make a new output folder `out` of one and of its adapters (names or paths, with scales).

    ΔW is added to the original weights where they can be found, else to Q + L·R, and packed in the
    same formats. `method`, `rank` and `density` say how several adapters become one
    (`edgepack.adapters.combine`). With `merge_factors`, the result has no L and R.
    """
    from edgepack.adapter_merge.merge import Request, merge

    request = Request(
        Path(folder), tuple(adapters), Path(out), method, rank, density, merge_factors, force
    )
    return finish(merge(request), progress)


def merge_models(
    config: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    shard_size: int = 5_000_000_000,
    force: bool = False,
    cluster: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Carry out the merges of a file (mergekit's YAML, or a recipe with a section `merge`) and
    write the result, a Hugging Face folder, to `out`.

    `seed` is of methods with random numbers, `shard_size` the most bytes of a file of weights,
    `cluster` the address of a Ray cluster that shares the tensors. A killed run goes on where it
    stopped.
    """
    from edgepack.merge.documents import plan_merges
    from edgepack.merge.stage import Options
    from edgepack.output.merged import write_merge
    from edgepack.recipe.read import load_merges

    path, folder = Path(config), Path(out)
    title = folder.resolve().name or "merge"
    stage = plan_merges(load_merges(path), path.parent, Options(seed, shard_size), title)
    with _executor(cluster) as executor:
        steps = write_merge(stage, folder, base=path.parent, force=force, executor=executor)
        return finish(steps, progress)


def compare(
    recipes: Sequence[str | Path],
    sizes: Sequence[int],
    out: str | Path,
    *,
    target: str = "gguf",
    against: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    device_profile: str | Path | None = None,
    device: str = "cpu",
    cluster: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Point]:
    """Build recipes at several sizes (bytes) for a `target` (gguf or onnx) and measure them beside
    every stock type, or for ONNX beside plain rounding on every grid.

    `against` are output folders or ``.gguf`` files to measure with them; `tasks`, `data` and
    `limit` are those of `evaluate`, `device_profile`, `device` and `cluster` those of `build`. The
    builds stay in the folder `out`; a killed comparison goes on from what is cached. The points
    come smallest first.
    """
    from edgepack.comparison import compare as comparison
    from edgepack.core import accelerator
    from edgepack.errors import RecipeError
    from edgepack.metrics.tasks import load_all
    from edgepack.recipe.read import load

    chosen = accelerator.choose(device)
    paths = [Path(recipe) for recipe in recipes]
    loaded = {path.stem: (load(path), path.parent) for path in paths}
    if len(loaded) < len(paths):
        raise RecipeError("two recipes have the same name", hint="rename one of the files")
    if not sizes:
        raise RecipeError("--sizes: names no size", hint="write 60MB,70MB")
    items = load_all(tasks, Path(data) if data else None, limit)
    others = [Path(path) for path in against]
    profile = _profile(device_profile)
    with _executor(cluster, device) as executor:
        how = (target, profile, chosen, executor)
        steps = comparison.compare(loaded, sizes, Path(out), others, items, *how)
        return finish(steps, progress)


def export_training(
    folder: str | Path,
    out: str | Path,
    options: Options | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Write the training step of the model in an output folder as an ONNX graph into the new folder
    `out`, for ONNX Runtime anywhere (see `edgepack.finetune.graph`)."""
    from edgepack.errors import missing_extra

    if find_spec("onnx") is None:
        raise missing_extra("onnx", "onnx")
    from edgepack.finetune.graph.folder import export_training as write
    from edgepack.finetune.graph.options import Options

    return finish(write(Path(folder), Path(out), options or Options()), progress)
