"""H that is not kept: made block by block from the top, used, and deleted.

The sweep lies in a folder inside that of the stage that uses H, so that a killed run goes on from
there. Its bytes are those of H that is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgepack.calibration import experts
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.sweep import Use
from edgepack.core.disk import atomic, free_space
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Disk

PLACE = "calibration"


def stream(calibration: Calibrate, folder: Path, executor: Executor, use: Use) -> Steps[None]:
    """Have the Hessians of all blocks made and used, those of the last block first."""
    place = folder / PLACE
    place.mkdir(exist_ok=True)

    def then(block: int | None) -> Steps[None]:
        yield from use(block, place)
        if block is not None:
            for path in (place / str(block)).iterdir():
                if path.name != experts.ABOUT:
                    path.unlink()

    yield from calibration.sweep(place, executor, then)
    if about := experts.of_all(place):
        (folder / "all").mkdir(exist_ok=True)
        with atomic(folder / "all" / experts.ABOUT) as temporary:
            experts.write(temporary, about)
    clean(folder)


def clean(folder: Path) -> None:
    """Remove the sweep of a killed run that nothing needs any more."""
    shutil.rmtree(folder / PLACE, ignore_errors=True)


def sweep_memory(calibration: object) -> int:
    """Bytes of memory that a stage takes for H that it has made."""
    if not (isinstance(calibration, Calibrate) and calibration.streams):
        return 0
    return calibration.sweep_memory()


def sweep_disk(calibration: object, results: int = 0) -> Disk:
    """Bytes of disk of a stage that has H made, with its `results`, which come one by one."""
    if not (isinstance(calibration, Calibrate) and calibration.streams):
        return Disk(results, results)
    sizes = calibration.sizes
    sweep = sizes.disk(sizes.every(free_space()), kept=False)
    return Disk(max(sweep.peak, sweep.kept + results), results)
