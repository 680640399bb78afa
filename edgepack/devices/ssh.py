"""A Linux machine behind the user's own ``ssh``."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

from edgepack.devices._remote import Remote
from edgepack.errors import EdgepackError, RecipeError

OPTIONS = (
    *("-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
    *("-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
    *("-o", "ControlMaster=auto", "-o", "ControlPersist=60"),
)
"""No questions, one connection for all lines, and an end of waiting for a host that is gone. The
connection ends a minute after the last line, should this process be killed."""
CAUSES = {
    "Host key verification failed": "connect by hand once and compare the key: ssh {host}",
    "Permission denied": "log in without a password: ssh-copy-id {host}, or ssh-add",
    "Could not resolve": "see how the host is called in ~/.ssh/config",
    "Connection refused": "start its ssh server, or name the port in ~/.ssh/config",
    "timed out": "see that it is switched on and in the same network",
    "No route to host": "see that it is switched on and in the same network",
    "Network is unreachable": "see that this computer is in a network",
}
"""What ssh says of a host that cannot be reached, and what to do."""


class Ssh(Remote):
    """``ssh:HOST``, whatever ``ssh HOST`` takes: a name, ``user@name``, one of ~/.ssh/config."""

    name = "ssh"
    root = '"${XDG_CACHE_HOME:-$HOME/.cache}/edgepack/pushed"'
    install = "install OpenSSH's client"

    def __init__(self, address: str = "") -> None:
        super().__init__(address)
        if not address or address.startswith("-"):
            raise RecipeError("ssh: needs a host", hint="write ssh:HOST, such as ssh:pi@10.0.0.5")

    def client(self) -> list[str]:  # noqa: D102
        return ["ssh", *OPTIONS, "-o", f"ControlPath={self._sockets}/%C", "--", self.address]

    def line(self, script: str) -> str:  # noqa: D102
        return f"exec sh -c {shlex.quote(script)}"

    def lost(self, said: str) -> EdgepackError:  # noqa: D102
        for cause, hint in CAUSES.items():
            if cause in said:
                return EdgepackError(f"{self}: {said}", hint=hint.format(host=self.address))
        return EdgepackError(
            f"{self}: the connection ended ({said or 'no word of why'})",
            hint=f"try by hand: ssh {self.address}",
        )

    @cached_property
    def _sockets(self) -> Path:
        """A folder of this user alone for the socket of the connection."""
        folder = Path(mkdtemp(prefix="edgepack-"))
        self.exits.callback(self._disconnect)
        return folder

    def _disconnect(self) -> None:
        subprocess.run(
            [*self.client()[:-2], "-O", "exit", "--", self.address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=10,
        )
        shutil.rmtree(self._sockets, ignore_errors=True)
        del self._sockets


PLUGIN = Ssh
