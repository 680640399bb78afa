"""Errors of the operating system (disk full, out of memory) as errors with a remedy."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from edgepack.core.disk import root
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError

NO_MEMORY_TEXTS = ("can't allocate memory", "not enough memory")
"""torch's texts for full memory, in a RuntimeError."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
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
NO_SPACE_TEXTS = ("No space left on device", " requested and ")
"""safetensors' and numpy's texts for a full disk; they give no error number."""


def from_os_error(error: Exception) -> EdgepackError | None:
    """A full disk or memory as an error with a remedy; None for everything else."""
    full = isinstance(error, OSError) and error.errno in NO_SPACE
    if full or any(words in str(error) for words in NO_SPACE_TEXTS):
        return EdgepackError(f"the disk is full{_while(error)}", hint=_space(error))
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


def _while(error: Exception) -> str:
    name = getattr(error, "filename", None)
    return f" (writing {name})" if name else ""


def _space(error: Exception) -> str:
    """Free space of the folders that edgepack writes to."""
    name = getattr(error, "filename", None)
    folders = [Path(name).parent] if name else [root(), Path.cwd()]
    left = [
        f"{folder} has {shutil.disk_usage(folder).free / 1e6:.0f} MB free"
        for folder in folders
        if folder.is_dir()
    ]
    return "; ".join([*left, "make room and run again to resume"])
