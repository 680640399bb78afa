"""The structure of ONNX graphs, and what they need of their runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.checker import ValidationError

from edgepack.errors import EdgepackError
from edgepack.export.onnx_checkpoint import OnnxCheckpoint
from edgepack.export.requirements import oldest_version
from edgepack.runtimes import onnx_check
from edgepack.runtimes.onnx_adapters import factors_file, read_factors
from edgepack.runtimes.onnx_check import reason
from edgepack.verify.checks import refuse
from edgepack.verify.subject import Subject

CONTRIBUTED = frozenset({"SimplifiedLayerNormalization"})
"""Operators of ONNX Runtime that are in onnx's domain, but not in its list."""


class _Nodes(NamedTuple):
    """The nodes of a graph."""

    nodes: Iterable[Any]


def structure(subject: Subject) -> str:
    """onnx's checker, the position of every tensor in the files beside the graph, inputs and
    outputs of a decoder."""
    path = onnx_check.model_file(subject.folder)
    data = onnx_check.data_files(path)
    model = _load(path)
    _check(path.name, model)
    found = subject.checkpoint
    assert isinstance(found, OnnxCheckpoint)
    refuse((*_unlisted(subject, data), *_spans(path, model)))
    opsets = ", ".join(f"{one.domain or 'ai.onnx'} {one.version}" for one in model.opset_import)
    return f"{len(model.graph.initializer)} initializers, opsets {opsets}"


def _load(path: Path) -> Any:
    """A graph without its tensors."""
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, RecursionError):
        raise EdgepackError(f"{path.name} is not an ONNX graph, or damaged") from None


def _check(name: str, model: Any) -> None:
    """onnx's own checker. It does not know the operators of ONNX Runtime in onnx's domain; and it
    looks for the files of tensors in the working directory, so that here tensors are inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain == "" and not onnx.defs.has(node.op_type) and node.op_type in CONTRIBUTED:
            node.domain = "com.microsoft"
    given = {node.name for node in copy.graph.input}
    outside = [t for t in copy.graph.initializer if t.external_data and t.name not in given]
    values = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in outside]
    copy.graph.input.extend(values)
    kept = [tensor for tensor in copy.graph.initializer if not tensor.external_data]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(copy)
    except ValidationError as error:
        raise EdgepackError(f"{name}: {reason(error)}") from None


def values(subject: Subject) -> str:
    """Every matrix is read: its tensors have the types and shapes of its formats."""
    found = subject.checkpoint
    assert isinstance(found, OnnxCheckpoint)
    for name in found.formats:
        found.weight(name)
    replaced = factors_file(onnx_check.model_file(subject.folder))
    factors = f", and {replaced.name}" if replaced and read_factors(replaced) else ""
    return f"{len(found.formats)} matrices read from their initializers{factors}"


def requires(subject: Subject) -> str:
    """The runtime that the manifest asks for is the one that the nodes need."""
    model = _load(onnx_check.model_file(subject.folder))
    half = subject.manifest["recipe"]["export"]["onnx"]["activations"] == "float16"
    (major, minor), what = oldest_version(_Nodes(model.graph.node), half=half)
    needs = f"ONNX Runtime {major}.{minor} or later (for {what})"
    stated = subject.manifest["requires"]
    refuse([f"the graph needs {needs}, the manifest says {stated}"] * (stated != needs))
    try:
        here = version("onnxruntime")
    except PackageNotFoundError:
        return f"{needs}; none is installed here"
    old = tuple(map(int, here.split(".")[:2])) < (major, minor)
    return f"{needs}; {here} is installed here{', which is too old' if old else ''}"


def _unlisted(subject: Subject, data: list[Path]) -> Iterator[str]:
    """Files that the graph reads and the manifest does not have."""
    for path in data:
        name = path.relative_to(subject.folder).as_posix()
        if name not in subject.described.files:
            yield f"{name} is read by the graph, and not in the manifest"


def _spans(path: Path, model: Any) -> Iterator[str]:
    """No two tensors share bytes, and nothing lies behind the last one of a file."""
    spans: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in where:
            start = int(where.get("offset", "0"))
            end = start + int(where["length"])
            spans.setdefault(where["location"], []).append((start, end, tensor.name))
    for name, found in spans.items():
        ordered = sorted(found)
        for (_, end, _), (start, _, tensor) in pairwise(ordered):
            if start < end:
                yield f"{name}: {tensor} overlaps the tensor before it"
        size, end = (path.parent / name).stat().st_size, max(end for _, end, _ in ordered)
        if size != end:
            yield f"{name} has {size - end} bytes behind its last tensor"
