"""The section of a recipe that says what is written, and what of it is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgepack.recipe.fields import MAX_LENGTH, MAX_TOKENS, FileName, PathText, Section


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
    reference: Literal["written", "streamed"] = Field(
        "written",
        description="What KL is measured from: the original `written` as float16 for the runtime, "
        "which takes two bytes a weight of disk for a time; or `streamed` through our own forward "
        "pass from the checkpoint, block by block, for models whose float16 has no room.",
    )


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
        "or as many as the model has (with LongRoPE, its original context: a longer graph rotates "
        "short texts as long ones).",
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
        description="Fold L·R into Q, for programs without adapters (Ollama since 0.34.1, LM "
        "Studio, Transformers.js): weights are rounded again with H, and the report compares the "
        "KL.",
    )
    measure: Measure = Measure()
