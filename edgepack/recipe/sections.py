"""The YAML of a recipe as pydantic models, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from edgepack.recipe.fields import (
    MAX_LENGTH,
    MAX_LIST,
    MAX_RANK,
    MAX_STEPS,
    MAX_TOKENS,
    MAX_WIDTH,
    FileName,
    FormatName,
    Glob,
    PathText,
    Rank,
    Section,
    Seed,
    Size,
)

Objective = Literal["model", "guided", "layer"]
Covariance = Literal["normalized", "raw"]
Orientation = Literal["pca", "random", "hadamard"]
FactorFormat = Literal["f16", "q8_0", "q4_0"]


class Calibrate(Section):
    """Text → weighted second moments H = Σ w_t x_t x_tᵀ of every linear weight's inputs."""

    source: PathText = Field(
        "self",
        description="`self` (the model writes its own text), a text file, or a JSONL of chats "
        "(`messages`, or `prompt` and `response`).",
    )
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


Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Section):
    """Sparsity at the first and at the last block, linear in between."""

    attention: tuple[Sparsity, Sparsity] = Field(description="Of what attention reads.")
    mlp: tuple[Sparsity, Sparsity] = Field(description="Of what the feed-forward part reads.")


class Training(Section):
    """How the original is distilled into a smaller model."""

    steps: int = Field(
        100, ge=1, le=MAX_STEPS, description="Steps at most; held-out text may end it earlier."
    )
    tokens: int = Field(
        1024, ge=1, le=MAX_TOKENS, description="Tokens per step, in whole sequences."
    )
    learning_rate: float = Field(
        0.005, gt=0, le=10, description="Relative: 0.005 moves a scale by about 0.5 % a step."
    )
    evaluate_every: int = Field(
        20, ge=1, le=MAX_STEPS, description="Steps between looks at held-out text."
    )
    patience: int = Field(3, ge=1, le=MAX_STEPS, description="Looks without a gain before it ends.")
    seed: Seed = Field(0, description="Order of the sequences.")


class Rft(Training):
    """Recovery fine-tuning after slicing: factors of every linear weight are distilled from the
    unsliced model and merged."""

    rank: int = Field(32, ge=1, le=MAX_RANK, description="Columns of the factors.")


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


BUDGETS = ("target_size", "bits_per_weight")
FIXED = ("format", "rank", "embeddings", "head")
CHOICES = ("candidates", "ranks")


class Compress(Section):
    """CALDERA: W ≈ Q + L·R."""

    target_size: Size | None = Field(
        None,
        description="Bytes of the files, such as 64MB: formats and ranks are then chosen for every "
        "weight, embeddings and head included, so that the model's KL is least.",
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
        if chosen and not given:
            raise ValueError(f"{chosen[0]} is for a target_size or bits_per_weight")
        return self


class Recover(Training):
    """Distil the original into the packed model; its codes and its size stay as they are."""

    train: list[Literal["scales", "factors", "norms"]] = Field(
        ["scales", "factors", "norms"],
        min_length=1,
        max_length=3,
        description="What moves: block scales of Q, L and R, gains and biases.",
    )


class Finetune(Section):
    """Train the packed model on examples: its L and R, or an adapter on top; Q stays as it is."""

    data: PathText = Field(
        description="A .jsonl of chats (`messages`, `prompt` and `completion`, `instruction` and "
        "`output`) or texts (`text`), a .json list of such rows, or a plain text. Of chats only "
        "the answers are learnt."
    )
    name: FileName | None = Field(
        None, description="Name of the adapter; default: that of `data`, without its ending."
    )
    mode: Literal["stack", "factors"] = Field(
        "stack",
        description="`stack`: a new pair of rank `r` on top of Q + L·R. `factors`: L and R "
        "themselves, which costs nothing when the model runs.",
    )
    r: int = Field(8, ge=1, le=MAX_RANK, description="Rank of a stacked adapter.")
    lora_alpha: float = Field(
        16, gt=0, le=MAX_RANK, description="Its scale is lora_alpha / r, as in PEFT."
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the inputs that a step leaves out."
    )
    init_lora_weights: Literal["default", "pissa", "eora"] = Field(
        "default",
        description="How a stacked pair starts: `default` as in PEFT (no change), `pissa` as the "
        "principal part of the weight (no change either), `eora` as the best correction of what "
        "compression lost, from the original and H in the cache.",
    )
    target_modules: str | list[str] = Field(
        "all-linear",
        max_length=500,
        description="As in PEFT: names of modules, a regular expression, or `all-linear`.",
    )
    layers_to_transform: list[Annotated[int, Field(ge=0, le=MAX_STEPS)]] | None = Field(
        None, max_length=1000, description="Blocks to train; default: all."
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Highest step of AdamW.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Of AdamW.")
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps with a rising rate; then a cosine."
    )
    clip: float = Field(1.0, gt=0, le=1e9, description="Longest gradient, over all parameters.")
    epochs: int = Field(3, ge=1, le=MAX_STEPS, description="Times that every example is seen.")
    steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="Steps at most, in place of `epochs`."
    )
    batch_size: int = Field(4, ge=1, le=MAX_STEPS, description="Examples of one step.")
    sequence_length: int = Field(512, ge=8, le=MAX_LENGTH, description="Most tokens of an example.")
    held_out: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.1, description="Share of the examples that is not learnt, and judges (from 10 on)."
    )
    validation: PathText | None = Field(
        None, description="Or a file of examples that judges, in place of a share of `data`."
    )
    evaluate_every: int = Field(
        20, ge=1, le=MAX_STEPS, description="Steps between looks at what is held out."
    )
    patience: int = Field(3, ge=1, le=MAX_STEPS, description="Looks without a gain before it ends.")
    replay: Annotated[float, Field(ge=0, le=8)] = Field(
        0.5,
        description="Chats of 128 tokens that the model wrote itself, as a multiple of a step's "
        "examples: its predictions there are held, so that a few notes do not make it forget the "
        "rest. 0: none.",
    )
    skip_bad_rows: bool = Field(False, description="Leave out rows that cannot be used.")
    arithmetic: Literal["float32", "bfloat16", "int8", "int4"] = Field(
        "float32", description="Of the products with Q."
    )
    optimizer_states: Literal["float32", "int8"] = Field(
        "float32", description="How AdamW's moments are kept."
    )
    activations: Literal["memory", "bfloat16", "int4", "disk"] | None = Field(
        None,
        description="Where the blocks' inputs wait for the backward pass; default: in memory, or "
        "on disk where `memory` asks for it. `bfloat16` and `int4` round them.",
    )
    memory: Size | None = Field(
        None, description="Most memory of the process, such as 800MB: honoured, or refused."
    )
    seed: Seed = Field(0, description="Order of the examples, first values, dropout.")


class Measure(Section):
    """What is measured on the written files through the runtime."""

    text: PathText | None = Field(
        None, description="Text file to measure on; default: the held-out calibration text."
    )
    tokens: int = Field(
        6144, ge=0, le=MAX_TOKENS, description="Tokens to measure on; 0 measures nothing."
    )
    context: int = Field(
        512, ge=64, le=MAX_LENGTH, description="Tokens per chunk; the second half is scored."
    )
    stock: bool = Field(True, description="Also measure stock quantization of the nearest size.")


class Onnx(Section):
    """What is particular to --target onnx."""

    profile: Literal["cpu", "mobile", "web", "webgpu"] = Field(
        "cpu",
        description="Who will run it: `cpu` any runtime, batches padded on the left included; "
        "`mobile` runtimes as old as 1.19 too, without such batches; `web` and `webgpu` browsers.",
    )
    activations: Literal["float32", "float16"] = Field(
        "float32", description="What the graph computes in; float16 is for GPUs."
    )
    qdq: bool = Field(
        False,
        description="Write weights of 4 and 8 bits as DequantizeLinear and MatMul, which compilers "
        "other than ONNX Runtime know, in place of MatMulNBits.",
    )
    context: int | None = Field(
        None,
        ge=64,
        le=MAX_LENGTH,
        description="Positions the graph knows, whose cosines and sines it holds; default: 8192, "
        "or as many as the model has.",
    )
    adapters: bool = Field(
        False,
        description="Give every weight of the blocks factors that an adapter can replace, of rank "
        "1 and zero where it has none of type f16. 135 M weights decode a third slower.",
    )


class Export(Section):
    """What is written, and what of it is measured."""

    name: FileName | None = Field(
        None, description="Name of the output folder; default: the recipe's."
    )
    onnx: Onnx = Onnx()
    merge_factors: bool = Field(
        False,
        description="Fold L·R into Q, for runtimes without adapters (Ollama for Qwen, "
        "Transformers.js): weights are rounded again with H, and the report compares the KL.",
    )
    measure: Measure = Measure()


class Recipe(Section):
    """One model's way from the hub to a device. A section left out is a stage skipped."""

    model: PathText | None = Field(
        None,
        description="A hub id with optional @revision, a local folder, a .gguf file, or "
        "package:PACKAGE/FILE.gguf.",
    )
    merge: dict[str, Any] | None = Field(None, description="mergekit's schema. Not built yet.")
    slice: Slice | None = None
    calibrate: Calibrate = Calibrate()
    compress: Compress | None = None
    recover: Recover | None = None
    finetune: Finetune | None = None
    export: Export = Export()
