"""The software that a result was made with, as a bill of materials: CycloneDX 1.6, in JSON.

https://cyclonedx.org/docs/1.6/json/. It has no time and no serial number, so that the same build
writes the same bytes, and no place that a package was installed from or to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgepack.core import telemetry
from edgepack.core.artifact import SOFTWARE
from edgepack.runtimes.ggml import build

US = "edgepack"
EXTRAS = ("llama", "onnx", "plots")
"""Extras whose packages take part where they are installed."""
SPDX = re.compile(r"[A-Za-z0-9.+() -]{1,100}")
LICENCES = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Classifiers of packages that have no licence expression → SPDX."""


def write(folder: Path, model: Mapping[str, Any], target: str) -> None:
    """Write the bill of a result into its folder; `model` is `Checkpoint.source`."""
    text = json.dumps(bill(model, target), indent=1, ensure_ascii=False) + "\n"
    (folder / SOFTWARE).write_text(text, encoding="utf-8")


def bill(model: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The bill of materials of what is made of `model` in this environment. Of the libraries inside
    of packages it names the one that the files of the target were tried with."""
    ours, *others = distributions(EXTRAS)
    component = {"type": "machine-learning-model", "name": str(model["model"])}
    if revision := model.get("revision"):
        component["version"] = str(revision)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": component,
            "tools": {"components": [_component(ours, "application")]},
        },
        "components": [*(_component(one, "library") for one in others), *_native(target)],
    }


def distributions(
    extras: Iterable[str], *, start: Distribution | None = None
) -> list[Distribution]:
    """A package (edgepack), and all installed packages that it and its `extras` require, directly
    or not, in alphabetical order."""
    ours = start or distribution(US)
    found: dict[str, Distribution] = {}
    waiting = [(ours, frozenset({"", *extras}))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one, wanted = waiting.pop()
        name = canonicalize_name(one.metadata["Name"])
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = one
        for text in one.requires or ():
            required = Requirement(text)
            marker = required.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in wanted):
                continue
            with suppress(PackageNotFoundError):  # of an extra that is not installed
                waiting.append((distribution(required.name), frozenset({"", *required.extras})))
    del found[canonicalize_name(ours.metadata["Name"])]
    return [ours, *(found[name] for name in sorted(found))]


def _component(one: Distribution, kind: str) -> dict[str, Any]:
    name = canonicalize_name(one.metadata["Name"])
    place = f"pkg:pypi/{name}@{one.version.replace('+', '%2B')}"
    found: dict[str, Any] = {"type": kind, "name": name, "version": one.version, "purl": place}
    if licence := _licence(one):
        found["licenses"] = [{"expression": licence}]
    if hashes := _hashes(one):
        found["hashes"] = hashes
    return found


def _licence(one: Distribution) -> str | None:
    """The licence as an SPDX expression, as far as the package says it in one."""
    about = one.metadata
    if expression := about["License-Expression"]:
        return str(expression)
    names = (c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if "License" in c)
    known = [LICENCES[name] for name in names if name in LICENCES]
    if known:
        return " OR ".join(dict.fromkeys(known))
    text = str(about["License"] or "")
    return text if text in LICENCES.values() and SPDX.fullmatch(text) else None


def _hashes(one: Distribution) -> list[dict[str, str]]:
    """The sha256 of the archive, which only packages installed from a file or an address know."""
    try:
        known = json.loads(one.read_text("direct_url.json") or "{}")
        sha256 = known["archive_info"]["hashes"]["sha256"]
    except (ValueError, LookupError, TypeError):
        return []
    return [{"alg": "SHA-256", "content": str(sha256)}]


def _native(target: str) -> list[dict[str, Any]]:
    """Libraries inside of packages, which have versions of their own."""
    known = {"gguf": _ggml, "onnx": _onnxruntime}
    found = known[target]() if target in known else None
    return [found] if found else []


def _ggml() -> dict[str, Any] | None:
    """ggml of the llama.cpp in llama-cpp-python; its commit is llama.cpp's."""
    found = build()
    if found is None:
        return None
    number, commit = found
    return {
        "type": "library",
        "name": "ggml",
        "version": number,
        "licenses": [{"expression": "MIT"}],
        "properties": [{"name": "edgepack:llama.cpp:commit", "value": commit}],
    }


def _onnxruntime() -> dict[str, Any] | None:
    """How ONNX Runtime's library was built."""
    try:
        onnxruntime = telemetry.onnxruntime()
    except ImportError:
        return None
    return {
        "type": "library",
        "name": "onnxruntime (native)",
        "version": str(onnxruntime.__version__),
        "licenses": [{"expression": "MIT"}],
        "properties": [{"name": "edgepack:build", "value": str(onnxruntime.get_build_info())}],
    }
