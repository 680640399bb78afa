"""Reverse-mode differentiation of ONNX nodes (Griewank and Walther, Evaluating Derivatives, 2008).

`RULES` has one function per operator. It gets a node, the gradient of the node's first output and
the number of an input, and adds the nodes that compute that input's gradient. Only inputs on the
way to something trained are asked for, so gains of norms, biases and masks need no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from edgepack.export._onnx_graph import kind
from edgepack.finetune.graph.builder import TrainingGraph

Node = onnx.NodeProto
ROTARY = ("num_heads", "rotary_embedding_dim", "interleaved")
Rule = Callable[[TrainingGraph, Node, str, int], str]


def add_backward(
    g: TrainingGraph, nodes: Sequence[Node], seeds: Mapping[str, str], sources: Collection[str]
) -> dict[str, str]:
    """Add the backward pass of `nodes`: the gradient of each of `sources` that is on the way to an
    output. `seeds` maps outputs to their gradients."""
    gradients, moving = dict(seeds), _moving(g, nodes, sources)

    def accumulate(name: str, dx: str) -> None:
        known = gradients.get(name)
        gradients[name] = dx if known is None else g.add("Add", known, dx)

    for node in reversed(nodes):
        y = node.output[0]
        if y not in gradients or y not in moving:
            continue
        if y in g.backward_of:
            x, backward = g.backward_of[y]
            accumulate(x, backward(gradients[y]))
            continue
        for index, name in enumerate(node.input):
            if name in moving:
                accumulate(name, RULES[node.op_type](g, node, gradients[y], index))
    return {name: gradients[name] for name in sources if name in gradients}


def _moving(g: TrainingGraph, nodes: Sequence[Node], sources: Collection[str]) -> set[str]:
    """The values that change with the sources."""
    moving = set(sources)
    for node in nodes:
        y = node.output[0]
        inputs = [g.backward_of[y][0]] if y in g.backward_of else node.input
        if (y in g.backward_of or y not in g.opaque) and moving.intersection(inputs):
            moving.update(node.output)
    return moving


def _attribute(node: Node, name: str, default: Any = None) -> Any:
    found = (a for a in node.attribute if a.name == name)
    return next((onnx.helper.get_attribute_value(a) for a in found), default)


def _pass(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """y = a + b, both of y's shape."""
    return dy


def _mul(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """y = a·b, of y's shape (or the other one a number, or the same for all rows)."""
    return g.add("Mul", dy, node.input[1 - index])


def _sigmoid(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """dx = dy·y·(1 − y)."""
    y = node.output[0]
    return g.add("Mul", g.add("Mul", dy, y), g.add("Sub", g.number(1), y))


def _tanh(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """dx = dy·(1 − y²)."""
    y = node.output[0]
    return g.add("Mul", dy, g.add("Sub", g.number(1), g.add("Mul", y, y)))


def _relu(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """dx = dy where y > 0."""
    above = g.add("Greater", node.output[0], g.number(0))
    return g.add("Mul", dy, g.add("Cast", above, to=kind(np.float32)))


def _matmul(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """y = α·a·b or α·a·bᵀ: da = α·dy·bᵀ, db = α·aᵀ·dy, or (α·aᵀ·dy)ᵀ. For a trained matrix b, the
    rows of all of the batch are one long matrix."""
    a, b = node.input
    alpha, turned = _attribute(node, "alpha", 1.0), _attribute(node, "transB", 0)
    if index == 0:
        return g.add("FusedMatMul", dy, b, transB=1 - turned, alpha=alpha)
    if b in g.parameters:
        rows, columns = g.parameters[b]
        a = g.add("Reshape", a, g.whole(-1, rows))
        dy = g.add("Reshape", dy, g.whole(-1, columns))
    if turned:
        return g.add("FusedMatMul", dy, a, transA=1, alpha=alpha)
    return g.add("FusedMatMul", a, dy, transA=1, alpha=alpha)


def _transpose(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    order = _attribute(node, "perm")
    return g.add("Transpose", dy, perm=[order.index(axis) for axis in range(len(order))])


def _reshape(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    return g.add("Reshape", dy, g.unreshaped[node.output[0]])


def _columns(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """y = some of x's columns: zeros for the others."""
    before, behind = g.cut[node.output[0]]
    return g.add("Pad", dy, g.whole(0, 0, before, 0, 0, behind))


def _softmax(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """dx = y·(dy − Σ dy·y)."""
    y = node.output[0]
    total = g.add("ReduceSum", g.add("Mul", dy, y), g.whole(-1), keepdims=1)
    return g.add("Mul", y, g.add("Sub", dy, total))


def _rotary(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """A rotation, times a factor; its transpose turns by the negative angle."""
    _, places, cos, sin = node.input
    given = {key: _attribute(node, key) for key in ROTARY}
    return g.add("RotaryEmbedding", dy, places, cos, g.negative(sin), **given)


def _norm(g: TrainingGraph, node: Node, dy: str, index: int) -> str:
    """y = γ·x̂ + β with x̂ = (x − mean)·s and s = 1/√(variance + ε), or without the means (RMSNorm):
    dx = s·(u − mean(u) − x̂·mean(u·x̂)) with u = dy·γ. s is the node's last output."""
    x, gain = node.input[:2]
    scale = node.output[-1]
    centered = node.op_type == "LayerNormalization"
    u = g.add("Mul", dy, gain)
    middle = g.add("Sub", x, node.output[1]) if centered else x
    unit = g.add("Mul", middle, scale)
    along = g.add("ReduceMean", g.add("Mul", u, unit), g.whole(-1), keepdims=1)
    rest = g.add("Sub", u, g.add("Mul", unit, along))
    if centered:
        rest = g.add("Sub", rest, g.add("ReduceMean", u, g.whole(-1), keepdims=1))
    return g.add("Mul", rest, scale)


RULES: Mapping[str, Rule] = {
    "Add": _pass,
    "FusedMatMul": _matmul,
    "LayerNormalization": _norm,
    "MatMul": _matmul,
    "Mul": _mul,
    "Relu": _relu,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Sigmoid": _sigmoid,
    "SimplifiedLayerNormalization": _norm,
    "Slice": _columns,
    "Softmax": _softmax,
    "Tanh": _tanh,
    "Transpose": _transpose,
}
