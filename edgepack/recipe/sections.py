"""The YAML of a recipe as pydantic models, and nothing else. The sections that train are in
`training`, those about files in `export`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from edgepack.recipe.calibrate import Calibrate as Calibrate
from edgepack.recipe.export import Export
from edgepack.recipe.fields import (
    MAX_LIST,
    MAX_WIDTH,
    FormatName,
    Glob,
    Rank,
    Section,
    Seed,
    SizeOrShare,
)
from edgepack.recipe.fine_tune import ModelSource
from edgepack.recipe.merging import Merge
from edgepack.recipe.training import Compensate, Finetune, Recover, Rft

Covariance = Literal["normalized", "raw"]
Orientation = Literal["pca", "random", "hadamard"]
FactorFormat = Literal["f16", "q8_0", "q4_0"]


Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Section):
    """Sparsity at the first and at the last block, linear in between."""

    attention: tuple[Sparsity, Sparsity] = Field(description="Of what attention reads.")
    mlp: tuple[Sparsity, Sparsity] = Field(description="Of what the feed-forward part reads.")


class Slice(Section):
    """SliceGPT: rotate the residual stream and leave out the directions that matter least."""

    method: Literal["global", "per_block"] = Field(
        "global",
        description="`global`: one rotation for the whole model; the result is an ordinary "
        "checkpoint of its family with a smaller hidden size. `per_block`: SliceGPT as published, "
        "a rotation for every half of a block, with shortcut matrices between them; for "
        "transformers and ONNX.",
    )
    width: int | None = Field(
        None, ge=32, le=MAX_WIDTH, description="Columns to keep, such as 512."
    )
    sparsity: Sparsity | None = Field(
        None, description="Or the share of columns to leave out, such as 0.25."
    )
    schedule: Schedule | None = Field(
        None, description="For `per_block`, instead of one sparsity: one that changes with depth."
    )
    slice_head: bool = Field(
        False, description="For `per_block`: narrow the last block's output and the head as well."
    )
    round_to: int | None = Field(
        None,
        ge=1,
        le=MAX_WIDTH,
        description="`sparsity` goes to the nearest multiple of this; default: 256 for `global`, "
        "as K-quants need, 8 for `per_block`.",
    )
    covariance: Covariance | None = Field(
        None,
        description="What the kept directions explain: `normalized` tokens as the weights see "
        "them behind the norm (default of `global`), or `raw` ones (of `per_block`, as "
        "published), which a few enormous tokens decide.",
    )
    orientation: Orientation = Field(
        "pca",
        description="Basis of the kept space: `pca`, or turned by a `random` or `hadamard` "
        "rotation, so that no coordinate stands out when weights are rounded.",
    )
    seed: Seed = Field(0, description="Of the rotation that `orientation` names.")
    recover: Rft | None = Field(None, description="Recovery fine-tuning of the sliced model.")
    allow_growth: bool = Field(
        False,
        description="Slice even where the result has more weights than the model: a tied head "
        "becomes a matrix of its own.",
    )

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        widths = (self.width, self.sparsity, self.schedule)
        if sum(value is not None for value in widths) != 1:
            raise ValueError("give one of width, sparsity and schedule")
        if self.method == "global" and (self.schedule or self.slice_head):
            key = "schedule" if self.schedule else "slice_head"
            raise ValueError(f"{key} is for method: per_block; global has one width")
        return self


class WeightOptions(Section):
    """How one weight is compressed; in `overrides`, what is left out keeps the general choice."""

    format: FormatName | None = Field(None, description="Format of Q, such as q4_0.")
    rank: Rank | None = Field(None, description="Columns of L; 0 is LDLQ alone.")
    factors: FactorFormat | None = Field(None, description="Format of L and R.")


Exact = Literal["offer", "prefer", "demand", "ignore"]

BUDGETS = ("target_size", "bits_per_weight")
FIXED = ("format", "rank", "embeddings", "head")
CHOICES = ("candidates", "ranks")


class Compress(Section):
    """CALDERA: W ≈ Q + L·R."""

    target_size: SizeOrShare | None = Field(
        None,
        description="Bytes of the files, such as 64MB, or a share of a device's memory, such as "
        "40% (with --device-profile): formats and ranks are then chosen for every weight, "
        "embeddings and head included, so that the model's KL is least.",
    )
    bits_per_weight: Annotated[float, Field(gt=0, le=16)] | None = Field(
        None, description="The same, as bits per weight of all matrices (factors included)."
    )
    candidates: list[FormatName] | None = Field(
        None,
        min_length=1,
        max_length=MAX_LIST,
        description="Formats to choose from; default: the best of each size.",
    )
    ranks: list[Rank] | None = Field(
        None,
        min_length=1,
        max_length=MAX_LIST,
        description="Ranks to choose from; default: 0, 32, 64, 128.",
    )
    format: FormatName = Field("q4_0", description="Format of Q for the weights of the blocks.")
    rank: Rank = Field(0, description="Columns of L; 0 is LDLQ alone.")
    factors: FactorFormat = Field("q4_0", description="Format of L and R.")
    embeddings: FormatName = Field("q8_0", description="Format of the token embeddings.")
    head: FormatName | None = Field(
        None, description="Format of an untied head; default: `embeddings`."
    )
    iterations: int = Field(2, ge=1, le=100, description="Rounds of alternating Q and L·R.")
    damping: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        [0.01, 0.1],
        min_length=1,
        max_length=MAX_LIST,
        description="Damping of H relative to its mean diagonal; held-out tokens choose.",
    )
    fallback: Literal["refuse", "nearest"] = Field(
        "refuse",
        description="What to do where a width does not divide the format's block: refuse, or take "
        "the nearest format in bits per weight that fits (and list it in the report).",
    )
    exact: Exact = Field(
        "offer",
        description="Weights whose numbers already lie on a format's grid, as of QAT and of "
        "dequantized files, can be stored without an error. `offer`: where the format that they "
        "get is such a one; a size may choose any. `prefer`: always, in the smallest such format; "
        "weights on no grid are named. `demand`: the same, and a weight on no grid ends the build "
        "unless an override names its format. `ignore`: do not look for grids.",
    )
    experimental_types: bool = Field(
        False,
        description="Allow types that stock runtimes do not have yet; --experimental-types sets "
        "it.",
    )
    pad_width: Annotated[int, Field(multiple_of=32, ge=32, le=4096)] | None = Field(
        None,
        description="Zero-pad every width to a multiple of this (256), so that formats with blocks "
        "of as many columns fit. Exact, and paid for in bytes.",
    )
    rotate: Literal["none", "hadamard"] = Field(
        "none",
        description="Fuse random Hadamard rotations into the weights: of the residual stream "
        "(unless the head is tied) and of the values of every head. Exact.",
    )
    compensate: Compensate | None = Field(
        None,
        description="Train each block between the roundings of its matrices: for 2 and 3 bits.",
    )
    overrides: dict[Glob, WeightOptions] = Field(
        {},
        max_length=1000,
        description="Glob on the weight's name (`*.mlp.down_proj`) → options; later ones win.",
    )

    @property
    def is_budget(self) -> bool:
        """Whether formats and ranks are to be chosen for a size."""
        return self.target_size is not None or self.bits_per_weight is not None

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        fixed = [key for key in FIXED if key in self.model_fields_set]
        chosen = [key for key in CHOICES if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError("give target_size or bits_per_weight, not both")
        if given and fixed:
            raise ValueError(f"{given[0]} chooses {fixed[0]}; leave one of them out")
        if given and self.exact == "demand":
            raise ValueError(f"exact: demand leaves no choice for {given[0]}; write exact: prefer")
        if chosen and not given:
            raise ValueError(f"{chosen[0]} is for a target_size or bits_per_weight")
        return self


Merges = Annotated[
    Annotated[Merge, Tag("<one>")]
    | Annotated[list[Merge], Field(min_length=1, max_length=100), Tag("<several>")],
    Discriminator(lambda value: "<several>" if isinstance(value, list | tuple) else "<one>"),
]
"""One merge, or several. The tags are left out of errors (`read`)."""


class Recipe(Section):
    """One model's way from the hub to a device. A section left out is a stage skipped."""

    model: ModelSource | None = Field(
        None,
        description="A hub id with optional @revision, a local folder, a .gguf file, or "
        "package:PACKAGE/FILE.gguf; or `base` and `adapter`.",
    )
    merge: Merges | None = Field(
        None,
        description="Or several models as one, in mergekit's schema. A list of merges may use one "
        "another's results by name; the last is the model.",
    )
    slice: Slice | None = None
    calibrate: Calibrate = Calibrate()
    compress: Compress | None = None
    recover: Recover | None = None
    finetune: Finetune | None = None
    export: Export = Export()

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.model is not None and self.merge is not None:
            raise ValueError("give one of model and merge")
        return self
