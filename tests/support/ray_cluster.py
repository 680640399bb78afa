"""A Ray cluster of several nodes on this machine: real processes, and a cache for every node.

Nodes have loopback addresses of their own. Ray's head listens on all addresses all the same,
so the cluster has a token that nobody else knows. Every node is a process group, which is killed
whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

STORE = 80 << 20
"""Bytes of a node's object store, almost the least that Ray takes."""
QUICK = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_enable_metrics_collection": "0",
}
"""A node that is killed is missed sooner."""
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
"""Of all clusters of this process, since Ray reads it once in a process."""
TIMEOUT = 300.0


class RayCluster:
    """Nodes by name; the head has no cores, so that all work is done on others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions = Path(tempfile.mkdtemp(prefix="ray-"))  # paths of sockets must be short
        self.port = free_port()
        self.address = f"127.0.0.2:{self.port}"
        self.client_port = free_port()
        self.client_address = f"ray://127.0.0.2:{self.client_port}"
        self.nodes: dict[str, subprocess.Popen] = {}
        self.number = 1
        self.spent = {"workers": 0.0, "ray": 0.0}
        self.environment = {
            **os.environ,
            **QUICK,
            "RAY_USAGE_STATS_ENABLED": "0",
            **AUTHENTICATION,
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
        }

    def start(self, name: str, cores: int = 1, **environment: str) -> None:
        """Start a node; the first one is the head."""
        self.number += 1
        place = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        place += ["--no-monitor", "--disable-usage-stats"]
        place += [f"--ray-client-server-port={self.client_port}"]
        if self.nodes:
            place = [f"--address={self.address}"]
        cache = self.folder / f"cache-of-{name}"
        command = [
            *(sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", "--block"),
            *place,
            f"--node-ip-address=127.0.0.{self.number}",
            f"--num-cpus={cores}",
            f"--object-store-memory={STORE}",
            "--include-log-monitor=false",
            f"--temp-dir={self.sessions / name}",
        ]
        with (self.folder / f"{name}.log").open("w") as log:
            self.nodes[name] = subprocess.Popen(
                command,
                env={**self.environment, "EDGEPACK_CACHE": str(cache), **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until every node has said that it runs."""
        end = time.monotonic() + TIMEOUT
        for name in self.nodes:
            log = self.folder / f"{name}.log"
            while "Ray runtime started" not in log.read_text():
                if self.nodes[name].poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the node {name} did not start:\n{log.read_text()}")
                time.sleep(0.05)

    def processor_seconds(self) -> dict[str, float]:
        """Processor time so far of the processes that do work (``workers``) and of Ray's own
        (``ray``), those of killed nodes included."""
        found = dict(self.spent)
        for node in self.nodes.values():
            _add(found, _seconds(_members(node.pid)))
        return found

    def kill(self, name: str) -> None:
        """kill -9 for everything of a node."""
        process = self.nodes.pop(name)
        group = _members(process.pid)
        _add(self.spent, _seconds(group))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for member in group:  # workers have groups of their own
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(group, timeout=10)

    def stop(self) -> None:
        """Kill all nodes, the head last."""
        for name in reversed(list(self.nodes)):
            self.kill(name)
        shutil.rmtree(self.sessions, ignore_errors=True)


def _members(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _seconds(processes: list[psutil.Process]) -> dict[str, float]:
    """Processor time of processes, and of those of their children that have ended."""
    found = {"workers": 0.0, "ray": 0.0}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            title = "".join(process.cmdline()[:1])
            works = title.startswith("ray::") and "Agent" not in title
            found["workers" if works else "ray"] += sum(process.cpu_times()[:4])
    return found


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for name, seconds in more.items():
        total[name] += seconds


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
