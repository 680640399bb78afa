"""The section `calibrate` of a recipe, which a merge may have as well."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgepack.recipe.fields import MAX_LENGTH, MAX_TOKENS, PathText, Section, Seed

Objective = Literal["model", "guided", "layer"]


class Calibration(Section):
    """How text becomes weighted second moments, whatever the text is."""

    objective: Objective = Field(
        "model",
        description="`model`: H_out ⊗ H, the Fisher matrix of the model's own output in two "
        "factors. `guided`: H alone, w_t = squared norm of the gradient at the weight's output. "
        "Both for labels sampled from the model. `layer`: w_t = 1, each block calibrated on the "
        "packed prefix.",
    )
    tokens: int | None = Field(
        None,
        ge=256,
        le=MAX_TOKENS,
        description="Calibration tokens; default 32 per column of the widest weight.",
    )
    held_out: Annotated[float, Field(gt=0, lt=0.9)] = Field(
        0.125, description="Extra tokens, as a fraction of `tokens`, that judge and gate."
    )
    sequence_length: int = Field(512, ge=32, le=MAX_LENGTH, description="Tokens per sequence.")
    seed: Seed = Field(0, description="Seed of self-generated text and sampled labels.")


class Calibrate(Calibration):
    """Text → weighted second moments H = Σ w_t x_t x_tᵀ of every linear weight's inputs."""

    source: PathText = Field(
        "self",
        description="`self` (the model writes its own text), a text file, or a JSONL of chats "
        "(`messages`, or `prompt` and `response`).",
    )
    keep: bool | None = Field(
        None,
        description="Whether H of all weights stays in the cache, for other formats and sizes. "
        "`false`: blocks are calibrated from the top, and H of a block is deleted as soon as its "
        "weights are packed. Default: kept if it takes less than a third of the free disk.",
    )
