"""Memory and arithmetic of this machine, or of the container that the process runs in."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_OWN_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
GLIBC = "libc.so.6"
M_MMAP_THRESHOLD = -3  # malloc.h
LIMIT = "EDGEPACK_MEMORY"
"""Variable of the environment with the bytes that the user allows."""
LARGE = 1 << 20
"""Bytes from which a block of memory is given back when it is freed."""
_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Files of a control group that limit memory; the first two are of version 2."""


def available_memory() -> int:
    """Most bytes of memory that this process may use: those of the machine, the limit of its
    container (a Linux control group), or what the user allows, whichever is least."""
    limits = [psutil.virtual_memory().total, control_group_limit(), memory_limit()]
    return min(limit for limit in limits if limit is not None)


def limit_memory(nbytes: int | None) -> None:
    """Allow no more than so many bytes, here and in the processes that are started from here. It
    changes how work is done (in how many passes, what stays in memory), never a result or a key."""
    if nbytes is None:
        os.environ.pop(LIMIT, None)
    else:
        os.environ[LIMIT] = str(nbytes)


def memory_limit() -> int | None:
    """What the user allows; None: all there is."""
    given = os.environ.get(LIMIT, "")
    return int(given) if given.isdecimal() else None


def working_memory() -> int:
    """Bytes that work may be planned to fill: all that the user allows or, where nothing was said,
    three quarters of what there is, since other programs run too."""
    there = available_memory()
    return there if memory_limit() is not None else there * 3 // 4


def control_group_limit(own_groups: Path = _OWN_GROUPS, mount: Path = _MOUNT) -> int | None:
    """The lowest memory limit of the process's control groups and their parents; None where there
    is none. See cgroups(7)."""
    limits = [
        limit for folder in _groups(own_groups, mount) if (limit := _limit(folder)) is not None
    ]
    return min(limits, default=None)


def _groups(own_groups: Path, mount: Path) -> Iterator[Path]:
    """The folders of the groups that may limit memory. In a container the mount often shows the
    container's group as the root: the path that the kernel names is missing, its parents exist."""
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":  # version 2; beside version 1 it is mounted as `unified`
            roots = [mount, mount / "unified"]
        elif "memory" in controllers.split(","):
            roots = [mount / "memory"]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for root in roots:
            yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _limit(folder: Path) -> int | None:
    found = []
    for name in _LIMITS:
        try:
            text = (folder / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit():  # "max" is no limit
            found.append(int(text))
    return min(found, default=None)


def return_freed_memory() -> None:
    """Let the allocator give large tensors back to the system as soon as they are freed.

    glibc keeps freed blocks of up to 32 MB, so that a process holds more than it uses. It costs
    time, because the system clears memory that it gives out again. Elsewhere
    this does nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(GLIBC).mallopt(M_MMAP_THRESHOLD, LARGE)


def peak_memory() -> int:
    """Most bytes of memory that this process has had since it began. (What `getrusage` says
    includes the program that started it.)"""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def anonymous_memory() -> int:
    """Bytes of memory that this process has now and that no file backs: what it reads through maps
    of files the system drops when memory is short."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    resident: int = psutil.Process().memory_info().rss
    return resident


def trim_memory() -> None:
    """Give back what the allocator holds of small freed blocks; takes milliseconds. Without glibc
    this does nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(GLIBC).malloc_trim(0)


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 numbers (False if torch cannot
    tell)."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return bool(capabilities and capabilities().get("avx512_bf16", False))


def multiplies_int8() -> bool:
    """Whether torch has fast products of 8-bit integers on this CPU: AVX512-VNNI or AMX on x86
    (elsewhere it runs plain loops). False if torch cannot tell."""
    tests = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("vnni", "amx_tile")]
    return any(test is not None and test() for test in tests)
