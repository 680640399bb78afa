"""One step of training as a graph: loss, gradients of all trained matrices, AdamW."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from onnx import NodeProto

from edgepack.finetune.graph.autodiff import add_backward
from edgepack.finetune.graph.base import Base
from edgepack.finetune.graph.builder import TrainingGraph
from edgepack.finetune.graph.decoder import Decoder
from edgepack.finetune.graph.loss import Loss
from edgepack.finetune.graph.options import AdamW, Options, Parameter, in_block, parameters

STATE = ("theta", "m", "v")
"""The trained values and the moments of their gradients, flat float32 vectors. Each is an input,
and an output with ``_out`` after its name."""


def step_graph(base: Base, options: Options) -> TrainingGraph:
    """The graph: input_ids, labels ``[batch, time]`` int64; lr, step (from 1) float32 without
    dimensions; theta, m, v → loss, gradient_norm, theta_out, m_out, v_out."""
    graph, found = TrainingGraph(), parameters(base, options)
    _add_inputs(graph, options, found)
    base = replace(base, load=lru_cache(maxsize=2)(base.load))
    gradient = _add_gradient(graph, Decoder(graph, base, options, found), options, found)
    _add_update(graph, gradient, options.optimizer)
    return graph


def _add_inputs(g: TrainingGraph, options: Options, found: list[Parameter]) -> None:
    for name in ("input_ids", "labels"):
        g.input(name, np.int64, (options.batch, options.length or "sequence_length"))
    for name in ("lr", "step"):
        g.input(name, np.float32, ())
    for name in STATE:
        g.input(name, np.float32, (found[-1].stop,))
    g.scope = "theta"
    sizes = g.whole(*(p.stop - p.offset for p in found))
    pieces = g.add_many("Split", "theta", sizes, outs=["*"] * len(found), axis=0)
    for piece, parameter in zip(pieces, found, strict=True):
        g.parameters[parameter.name] = parameter.shape
        g.add("Reshape", piece, g.whole(*parameter.shape), out=parameter.name)


def _add_gradient(
    g: TrainingGraph, decoder: Decoder, options: Options, found: list[Parameter]
) -> str:
    """The gradient of the loss at theta. Blocks are kept, or only their inputs and the last one."""
    last = decoder.d.num_hidden_layers - 1
    inputs, kept, x = [], dict[int, tuple[str, str, list[NodeProto]]](), decoder.embed()
    for block in range(last + 1):
        g.scope, first = f"layers.{block}", len(g.nodes)
        inputs.append(x)
        x = decoder.block(x, block)
        if block == last or not options.recompute:
            kept[block] = inputs[block], x, g.nodes[first:]
    g.scope, first = "norm", len(g.nodes)
    states = decoder.norm("output_norm", x, None)
    norm = g.nodes[first:]
    loss, gradient = Loss(g, *decoder.output(), decoder.d).add(states)
    g.add("Identity", loss, out="loss")
    g.output("loss", np.float32, ())
    dx = add_backward(g, norm, {states: gradient}, [x])[x]
    parts: list[str] = []
    for block in reversed(range(last + 1)):
        g.scope, first = f"layers.{block}.backward", len(g.nodes)
        if block not in kept:
            start = g.wait(inputs[block], dx)
            first = len(g.nodes)
            kept[block] = start, decoder.block(start, block), g.nodes[first:]
        dx, part = _block_backward(
            g, *kept.pop(block), dx, in_block(found, block), first=block == 0
        )
        parts = [part, *parts] if part else parts
    g.scope = "gradient"
    return g.add("Concat", *parts, axis=0)


def _block_backward(
    g: TrainingGraph,
    x: str,
    y: str,
    nodes: list[NodeProto],
    dy: str,
    found: list[Parameter],
    *,
    first: bool,
) -> tuple[str, str]:
    """(gradient of a block's input, flat gradient of its trained matrices), each "" if there is
    none: nothing before the `first` block is trained. The former waits for the latter, so that
    activations are not kept for it."""
    names = [parameter.name for parameter in found]
    gradients = add_backward(g, nodes, {y: dy}, names if first else [x, *names])
    flat = [g.add("Reshape", gradients[name], g.whole(-1)) for name in names]
    part = g.add("Concat", *flat, axis=0) if flat else ""
    dx = gradients.get(x, "")
    return (g.wait(dx, part, rank=1) if dx and part else dx), part


def _add_update(g: TrainingGraph, gradient: str, options: AdamW) -> None:
    """AdamW on the flat vectors."""
    g.scope, number = "adamw", g.number
    norm = g.add("Sqrt", g.add("ReduceSumSquare", gradient, keepdims=0), out="gradient_norm")
    g.output("gradient_norm", np.float32, ())
    if options.clip:
        share = g.add("Div", number(options.clip), g.add("Add", norm, number(1e-6)))
        gradient = g.add("Mul", gradient, g.add("Min", share, number(1)))
    m = _decayed(g, "m", gradient, options.beta1)
    v = _decayed(g, "v", g.add("Mul", gradient, gradient), options.beta2)
    mean, square = (
        g.add("Div", x, g.add("Sub", number(1), g.add("Pow", number(beta), "step")))
        for x, beta in ((m, options.beta1), (v, options.beta2))
    )
    size = g.add("Add", g.add("Sqrt", square), number(options.epsilon))
    change = g.add("Div", mean, size)
    if options.weight_decay:
        decay = g.add("Mul", "theta", number(options.weight_decay))
        change = g.add("Add", change, decay)
    g.add("Sub", "theta", g.add("Mul", change, "lr"), out="theta_out")
    for name in STATE:
        shape = next(node for node in g.inputs if node.name == name)
        size_of = shape.type.tensor_type.shape.dim[0].dim_value
        g.output(f"{name}_out", np.float32, (size_of,))


def _decayed(g: TrainingGraph, name: str, value: str, beta: float) -> str:
    """beta·old + (1 − beta)·value."""
    old, new = g.add("Mul", name, g.number(beta)), g.add("Mul", value, g.number(1 - beta))
    return g.add("Add", old, new, out=f"{name}_out")
