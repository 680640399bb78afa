"""Requirements of classes of runtimes for an ONNX graph and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Profile:
    """Requirements of a class of runtimes."""

    chunk: int = 1_900_000_000
    """Most bytes of a data file (protobuf's limit is 2 GB; browsers fetch a file in one piece)."""
    left_padding: bool = True
    """Whether rows of a batch may differ in length."""
    few_logits: bool = False
    """Whether an input num_logits_to_keep limits the logits (optimum would ask its user for it)."""
    given_factors: bool = False
    """Whether L and R are inputs of every call, as onnxruntime-web cannot replace values."""
    plain_lookup: bool = False
    """Whether rows of a table are unpacked by operators that old runtimes and browsers have."""
    soft_caps: bool = True
    """Whether attention has a soft cap where a model has one."""
    device: str | None = None
    """Device in Transformers.js's configuration."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Formats without fast kernels (by name, or by the bits of their codes) → the reason."""


_WASM = "wasm has no fast product for it; `format: int8` decodes about ten times as fast there"
BROWSER = 500_000_000

PROFILES: Mapping[str, Profile] = {
    "cpu": Profile(),
    "mobile": Profile(left_padding=False, plain_lookup=True),
    "web": Profile(
        chunk=BROWSER,
        few_logits=True,
        given_factors=True,
        plain_lookup=True,
        unfit=dict.fromkeys(("2 bits", "3 bits", "4 bits", "8 bits"), _WASM),
    ),
    "webgpu": Profile(
        chunk=BROWSER,
        few_logits=True,
        given_factors=True,
        plain_lookup=True,
        soft_caps=False,
        device="webgpu",
        unfit={
            "int8": "WebGPU has no product of 8-bit integers; `q4_0` is the usual choice there",
            "2 bits": "WebGPU multiplies 2 bits only lately",
        },
    ),
}


@dataclass(frozen=True)
class GraphOptions:
    """Options of a graph: number of positions, whether it computes in float16 (`half`), whether its
    products are DequantizeLinear and MatMul (`qdq`; ONNX Runtime fuses them, and other runtimes
    have them too) instead of MatMulNBits, and whether every weight of the blocks takes `adapters`.
    """

    context: int
    profile: Profile = PROFILES["cpu"]
    half: bool = False
    qdq: bool = False
    adapters: bool = False

    @property
    def dtype(self) -> type[np.floating]:
        """Type of activations."""
        return np.float16 if self.half else np.float32
