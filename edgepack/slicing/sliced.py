"""The narrower checkpoint: what it will be is known before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from safetensors import safe_open
from torch import Tensor

from edgepack.architectures._base import OUTSIDE, Architecture
from edgepack.cache import Stage
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint._layout import SHAPES, sizes
from edgepack.checkpoint._rewritten import Rewritten
from edgepack.checkpoint.save import shard_of
from edgepack.weights import WeightSpec

PARTS = {"token_embd": "embeddings", "output": "head"}
"""Role → part of the model; all else is the body."""


class Sliced(Rewritten):
    """`base` with a hidden width of `width`, its weights in the folder of `stage` once that is
    done. Its head is a matrix of its own, since it takes the final norm's gains."""

    def __init__(
        self, base: Checkpoint, width: int, stage: Stage, about: Mapping[str, Any]
    ) -> None:
        self.stage = stage
        dimensions = replace(base.dimensions, hidden_size=width, tie_word_embeddings=False)
        words = sizes(dimensions)

        def narrow(spec: WeightSpec) -> WeightSpec:
            return replace(spec, shape=tuple(words[word] for word in SHAPES[spec.role]))

        specs = {name: narrow(spec) for name, spec in base.specs.items()}
        if OUTSIDE["output"] not in specs:
            tied = base.specs[OUTSIDE["token_embd"]]
            head = replace(tied, name=OUTSIDE["output"], role="output")
            specs[head.name] = narrow(head)
        super().__init__(base, dimensions, specs, {"slice": dict(about), "stage": stage.key})
        self.architecture = _runnable(base.architecture)

    @property
    def counted(self) -> Checkpoint:  # noqa: D102
        return self

    @cached_property
    def _shards(self) -> Mapping[str, str]:
        return shard_of(self.stage.folder)

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        with safe_open(self.stage.folder / self._shards[name], framework="pt") as file:
            value: Tensor = file.get_tensor(name)
        return value.float()

    def weights_by_part(self) -> dict[str, tuple[int, int]]:
        """Number of weights before and after, by part of the model."""
        found: dict[str, tuple[int, int]] = {}
        for place, checkpoint in enumerate((self.base, self)):
            for spec in checkpoint.specs.values():
                part = PARTS.get(spec.role, "body")
                counts = list(found.get(part, (0, 0)))
                counts[place] += spec.numel
                found[part] = counts[0], counts[1]
        return found


def _runnable(architecture: Architecture) -> Architecture:
    """As it is, unless llama.cpp takes q to be as wide as the hidden state: then as its llama,
    which computes the same (biases of q, k and v included) once q and k are in its rotary order."""
    if not architecture.square_q:
        return architecture
    return replace(architecture, gguf="llama", permute_qk=True, square_q=False)
