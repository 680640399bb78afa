"""The sections of a recipe that train: recovery of a slice and of a packed model, fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgepack.recipe.fields import (
    MAX_LENGTH,
    MAX_RANK,
    MAX_STEPS,
    MAX_TOKENS,
    FileName,
    PathText,
    Section,
    Seed,
    Size,
)


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


class Compensate(Section):
    """Train what is not rounded yet, so that it makes up for what is: block by block, between the
    roundings of its matrices, on the calibration text."""

    steps: int = Field(
        8,
        ge=1,
        le=MAX_STEPS,
        description="Steps before each group of matrices that read the same; behind the last, "
        "twice as many for scales and factors.",
    )
    tokens: int = Field(
        2048, ge=1, le=MAX_TOKENS, description="Tokens per step, in whole sequences."
    )
    learning_rate: float = Field(
        0.02,
        gt=0,
        le=10,
        description="Relative: 0.02 changes a matrix by about 2 % a step, if a block's error is as "
        "large as all that it does; of smaller ones, in proportion to their root.",
    )
    seed: Seed = Field(0, description="Order of the sequences.")


class Rft(Training):
    """Recovery fine-tuning after slicing: factors of every linear weight are distilled from the
    unsliced model and merged."""

    rank: int = Field(32, ge=1, le=MAX_RANK, description="Columns of the factors.")


class Recover(Training):
    """Distil the original into the packed model; its codes and its size stay as they are."""

    source: PathText | None = Field(
        None,
        description="The text to train on: `self`, a text file or a JSONL of chats; default: that "
        "of `calibrate`. Its share `calibrate.held_out` judges.",
    )
    tokens_total: int | None = Field(
        None,
        ge=256,
        le=MAX_TOKENS,
        description="Tokens of that text to train on, a text longer than calibration's. `steps` "
        "times `tokens` as many are seen; once through is usual.",
    )
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
