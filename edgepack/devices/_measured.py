"""Runs a command and writes down how long it took and how much memory: a program of its own.

``python _measured.py REPORT COMMAND …`` leaves ``{"seconds", "peak_bytes", "exit_code"}`` in the
file REPORT, or ``{"error"}`` where the command could not be started.

Why not `os.wait4` in the process that asks? The kernel counts what a process was before it became
another program (`execve` takes over the high-water mark), so that a child of one that has loaded a
model seems to need all of that, too. This one is small: about 10 MB, below which nothing is told.
"""

import json
import os
import subprocess
import sys
import time

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of ``ru_maxrss``."""


def measured(command: list[str]) -> dict[str, object]:
    """Run a command to its end."""
    start = time.perf_counter()
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        return {"error": error.strerror}
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": seconds,
        "peak_bytes": used.ru_maxrss * UNIT,
        "exit_code": process.returncode,
    }


if __name__ == "__main__":
    result = measured(sys.argv[2:])
    with open(sys.argv[1], "w", encoding="utf-8") as report:  # noqa: PTH123 (pathlib takes 20 ms)
        json.dump(result, report)
