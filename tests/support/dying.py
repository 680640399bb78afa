"""Processes that are killed: no `finally` runs, no buffer is flushed."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def dies_before(operations: int, work: Callable[[], object]) -> bool:
    """Run `work` in a fork that ends itself before its nth rename or unlink; whether it did."""
    left = operations

    def counted(operation: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    def run() -> None:
        for name in ("replace", "rename", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        work()

    return _was_killed(fork(run))


def survives(work: Callable[[str], object], out: Path, first: int, step: int) -> None:
    """`work` is given the name of a cache and writes into `out`: killed before its `first` rename
    or unlink, run again and killed `step` later, and so on, it ends with the bytes of a whole run.
    """
    work("whole")
    wanted, operations = files(out), first
    while dies_before(operations, lambda: work("killed")):
        operations += step
    assert operations > first + step, "it was never killed"
    work("killed")
    assert files(out) == wanted


def dies_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run `work` in a fork that is killed after some time; whether it was still at work."""
    child = fork(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return _killed(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return _was_killed(child)


def fork(work: Callable[[], object]) -> int:
    """The id of a process that does `work`; it ends with 0 if that raises nothing, else with 1."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _was_killed(child: int) -> bool:
    return _killed(os.waitpid(child, 0)[1])


def _killed(status: int) -> bool:
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status:
        raise AssertionError(f"the process ended by itself with status {status}")
    return killed
