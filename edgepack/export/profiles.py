"""What classes of runtimes ask of an ONNX graph and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Profile:
    """What a class of runtimes asks for.

    `chunk` is the most bytes of a data file (protobuf ends at 2 GB; browsers fetch a file in one
    piece). `left_padding`: rows of a batch may differ in length. `few_logits`: an input
    num_logits_to_keep spares a prompt's (optimum would ask its user for it). `given_factors`:
    L and R are inputs that every call gives, because onnxruntime-web cannot replace what a graph
    holds. `plain_lookup`: rows of a table are unpacked by operators that old runtimes and the
    browsers' builds have too.
    `device` is Transformers.js's word. `unfit` says of formats (by name, or by the bits of their
    codes) that there are no fast kernels for them.
    """

    chunk: int = 1_900_000_000
    left_padding: bool = True
    few_logits: bool = False
    given_factors: bool = False
    plain_lookup: bool = False
    device: str | None = None
    unfit: Mapping[str, str] = field(default_factory=dict)


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
        device="webgpu",
        unfit={
            "int8": "WebGPU has no product of 8-bit integers; `q4_0` is the usual choice there",
            "2 bits": "WebGPU multiplies 2 bits only lately",
        },
    ),
}


@dataclass(frozen=True)
class GraphOptions:
    """A graph to be made: how many positions it knows, whether it computes in float16, and whether
    its weights are multiplied by DequantizeLinear and MatMul (which ONNX Runtime fuses, and others
    know too) in place of MatMulNBits."""

    context: int
    profile: Profile = PROFILES["cpu"]
    half: bool = False
    qdq: bool = False

    @property
    def dtype(self) -> type[np.floating]:
        """What activations are."""
        return np.float16 if self.half else np.float32
