"""Speed and memory of finished files on the machine that is to run them, beside its limits.

Takes output folders or files, and a device; gives tokens per second, memory and shares of the
roofline, as JSON, tables and pictures. Measures in processes of their own (`worker`, `native/`),
which take turns. May import ``output``, ``report``, ``metrics``, ``runtimes`` and below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack.bench.results import Bench
    from edgepack.core.progress import Progress
    from edgepack.runtimes.models import Model

__all__ = ["bench"]


def bench(
    models: Sequence[str | Path | Model],
    *,
    device: str = "local",
    threads: Sequence[int] = (),
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Bench:
    """Measure models (output folders, .gguf or .onnx files) in turns on a device.

    `threads` are the numbers of threads to try, by default the number of physical cores. `options`
    are those of `run.Request`: prompts, decode, depths, batches, rounds, all_types, timeout. Raises
    `edgepack.errors.EdgepackError` for what cannot be run.
    """
    from edgepack import devices
    from edgepack.bench.run import Request, default_threads
    from edgepack.bench.run import bench as run
    from edgepack.core.progress import finish
    from edgepack.runtimes.models import Model

    loaded = [one if isinstance(one, Model) else Model.from_path(Path(one)) for one in models]
    with devices.get(device) as machine:
        counts = tuple(threads) or (default_threads(machine),)
        return finish(run(Request(loaded, counts, **options), machine), progress)
