"""What the file system still lets this user write, where an administrator has set a quota."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

GET_QUOTA = 0x800007 << 8
"""Q_GETQUOTA of a user; <sys/quota.h>."""
LIMITED = 1
"""QIF_BLIMITS: the fields of limits are filled in."""
BLOCK = 1024
"""Bytes of the unit of limits."""


class Quota(ctypes.Structure):
    """``struct if_dqblk`` of quotactl(2)."""

    _fields_ = (
        ("hard", ctypes.c_uint64),
        ("soft", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        *((f"unused_{i}", ctypes.c_uint64) for i in range(5)),
        ("valid", ctypes.c_uint32),
    )

    def left(self) -> int | None:
        """Bytes that may still be written; None: any number."""
        if not self.valid & LIMITED or not self.hard:
            return None
        return max(0, int(self.hard) * BLOCK - int(self.used))


def quota_left(path: Path) -> int | None:
    """Bytes that this user may still write to the file system of `path`; None where no quota is
    set, or none that the system tells of."""
    if not sys.platform.startswith("linux"):
        return None
    device, quota = _device(path), Quota()
    with suppress(OSError, AttributeError):
        call = ctypes.CDLL(None, use_errno=True).quotactl
        if call(GET_QUOTA, device.encode(), os.getuid(), ctypes.byref(quota)) == 0:
            return quota.left()
    return None


def _device(path: Path) -> str:
    """What is mounted where `path` is."""
    place = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if place.is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).device if mounts else ""
