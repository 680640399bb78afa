"""An Android phone behind ``adb``: plugged in, or in the same network."""

from __future__ import annotations

import subprocess
from functools import cached_property

from edgepack.devices._remote import Remote
from edgepack.errors import EdgepackError

STATES = {
    "unauthorized": "unlock its screen and allow USB debugging for this computer",
    "authorizing": "unlock its screen and allow USB debugging for this computer",
    "offline": "plug it in again, or run: adb reconnect",
    "no permissions": "your user may not open the USB device: install Android's udev rules",
}
"""What ``adb devices`` says of a device that cannot be used, and what to do."""


class Adb(Remote):
    """``adb``, where one device is attached, or ``adb:SERIAL``. Needs Android 7 or later, which has
    exit codes. Files go to a folder that the shell's user may execute from."""

    name = "adb"
    root = "/data/local/tmp/edgepack"
    install = "install Android's platform tools (Debian: apt install adb)"

    def client(self) -> list[str]:  # noqa: D102
        return ["adb", "-s", self._serial, "shell", "-T"]

    def line(self, script: str) -> str:  # noqa: D102
        return script

    def lost(self, said: str) -> EdgepackError:  # noqa: D102
        self.__dict__.pop("_serial", None)  # look again, it may come back
        for state, hint in STATES.items():
            if state in said:
                return EdgepackError(f"{self}: {state}", hint=hint)
        why = said.removeprefix("error: ").removeprefix("adb: ") or "the connection ended"
        return EdgepackError(
            f"{self}: the device went away ({why})",
            hint="see what `adb devices` lists; nothing that ran there goes on",
        )

    @cached_property
    def _serial(self) -> str:
        """The serial number of the device, which can be used."""
        devices = self._attached()
        if not devices:
            raise EdgepackError(
                f"{self}: no device is attached",
                hint="plug it in and switch USB debugging on; `adb devices` must list it",
            )
        serials = ", ".join(sorted(devices))
        if self.address and self.address not in devices:
            raise EdgepackError(f"{self}: is not attached", hint=f"attached: {serials}")
        if not self.address and len(devices) > 1:
            raise EdgepackError(
                f"{self}: {len(devices)} devices are attached ({serials})",
                hint=f"name one of them: {self.name}:{min(devices)}",
            )
        serial = self.address or next(iter(devices))
        state = devices[serial]
        for refused, hint in STATES.items():
            if state.startswith(refused):
                raise EdgepackError(f"{self.name}:{serial}: {refused}", hint=hint)
        if state != "device":  # such as recovery or sideload
            raise EdgepackError(f"{self.name}:{serial}: {state}", hint="let it start Android")
        return serial

    def _attached(self) -> dict[str, str]:
        """The state of each device by its serial number."""
        process = self._start(["adb", "devices"], subprocess.DEVNULL)
        stdout, stderr = self._finish(process, 30)
        if process.returncode:
            said = (stderr or stdout).decode(errors="replace").strip().splitlines() or ["failed"]
            raise EdgepackError(f"{self}: {said[-1]}", hint="try by hand: adb devices")
        lines = (line.split("\t", 1) for line in stdout.decode(errors="replace").splitlines())
        return {words[0]: words[1].strip() for words in lines if len(words) == 2}


PLUGIN = Adb
