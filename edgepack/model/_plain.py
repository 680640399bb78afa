"""The check that a model may be rotated or padded."""

from __future__ import annotations

from edgepack.checkpoint import Checkpoint
from edgepack.errors import RecipeError


def refuse_other_streams(checkpoint: Checkpoint, key: str) -> None:
    """Refuse models that rotation or padding would change: LayerNorm subtracts the mean over all
    coordinates, and a slice per block has another basis at every place. `key` is the recipe's key
    that asks for the change."""
    roles = {spec.role for spec in checkpoint.specs.values()}
    family = checkpoint.architecture.name
    if any(role.endswith("_norm.bias") for role in roles):
        raise RecipeError(
            f"{key}: {family} models have LayerNorms, which this would change",
            hint=f"remove {key}",
        )
    if not checkpoint.architecture.rotates_freely and key == "compress.rotate":
        raise RecipeError(
            f"{key}: {family} models have norms behind attention and MLP, which no rotation passes",
            hint=f"remove {key}",
        )
    if any(role.endswith("_shortcut") for role in roles):
        raise RecipeError(
            f"{key}: a per_block slice has a basis of its own at every place",
            hint=f"remove {key}, or use slice.method: global",
        )
