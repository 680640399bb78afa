"""Machines that tests reach as a user reaches theirs: a phone by adb, a host by ssh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from edgepack.errors import EdgepackError

Action = Callable[[], object]
SCRIPTS = Path(__file__).parents[1] / "devices"
TOOLS = os.environ.get("EDGEPACK_TEST_TOOLS", "")
"""What ``tests/devices/tools.sh`` made; ``make test-device`` does that."""
SERIAL = "127.0.0.1:5555"


def tools() -> Path:
    """The folder of tools; the test is skipped without one."""
    if not TOOLS:
        pytest.skip("needs Android's adbd and qemu: make test-device downloads them")
    return Path(TOOLS).resolve()


def command(folder: Path, name: str, line: str) -> None:
    """Make a program of one line."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def on_path(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let programs of a folder be found before all others."""
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


class Phone:
    """An adbd that can be killed."""

    def __init__(self, session: subprocess.Popen[str], storage: Path) -> None:
        self._session = session
        self.storage = storage
        """Its /data/local/tmp."""

    def processes(self, name: str) -> list[psutil.Process]:
        """Those that run there and have a word in their command."""
        return [
            process
            for process in psutil.Process(self._session.pid).children(recursive=True)
            if any(name in word for word in words(process))
        ]

    def kill_adbd(self) -> None:
        for process in self.processes("/adb/adbd"):
            process.kill()

    def files(self) -> list[str]:
        """Names of all files and links in its storage."""
        paths = (path for path in self.storage.rglob("*") if not path.is_dir())
        return sorted(path.relative_to(self.storage).as_posix() for path in paths)


def words(process: psutil.Process) -> list[str]:
    """The command of a process, if it still runs."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def broken_off(action: Action, *, when: Action, by: Action) -> EdgepackError:
    """The error of an action that something breaks off as soon as it is under way."""

    def watch() -> None:
        deadline = time.monotonic() + 20
        while not when() and time.monotonic() < deadline:
            time.sleep(0.01)
        by()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(EdgepackError) as caught:
        action()
    watcher.join()
    return caught.value


@contextmanager
def phone(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """Switch on a phone; ``adb`` is then the client that is connected to it."""
    host = tools() / "host"
    programs, storage = folder / "bin", folder / "storage"
    storage.mkdir(parents=True)
    libraries = host / "usr/lib/x86_64-linux-gnu"
    environment = (
        f"env HOME={folder} ANDROID_ADB_SERVER_PORT=5137"
        f" LD_LIBRARY_PATH={libraries}:{libraries}/android"
    )
    adb = f"{environment} {host}/usr/lib/android-sdk/platform-tools/adb"
    inside = folder / "inside"
    command(inside, "adb", f'exec {adb} "$@"')
    namespaces = ["--user", "--map-root-user", "--mount", "--net", "--pid"]
    script = SCRIPTS / "phone.sh"
    with (folder / "log").open("wb") as log:
        session = subprocess.Popen(
            ["unshare", *namespaces, "--fork", "--kill-child", script, tools(), storage],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PATH": f"{inside}:{os.environ['PATH']}:/usr/sbin:/sbin"},
        )
    with session:
        try:
            if session.stdout is None or session.stdout.readline() != "ready\n":
                pytest.skip(f"no phone here: {(folder / 'log').read_text()[-300:]}")
            child = psutil.Process(session.pid).children()[0].pid
            enter = f"nsenter --target {child} --user --net --preserve-credentials"
            command(programs, "adb", f'exec {enter} {adb} "$@"')
            on_path(programs, patch)
            yield Phone(session, storage)
        finally:
            session.kill()


@contextmanager
def ssh_server(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a server on loopback that lets this user in; yields how ``ssh`` calls it."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    environment = dict(os.environ)
    if server is None:
        if not TOOLS:
            pytest.skip("needs sshd: install an OpenSSH server, or run make test-device")
        server = str(tools() / "host/usr/sbin/sshd")
        environment["LD_LIBRARY_PATH"] = str(tools() / "host/usr/lib/x86_64-linux-gnu")
    folder.mkdir()
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True)
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
        f"SetEnv XDG_CACHE_HOME={folder}/cache\n"
    )
    host = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    (folder / "ssh_config").write_text(
        f"Host box\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known_hosts\n"
        " GlobalKnownHostsFile none\n"
    )
    command(folder / "bin", "ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')
    on_path(folder / "bin", patch)
    process = subprocess.Popen(
        [*_as_installed(folder), server, "-D", "-e", "-f", folder / "sshd_config"],
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    with process:
        try:
            _wait_for(port, process)
            yield "box"
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _as_installed(folder: Path) -> list[str]:
    """What shows a user and a folder to root's sshd that its package would have made."""
    if os.geteuid() != 0:
        return []
    users = Path("/etc/passwd").read_text().rstrip("\n")
    (folder / "passwd").write_text(f"{users}\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    script = f"mount --bind {folder}/passwd /etc/passwd && mount -t tmpfs none /run"
    script += ' && mkdir /run/sshd && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not run here (exit code {process.returncode})")
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd does not answer")
