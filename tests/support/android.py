"""What Android asks of a program that an app ships, as far as it can be seen without a phone."""

from __future__ import annotations

import re
import struct
from pathlib import Path

PAGE = 16 << 10
"""Largest page of Android's kernels; segments must be aligned to it."""
AARCH64 = 183
_PT_LOAD, _PT_INTERP = 1, 3

ALLOWED = frozenset(
    """
    brk clock_getres clock_gettime clock_nanosleep clone close dup dup3 execve exit exit_group
    faccessat fadvise64 fchmod fchmodat fcntl fdatasync flock fstat fstatfs fsync ftruncate futex
    getcwd getdents64 getegid geteuid getgid getpid getppid getpriority getrandom getrusage gettid
    gettimeofday getuid ioctl kill lseek madvise mincore mkdirat mmap mprotect mremap munmap
    nanosleep newfstatat openat pipe2 ppoll prctl pread64 prlimit64 pselect6 pwrite64 read
    readlinkat readv renameat rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend
    rt_sigtimedwait sched_getaffinity sched_setaffinity sched_yield set_tid_address setpriority
    sigaltstack statfs sysinfo tgkill tkill truncate umask uname unlinkat utimensat wait4 waitid
    write writev
    """.split()  # noqa: SIM905 - one name a line would take a page
)
"""Of the system calls that Android's filter lets apps make (bionic's SYSCALLS.TXT and
SECCOMP_ALLOWLIST_*.TXT less SECCOMP_BLOCKLIST_APP.TXT), the old ones that a static musl program
needs. Newer ones are not on the lists of older Androids, and a call that is not on the list kills
the process: a name is added here when it is on the list of Android 8."""

_CALL = re.compile(r"^(?:\d+ )?([a-z_][a-z0-9_]*)\(", re.MULTILINE)


def system_calls(trace: str) -> set[str]:
    """Names of the calls in what ``qemu -strace`` prints."""
    return set(_CALL.findall(trace))


class Elf:
    """The headers of a 64-bit little-endian program."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        assert data[:6] == b"\x7fELF\x02\x01", f"{path.name} is no 64-bit program"
        self.machine: int = struct.unpack_from("<H", data, 18)[0]
        offset: int = struct.unpack_from("<Q", data, 32)[0]
        size, count = struct.unpack_from("<HH", data, 54)
        self._segments = [
            struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)
        ]

    @property
    def alignments(self) -> list[int]:
        """Of the segments that are mapped."""
        return [segment[7] for segment in self._segments if segment[0] == _PT_LOAD]

    @property
    def is_static(self) -> bool:
        """Whether it needs no loader and no libraries."""
        return all(segment[0] != _PT_INTERP for segment in self._segments)
