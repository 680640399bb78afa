"""What a model needs of a device's memory beside its files: the past of a chat, and the runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edgepack.checkpoint import Checkpoint

PROGRAM = 64 << 20
"""Bytes of the program itself, before a model is loaded."""
AT_ONCE = 512
"""Tokens that a runtime takes in one piece; llama.cpp's default."""
FLOAT = 4
CACHED = {"gguf": 2, "onnx": 4}
"""Target → bytes of a number in the cache: llama.cpp keeps float16, our graphs float32."""
LEAST_CONTEXT = 512
"""Tokens; a chat that forgets sooner is not proposed."""


@dataclass(frozen=True)
class Needs:
    """Bytes for a `context`: its keys and values, and the runtime's own."""

    context: int
    cache: int
    runtime: int
    how: str
    """The product that gives `cache`."""


def needs(model: Checkpoint, target: str, context: int) -> Needs:
    """What a chat of so many tokens needs.

    A block's cache has 2 × heads of keys and values × their width numbers a token; llama.cpp keeps
    only the window's tokens, and those it takes at once, of blocks that have a window among others
    that have none. The runtime's buffers have room for `AT_ONCE` tokens: the mask over the context,
    a block's widest activations, and in graphs the scores of all heads, where llama.cpp has flash
    attention. A test holds the sum against what `edgepack bench` measured (docs/bench).
    """
    d, in_graph = model.dimensions, target != "gguf"
    scores = 1 + d.num_attention_heads if in_graph else 1
    wide = 4 * d.hidden_size + 3 * d.intermediate_size
    buffers = FLOAT * min(AT_ONCE, context) * (scores * context + wide)
    kinds: Counter[tuple[int, int, int]] = Counter()
    for block in map(d.block, range(d.num_hidden_layers)):
        window = None if in_graph or not d.layer_types else block.sliding_window
        kept = context if window is None else min(context, window + AT_ONCE)
        kinds[kept, block.num_key_value_heads, block.head_dim] += 1
    size = CACHED[target]
    cache = sum(2 * n * kept * heads * dim * size for (kept, heads, dim), n in kinds.items())
    how = " + ".join(
        f"2 × {n} blocks × {heads} heads × {dim} columns × {size} bytes"
        + (f" × {kept:,} tokens" if kept != context else "")
        for (kept, heads, dim), n in kinds.items()
    )
    return Needs(context, cache, PROGRAM + buffers, how)


def contexts(model: Checkpoint, wished: int) -> list[int]:
    """Contexts to try: as much as is wished and the model has, then halves of it."""
    found = [min(wished, model.dimensions.max_position_embeddings)]
    while found[-1] // 2 >= LEAST_CONTEXT:
        found.append(found[-1] // 2)
    return found
