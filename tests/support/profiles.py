"""Files as `edgepack bench --all-types --out` writes them, with times of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack import devices, formats
from edgepack.bench.results import Bench

ROWS, COLUMNS = 1024, 4096
WEIGHTS = ROWS * COLUMNS
DEVICE = {"name": "adb", "model": "Phone 1", "machine": "aarch64", "cores": 8, "memory": 10**9}
FLOPS = 1e12
"""Of every product of many columns, unless told otherwise."""


def here() -> dict[str, Any]:
    """This machine, as a benchmark describes it."""
    return {"name": "local", **devices.get("local").describe()}


def product(kind: str, seconds: float, batch: int = 1, threads: int = 1) -> dict[str, Any]:
    """One timed product."""
    size = {"f32": 4 * WEIGHTS}.get(kind) or formats.get(kind).nbytes((ROWS, COLUMNS))
    return {
        "type": kind,
        "threads": threads,
        "batch": batch,
        "rows": ROWS,
        "columns": COLUMNS,
        "bytes": size,
        "seconds": [seconds] * 3,
    }


def products(nanoseconds: Mapping[str, float], threads: int = 1) -> list[dict[str, Any]]:
    """Products of types that take so long for a weight, and of 256 columns at `FLOPS`."""
    ones = [product(kind, ns * WEIGHTS / 1e9, 1, threads) for kind, ns in nanoseconds.items()]
    many = [product(kind, 512 * WEIGHTS / FLOPS, 256, threads) for kind in nanoseconds]
    return ones + many


MEMORY = {"anonymous": 1, "mapped": 1, "peak": 1}


def timing(kind: str, tokens: int, seconds: float, threads: int = 1, depth: int = 0) -> dict:
    """A case of a model that was run."""
    case = {"kind": kind, "tokens": tokens, "depth": depth, "batch": 1}
    return {"case": case, "threads": threads, "seconds": [seconds] * 3, "memory": MEMORY}


def model(work: Mapping[str, Any], *timings: dict) -> dict[str, Any]:
    """A model that was run."""
    plain = {"factors": 0, "cache": 0, "flops": 0, "head": 0, "attention": 0}
    loading = {"threads": 1, "seconds": [1.0], "peak": [1]}
    loading |= dict.fromkeys(("before", "loaded", "steady"), MEMORY)
    return {
        "name": "m",
        "runtime": "llama.cpp",
        "features": "",
        "file": "m.gguf",
        "bytes": 1,
        "work": plain | dict(work),
        "loading": [loading],
        "timings": list(timings),
    }


def content(
    nanoseconds: Mapping[str, float] | None = None,
    *,
    device: Mapping[str, Any] = DEVICE,
    models: Sequence[dict] = (),
    more: Sequence[dict] = (),
    bandwidth: float = 1e10,
) -> dict[str, Any]:
    """A whole file, by the nanoseconds that a weight of each type takes; `more` are products."""
    found = {
        "schema_version": 1,
        "edgepack": "0.1.0",
        "date": "2026-01-01",
        "device": dict(device),
        "rounds": 3,
        "models": list(models),
        "ceilings": {
            "memory": [{"threads": 1, "bytes_per_second": [bandwidth] * 3}],
            "products": [*products(nanoseconds or {"f32": 0.4, "q8_0": 0.1}), *more],
        },
        "quiet": {},
    }
    Bench.model_validate(found)
    return found


def write(path: Path, found: Mapping[str, Any]) -> Path:
    """Write it."""
    path.write_text(json.dumps(found))
    return path
