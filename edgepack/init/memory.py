"""What a model needs of a device's memory beside its files: the past of a chat, and the runtime."""

from __future__ import annotations

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

    The cache has 2 × blocks × heads of keys and values × their width numbers a token. The runtime's
    buffers have room for `AT_ONCE` tokens: the mask over the context, a block's widest activations,
    and in graphs the scores of all heads, where llama.cpp has flash attention. A test holds the sum
    against what `edgepack bench` measured (docs/bench).
    """
    d, size = model.dimensions, CACHED[target]
    per_token = 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim * size
    how = (
        f"2 × {d.num_hidden_layers} blocks × {d.num_key_value_heads} heads × {d.head_dim} columns "
        f"× {size} bytes"
    )
    scores = 1 if target == "gguf" else 1 + d.num_attention_heads
    wide = 4 * d.hidden_size + 3 * d.intermediate_size
    buffers = FLOAT * min(AT_ONCE, context) * (scores * context + wide)
    return Needs(context, per_token * context, PROGRAM + buffers, how)


def contexts(model: Checkpoint, wished: int) -> list[int]:
    """Contexts to try: as much as is wished and the model has, then halves of it."""
    found = [min(wished, model.dimensions.max_position_embeddings)]
    while found[-1] // 2 >= LEAST_CONTEXT:
        found.append(found[-1] // 2)
    return found
