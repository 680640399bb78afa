"""What a graph cannot do of a model, or of a format: refused, or said in a warning."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from edgepack.checkpoint import Checkpoint
from edgepack.errors import ExportError, RecipeError
from edgepack.export import _onnx_pack as pack
from edgepack.export.profiles import PROFILES
from edgepack.model.rotary import original_context
from edgepack.recipe.export import Onnx
from edgepack.runtimes.base import Scorer

CONTEXT = 8192
"""Default number of positions; limited, because a session holds their cosines."""
HALF_ENDS = 65504
"""The largest number of float16."""
PROBE = "The quick brown fox jumps over the lazy dog. In 1969, 384400 km away: où? 狐\n" * 2


def positions(checkpoint: Checkpoint, context: int | None) -> int:
    """Number of positions that the graph supports; by default no more than those for which LongRoPE
    turns short texts as the model was trained to."""
    d = checkpoint.dimensions
    usual = min(CONTEXT, original_context(d) or CONTEXT)
    return min(d.max_position_embeddings, context or usual)


def context_remarks(checkpoint: Checkpoint, options: Onnx) -> list[str]:
    """Warnings if a graph will support fewer positions than its model by default, or so many that
    it will rotate short texts in another way."""
    d = checkpoint.dimensions
    known, most = positions(checkpoint, options.context), d.max_position_embeddings
    if options.context is None:
        short = f"export.onnx.context: the graph will know {known} of the model's {most} positions"
        return [short] if known < most else []
    original = original_context(d)
    if original is None or known <= original:
        return []
    return [
        f"export.onnx.context: beyond {original} positions this model rotates with other divisors, "
        "and a graph has one set for texts of any length: short texts will differ from the model's"
    ]


def check_profile(checkpoint: Checkpoint, options: Onnx) -> None:
    """Refuse a model that the runtimes of a profile would compute otherwise."""
    if checkpoint.dimensions.attention_softcap is None or PROFILES[options.profile].soft_caps:
        return
    raise RecipeError(
        f"export.onnx.profile: {options.profile} leaves out the soft cap of attention that "
        f"{checkpoint.architecture.name} models have",
        hint="use profile: web, which runs on wasm",
    )


def half_remarks(checkpoint: Checkpoint, options: Onnx) -> list[str]:
    """A warning if states may leave float16 because the family scales its embeddings up."""
    scale = checkpoint.dimensions.embedding_scale
    if options.activations != "float16" or scale <= 1:
        return []
    return [
        f"export.onnx.activations: float16 ends at {HALF_ENDS}, and this model multiplies its "
        f"embeddings by {scale:g}; the build tries the graph on a text, yours may go further"
    ]


def check_finite_logits(runtime: Scorer) -> None:
    """Refuse a graph whose states leave its type: `runtime` runs it."""
    tokens = runtime.tokenize(PROBE)[: runtime.context]
    if not np.isfinite(runtime.logits(tokens)).all():
        raise ExportError(
            "the graph's logits are not finite numbers: its states go beyond float16",
            hint="use export.onnx.activations: float32",
        )


def slow_formats(profile: str, used: Collection[str]) -> list[str]:
    """Formats that the runtimes of a profile have no fast kernels for."""
    unfit, found = PROFILES[profile].unfit, []
    for name in sorted(used):
        layout = pack.layout_of(name)
        reason = unfit.get(f"{layout.bits} bits" if layout else name)
        if reason:
            found.append(f"export.onnx.profile: {profile}, but `{name}`: {reason}")
    return found
