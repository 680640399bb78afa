"""What the bytes of a result depend on beside recipe, sources and options: versions, and what the
compiled loops were compiled for. The manifest says it, and `edgepack verify` holds it against the
machine that it runs on.

Not in it, since results do not depend on them: threads, cores, memory, folders, users, languages,
time zones, the hash seed of Python (`tests/verify/test_reproducible.py`).
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgepack.core.fingerprint import HOME

PACKAGES = (
    *("numpy", "torch", "numba", "llvmlite", "gguf", "safetensors", "tokenizers", "transformers"),
    *("onnx", "onnxruntime", "llama-cpp-python", "matplotlib"),
)
"""Packages that compute numbers or write files; those that are installed are named."""
SETTINGS = ("OPENBLAS_CORETYPE", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "NUMBA_CPU_NAME")
"""Variables of the environment that choose other instructions than those of the processor."""

KERNELS = {"torch": "torch's kernels", "numba": "processor"}
"""What kinds of kernels are called where they differ."""


def environment(device: str = "cpu") -> dict[str, Any]:
    """What results depend on, here and computed on a device: a JSON object of texts, and one list
    of instruction sets."""
    import torch

    cpu, features = _numba()
    found: dict[str, Any] = {
        "code": code(),
        "python": platform.python_version(),
        "packages": _versions(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "kernels": {
            "torch": str(torch.backends.cpu.get_cpu_capability()),
            "numba": cpu,
            "instructions": features,
            "blas": _blas(),
        },
    }
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return found | ({"settings": settings} if settings else {})


@cache
def code() -> str:
    """sha256 of all modules of edgepack, by name."""
    content = hashlib.sha256()
    for path in sorted(HOME.rglob("*.py")):
        data = hashlib.sha256(path.read_bytes()).hexdigest()
        content.update(f"{path.relative_to(HOME).as_posix()} {data}\n".encode())
    return content.hexdigest()


def differences(known: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is otherwise here than where a result was made, a line each."""
    lines = []
    for name, (before, now) in _pairs(_flat(known), _flat(here)).items():
        if before != now and name == "code":
            lines.append("edgepack's code is another")
        elif before != now and isinstance(before, list) and isinstance(now, list):
            missing, more = sorted({*before} - {*now}), sorted({*now} - {*before})
            changes = [*(f"-{one}" for one in missing), *(f"+{one}" for one in more)]
            lines.append(f"{name}: {' '.join(changes)}")
        elif before != now:
            lines.append(f"{name} {before or 'none'} there, {now or 'none'} here")
    return lines


def _pairs(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one.get(name), two.get(name)) for name in dict.fromkeys((*one, *two))}


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Inner objects opened, their names without those of what they are in."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            called: Mapping[str, str] = KERNELS if name == "kernels" else {}
            for key, inner in value.items():
                flat[called.get(key) or key] = inner
        else:
            flat[name] = value
    return flat


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _numba() -> tuple[str, list[str]]:
    """The processor that numba compiles for, and its instruction sets."""
    from llvmlite import binding

    features = binding.get_host_cpu_features().items()
    return str(binding.get_host_cpu_name()), sorted(str(name) for name, has in features if has)


@cache
def _blas() -> str:
    """The libraries of matrix products, as torch names them."""
    import torch

    lines = (line.strip(" -") for line in torch.__config__.show().splitlines())
    names = ("Math Kernel Library", "MKL-DNN", "OpenBLAS", "Accelerate")
    found = [line.partition(" for ")[0] for line in lines if any(name in line for name in names)]
    return "; ".join(line for line in found if not line.startswith("Build settings"))
