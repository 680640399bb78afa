"""Errors of the operating system (disk full, out of memory) as errors with a remedy."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from tempfile import gettempdir

from edgepack.core.disk import FULL, no_room, root
from edgepack.core.tables import format_size
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError

NO_DEVICE_MEMORY = ("CUDA out of memory", "MPS backend out of memory")
"""torch's texts for full memory of an accelerator."""
NO_MEMORY_TEXTS = ("can't allocate memory", "not enough memory")
"""torch's texts for full memory, in a RuntimeError."""
REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
}
"""Errors of the machine or its permissions, not of the program."""


def from_os_error(error: Exception) -> EdgepackError | None:
    """A full disk or memory as an error with a remedy; None for everything else."""
    if number := no_room(error):
        place = _place(error)
        where = f" (writing {shorten(str(place))})" if place else ""
        return EdgepackError(f"{FULL[number]}{where}", hint=_make_room(place, number))
    if any(words in str(error) for words in NO_DEVICE_MEMORY):
        return EdgepackError(
            "the device is out of memory",
            hint="close what else uses it, or take --device cpu or one with more memory",
        )
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY_TEXTS):
        return EdgepackError(
            "out of memory",
            hint="close other programs, or lower calibrate.sequence_length; `edgepack plan` "
            "says how much is needed; run again to resume",
        )
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
        return EdgepackError(
            f"{shorten(str(error.filename))}: {error.strerror}",
            hint="check the path and its permissions; run again to resume",
        )
    return None


def _place(error: Exception) -> Path | None:
    """What was being written; of a copy, the second name."""
    names = [getattr(error, key, None) for key in ("filename2", "filename")]
    name = next((name for name in names if isinstance(name, str | Path)), None)
    return None if name is None else Path(name)


def _make_room(place: Path | None, number: int) -> str:
    """Free space of the folders that edgepack writes to, and what to do."""
    folders = [root(), Path.cwd(), Path(gettempdir())] if place is None else [_existing(place)]
    left = [f"{folder} has {_free(folder)} free" for folder in folders if folder.is_dir()]
    cached = place is not None and place.is_relative_to(root())
    listed = ["`edgepack cache ls` shows what is kept there"] if cached else []
    if number == errno.EFBIG:
        return "give the folder a place on another disk; run again to resume"
    return "; ".join([*left, *listed, "make room and run again to resume"])


def _existing(path: Path) -> Path:
    """The first folder above a path that is there: working folders are gone by now."""
    return next((folder for folder in path.parents if folder.is_dir()), Path.cwd())


def _free(folder: Path) -> str:
    return format_size(shutil.disk_usage(folder).free)
