"""A graph of ONNX protos, and the files of its tensors.

The graph is built from the names, types and shapes of tensors. Their values are read one at a time
when the graph is written, so that memory holds only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgepack.export.values import check_finite

Array = NDArray[Any]

OPSETS = {"": 21, "com.microsoft": 1}
IR_VERSION = 10
MICROSOFT = {
    "FastGelu",
    "FusedMatMul",
    "GatherBlockQuantized",
    "GroupQueryAttention",
    "MatMulNBits",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipSimplifiedLayerNormalization",
}
"""Operators of ONNX Runtime's domain."""

Shape = Sequence[int | str]
"""A dimension is a number or a name."""


@dataclass(frozen=True)
class Stored:
    """A tensor whose values `load` returns. With `int4`, these are bytes of two values each, signed
    or unsigned by `dtype`, the first one in the low bits."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], Array]
    int4: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        count = prod(self.shape)
        return -(-count // 2) if self.int4 else count * self.dtype.itemsize

    @property
    def kind(self) -> int:
        """ONNX's number of the type."""
        if self.int4:
            return int(TensorProto.INT4 if self.dtype == np.int8 else TensorProto.UINT4)
        return kind(self.dtype)


@dataclass
class Graph:
    """Nodes in order, inputs, outputs, small constants, tensors to store, and `factors` that a
    caller may replace."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    factors: dict[str, Stored] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    """Entries of the model's metadata_props."""
    scope: str = ""
    """Prefix of the names of new values."""

    def add(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.add_many(op, *inputs, outs=(out or self._fresh(op),), **attributes)[0]

    def add_many(
        self, op: str, *inputs: str, outs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Add a node with several outputs; "" is an unused one, "*" one that gets a new name."""
        fresh = self._fresh(op)
        names = [f"{fresh}.{i}" if out == "*" else out for i, out in enumerate(outs)]
        domain = "com.microsoft" if op in MICROSOFT else ""
        label = f"{next(filter(None, names))}/{op}"
        node = helper.make_node(op, inputs, names, name=label, domain=domain, **attributes)
        self.nodes.append(node)
        return names

    def bits(self, x: str, by: int, mask: int) -> str:
        """Bytes shifted to the right (to the left if `by` is negative) and masked."""
        if by:
            direction = "RIGHT" if by > 0 else "LEFT"
            x = self.add("BitShift", x, self.constant(abs(by), np.uint8), direction=direction)
        return self.add("BitwiseAnd", x, self.constant(mask, np.uint8))

    def _fresh(self, op: str) -> str:
        return f"{self.scope}/{op}_{len(self.nodes)}"

    def input(self, name: str, dtype: Any, shape: Shape | None) -> str:
        """Add an input; None is any shape."""
        self.inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: Any, shape: Shape) -> None:
        """Add an output."""
        self.outputs.append(_value(name, dtype, shape))

    def constant(self, value: Any, dtype: Any) -> str:
        """A small constant inside the graph; equal values share one."""
        array = np.asarray(value, dtype)
        raw, own = array.tobytes(), kind(array.dtype)
        for name, known in self.constants.items():
            same = known.data_type == own and tuple(known.dims) == array.shape
            if same and known.raw_data == raw:
                return name
        name = f"constant_{len(self.constants)}"
        self.constants[name] = helper.make_tensor(name, own, array.shape, raw, raw=True)
        return name

    def store(
        self,
        name: str,
        dtype: Any,
        shape: Sequence[int],
        load: Callable[[], Array],
        *,
        int4: bool = False,
    ) -> str:
        """A tensor in a file beside the graph; a name that exists is not stored again."""
        if name not in self.stored:
            self.stored[name] = Stored(name, np.dtype(dtype), tuple(shape), load, int4)
        return name

    def factor(self, tensor: Stored, shape: Shape, *, required: bool) -> str:
        """A tensor that a caller may replace (in ONNX, an initializer that is also an input); its
        shape may have named dimensions. If `required`, the caller must give it."""
        self.factors[tensor.name] = tensor
        if not required:
            self.stored[tensor.name] = tensor
        return self.input(tensor.name, tensor.dtype, shape)

    def proto(self, tensors: Sequence[TensorProto] = ()) -> onnx.ModelProto:
        """The model, with `tensors` as further initializers."""
        initializers = [*self.constants.values(), *tensors]
        graph = helper.make_graph(
            self.nodes, "edgepack", self.inputs, self.outputs, initializer=initializers
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(
            graph, producer_name="edgepack", opset_imports=imports, ir_version=IR_VERSION
        )
        helper.set_model_props(model, self.metadata)
        return model


def kind(dtype: Any) -> int:
    """ONNX's number of a type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _value(name: str, dtype: Any, shape: Shape | None) -> onnx.ValueInfoProto:
    known = None if shape is None else list(shape)
    return helper.make_tensor_value_info(name, kind(dtype), known)


@dataclass(frozen=True)
class Place:
    """The position of a tensor's values in a file."""

    tensor: Stored
    file: str
    offset: int

    def proto(self) -> TensorProto:
        """The initializer with this position."""
        shape, own = self.tensor.shape, self.tensor.kind
        found = TensorProto(name=self.tensor.name, data_type=own, dims=shape)
        found.data_location = TensorProto.EXTERNAL
        about = {"location": self.file, "offset": self.offset, "length": self.tensor.nbytes}
        for key, value in about.items():
            found.external_data.add(key=key, value=str(value))
        return found


def place_tensors(graph: Graph, name: str, chunk: int) -> list[Place]:
    """The position of every tensor of the model `name`. Files have at most `chunk` bytes, unless
    one tensor is larger, and the names that Transformers.js expects."""
    found: list[Place] = []
    files, offset = 0, 0
    for tensor in graph.stored.values():
        step = 4096 if tensor.nbytes >= 1 << 16 else 64  # pages, so that they can be mapped
        offset = -(-offset // step) * step
        if offset and offset + tensor.nbytes > chunk:
            files, offset = files + 1, 0
        file = f"{name}_data" + (f"_{files}" if files else "")
        found.append(Place(tensor, file, offset))
        offset += tensor.nbytes
    return found


def write(graph: Graph, path: Path, chunk: int) -> Iterator[str]:
    """Write the model and its files of tensors; yields each tensor's name before it is written."""
    placed = place_tensors(graph, path.name, chunk)
    for file in dict.fromkeys(place.file for place in placed):
        with (path.parent / file).open("wb") as data:
            for place in (p for p in placed if p.file == file):
                yield place.tensor.name
                data.seek(place.offset)
                data.write(_bytes(place.tensor).data)
    path.write_bytes(graph.proto([place.proto() for place in placed]).SerializeToString())


def size_of(graph: Graph, name: str, chunk: int) -> int:
    """Number of bytes that `write` writes."""
    placed = place_tensors(graph, name, chunk)
    ends = {p.file: p.offset + p.tensor.nbytes for p in placed}
    return sum(ends.values()) + int(graph.proto([p.proto() for p in placed]).ByteSize())


def _bytes(tensor: Stored) -> NDArray[np.uint8]:
    value = np.ascontiguousarray(tensor.load())
    expected = (tensor.nbytes,) if tensor.int4 else tensor.shape
    if value.dtype != tensor.dtype or value.shape != expected:
        raise ValueError(f"{tensor.name}: {value.dtype} {value.shape}, not as declared")
    check_finite(tensor.name, value)
    return value.reshape(-1).view(np.uint8)
