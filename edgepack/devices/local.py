"""This machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack.core.disk import atomic, scratch
from edgepack.devices import _measured
from edgepack.devices.base import Device, Output, check_exists, out_of_time
from edgepack.errors import EdgepackError, RecipeError

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Local(Device):
    """Where edgepack itself runs: files stay where they are."""

    name = "local"

    def __init__(self, address: str = "") -> None:
        super().__init__(address)
        if address:
            raise RecipeError(f"local: has no address, not {address!r}", hint="write local")

    def push(self, path: Path) -> str:  # noqa: D102
        check_exists(path)
        return str(path.resolve())

    def run(self, command: Sequence[str], timeout: float) -> Output:
        """See `Device`. What needs less than 10 MB of memory is said to need that (`_measured`)."""
        with scratch() as folder:  # of which nothing stays, even if this process is killed
            report, stdout, stderr = (folder / part for part in ("report", "stdout", "stderr"))
            start = (sys.executable, "-I", "-S", _measured.__file__, str(report))
            if not _finish([*start, *command], timeout, stdout, stderr):
                raise out_of_time(self.name, command, timeout)
            told = json.loads(report.read_bytes()) if report.is_file() else {"error": "was killed"}
            if "error" in told:
                raise EdgepackError(
                    f"{self.name}: {command[0]}: {told['error']}",
                    hint="name a program that is installed, or the path of one",
                )
            out, err = (path.read_bytes().decode(errors="replace") for path in (stdout, stderr))
        return Output(out, err, **told)

    def pull(self, place: str, path: Path) -> None:  # noqa: D102
        source = Path(place)
        if not source.is_file():
            raise EdgepackError(f"{self.name}: {place}: no such file")
        if path.resolve() == source.resolve():
            return
        with atomic(path) as temporary:
            shutil.copyfile(source, temporary)

    def describe(self) -> dict[str, Any]:
        """See `Device`; cores and memory are those that this process may use. `cache` is the size
        of the processor's last cache in bytes, None if unknown."""
        from edgepack.core.hardware import available_memory

        return {
            "cores": _cores(),
            "memory": available_memory(),
            "machine": platform.machine(),
            "system": platform.system(),
            "processor": _processor(),
            "cache": _last_cache(),
        }

    def condition(self) -> dict[str, Any]:
        """See `Device`."""
        import psutil

        found: dict[str, Any] = {"load": round(psutil.getloadavg()[0], 2)}
        read = getattr(psutil, "sensors_temperatures", dict)  # macOS and Windows have none
        sensors: dict[str, Any] = read()
        if heat := [one.current for group in sensors.values() for one in group if one.current]:
            found["celsius"] = max(heat)
        with suppress(OSError):
            found["governor"] = GOVERNOR.read_text(encoding="ascii").strip()
        battery = getattr(psutil, "sensors_battery", lambda: None)()
        if battery is not None:
            found |= {"battery": round(battery.percent), "charging": bool(battery.power_plugged)}
        return found


def _finish(command: list[str], timeout: float, stdout: Path, stderr: Path) -> bool:
    """Run a command that prints into two files; False if its time was over and it was killed.

    It has a process group of its own, so that all of it can be killed, also when this process is
    interrupted. Files, because what it leaves in the background would keep a pipe open.
    """
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return True


def _cores() -> int:
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name in the shop, as far as the system knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _last_cache() -> int | None:
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    with suppress(OSError, ValueError, IndexError):
        return int(sizes[-1].read_text(encoding="ascii").strip().removesuffix("K")) << 10
    return None


PLUGIN = Local
