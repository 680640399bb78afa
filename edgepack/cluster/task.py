"""The function that Ray runs on the machines. It is sent there as it is, so that it can also say
what is wrong with the edgepack of a machine: at its top nothing of edgepack is imported."""

import hashlib
import platform
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("edgepack", "gguf", "llvmlite", "numba", "numpy", "safetensors", "torch")
"""Results depend on their versions."""
CODE = "edgepack's code"


def versions() -> dict[str, str]:
    """What has to be the same everywhere, by name."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return {**found, CODE: code_digest()}


@cache
def own_versions() -> dict[str, str]:
    """Those of this process, looked up once. What is sent does not use it: the memory of a function
    would be sent along, and every machine find the versions of the sender."""
    return versions()


def code_digest() -> str:
    """sha256 of all of edgepack's modules; nothing is imported."""
    spec = find_spec("edgepack")
    if spec is None or spec.origin is None:
        return "missing"
    home, found = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        found.update(f"{path.relative_to(home).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def differences(wanted: dict[str, str], here: dict[str, str] | None = None) -> list[str]:
    """What differs on a machine from the one that hands out work."""
    here = own_versions() if here is None else here
    return [f"{n} {here.get(n, 'missing')}, not {v}" for n, v in wanted.items() if here.get(n) != v]


def node_facts() -> dict[str, Any]:
    """What is known of this machine, without edgepack: torch is asked for the instructions."""
    facts: dict[str, Any] = {"host": socket.gethostname(), "versions": versions()}
    try:
        import torch
    except ImportError:
        return facts
    return facts | {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def run(wanted: dict[str, str], *arguments: Any) -> Any:
    """Do an item's work, on a machine that is as it has to be."""
    try:
        from edgepack.cluster import task as own  # as it is there, not as it was sent

        wrong = own.differences(wanted)
    except (ImportError, AttributeError) as error:
        wrong = [f"an edgepack that cannot work here ({error})"]
    if wrong:
        return {"host": socket.gethostname(), "refused": wrong}, []
    from edgepack.cluster import worker

    return worker.do(*arguments)


def forget(job: str) -> None:
    """Remove what a job has left on this machine."""
    from edgepack.cluster import worker

    worker.forget(job)
