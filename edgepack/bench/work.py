"""What one token asks of the machine: bytes that have to be read, products that have to be made.

From headers only. A decoded token needs all matrices once, one row of the embedding, and the keys
and values of what came before. A token of a prompt needs the same products, but for the head, which
the runtimes compute for the last token only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.bench.results import Work
from edgepack.errors import EdgepackError, missing_extra

if TYPE_CHECKING:
    from edgepack.checkpoint.gguf_header import GgufHeader
    from edgepack.runtimes.models import Model

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
TABLES = {"Gather", "GatherBlockQuantized"}
"""ONNX operators that read a few rows of a matrix."""
UNPACKED = {"Cast", "DequantizeLinear", "Transpose"}
"""ONNX operators between a matrix and its product."""


def work_of(model: Model) -> Work:
    """What a token asks of a model with its factors and adapters."""
    if model.base.suffix == ".onnx":
        return _of_onnx(model.base)
    return _of_gguf(model)


def attached(model: Model) -> list[tuple[Path, float]]:
    """Adapters that a runtime attaches to a model, with their scales: its factors first, at what
    the others leave of theirs (`gguf_check.factors_scale`)."""
    own = [(model.adapter, 1.0)] if model.adapter else []
    if not model.adapters:
        return own
    if model.base.suffix == ".onnx":
        raise EdgepackError(
            f"{model.name}: adapters are measured on GGUF models only",
            hint="edgepack evaluate --adapter runs them in ONNX Runtime",
        )
    from edgepack.runtimes.gguf_check import check_adapter, check_model, factors_scale

    header = check_model(model.base)
    left = factors_scale((check_adapter(path, header), scale) for path, scale in model.adapters)
    every = [*((path, left) for path, _ in own), *model.adapters]
    return [(path, scale) for path, scale in every if scale]


def _of_gguf(model: Model) -> Work:
    from edgepack.runtimes.gguf_check import cache_bytes, check_adapter, check_model

    header = check_model(model.base)
    types: dict[str, int] = {}
    products, head = 0, header.tensors.get(HEAD, header.tensors[EMBEDDING])
    for name, stored in header.tensors.items():
        if name == EMBEDDING and HEAD in header.tensors:
            continue
        kind = stored.kind.name.lower()
        types[kind] = types.get(kind, 0) + stored.nbytes
        if len(stored.shape) > 1 and name not in (EMBEDDING, HEAD):
            products += math.prod(stored.shape)
    factors: dict[str, int] = {}
    for path, _ in attached(model):
        for stored in check_adapter(path, header).tensors.values():
            kind = stored.kind.name.lower()
            factors[kind] = factors.get(kind, 0) + stored.nbytes
            products += math.prod(stored.shape)
    return Work(
        types=types,
        factors=sum(factors.values()),
        factor_types=factors,
        cache=cache_bytes(header),
        flops=2 * products,
        head=2 * math.prod(head.shape),
        head_type=head.kind.name.lower(),
        attention=_attention(header),
    )


def _attention(header: GgufHeader) -> int:
    """Operations of a token for each token before it: q·k and its share of v, in all heads."""

    def number(key: str) -> int:
        value = header.metadata.get(f"{architecture}.{key}", (0,))[0]
        return int(max(value) if isinstance(value, list) else value)

    architecture = header.metadata["general.architecture"][0]
    heads = number("attention.head_count")
    wide = number("attention.key_length") or number("embedding_length") // max(1, heads)
    return 4 * number("block_count") * heads * wide


def _of_onnx(path: Path) -> Work:
    """Sizes of the initializers, and of the products that read them. Bytes of weights have the name
    ``onnx``: their kernels are not measured alone."""
    graph = _graph(path)
    sizes = {one.name: _bytes(one) for one in graph.initializer}
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for node in graph.node:  # in the order of computing
        if node.op_type in UNPACKED and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    read: set[str] = set()
    products, head = 0, 0
    for node in graph.node:
        if node.op_type not in TABLES:
            read.update(name for name in node.input if name in sizes)
        own = _product(node, shapes)
        products += own
        if own and "logits" in node.output:
            head += own
    past = [one for one in graph.input if one.name.startswith("past_key_values.")]
    return Work(
        types={"onnx": sum(sizes[name] for name in read)},
        factors=0,
        cache=sum(_per_token(one) for one in past),
        flops=2 * (products - head),
        head=2 * head,
        attention=2 * sum(_attention_width(node, graph) for node in graph.node),
    )


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise missing_extra("onnx", "onnx") from None
    return onnx.load(path, load_external_data=False).graph


def _bytes(tensor: Any) -> int:
    from onnx import helper

    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    count: int = math.prod(tensor.dims)
    bits = {21: 4, 22: 4, 25: 2, 26: 2}.get(tensor.data_type)  # UINT4, INT4, UINT2, INT2
    if bits:
        return int(count * bits // 8)
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _product(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Elements of the matrix that a node multiplies with; 0 for other nodes."""
    if node.op_type == "MatMulNBits":
        numbers = {one.name: one.i for one in node.attribute}
        return int(numbers["K"] * numbers["N"])
    if node.op_type in ("MatMul", "Gemm"):
        shape = next((shapes[name] for name in node.input if name in shapes), ())
        return math.prod(shape) if len(shape) == 2 else 0
    return 0


def _per_token(value: Any) -> int:
    """Bytes of keys or values ``[batch, heads, time, head_dim]`` for one token."""
    from onnx import helper

    kind = value.type.tensor_type
    heads, wide = (kind.shape.dim[i].dim_value for i in (1, 3))
    return int(heads * wide * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)


def _attention_width(node: Any, graph: Any) -> int:
    """Width of all heads of an attention, twice: once for q·k, once for v."""
    if node.op_type != "GroupQueryAttention":
        return 0
    numbers = {one.name: one.i for one in node.attribute}
    past = next(one for one in graph.input if one.name == node.input[3])
    return int(2 * numbers["num_heads"] * past.type.tensor_type.shape.dim[3].dim_value)
