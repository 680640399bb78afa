# ruff: noqa: D102  (documented in `Checkpoint`)
"""Some weights of a model, for a machine that does not have the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.checkpoint.base import Checkpoint
from edgepack.core import plugins
from edgepack.core.weights import QuantizedTensor
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NARROW = (torch.bfloat16, torch.float16)
"""Types that a float32 tensor is sent as, if they hold all of its values."""


@dataclass(frozen=True)
class Sent:
    """A tensor as bytes, which Ray puts into its store without another copy."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @classmethod
    def from_tensor(cls, values: Tensor) -> Sent:
        """A tensor to send."""
        data = values.contiguous().reshape(-1).view(torch.uint8).numpy()
        return cls(values.dtype, tuple(values.shape), data)

    @classmethod
    def from_floats(cls, values: Tensor) -> Sent:
        """float32 to send, in half the bytes if nothing is lost by that."""
        for dtype in NARROW if values.dtype == torch.float32 else ():
            narrow = values.to(dtype)
            if torch.equal(narrow.to(torch.float32).view(torch.int32), values.view(torch.int32)):
                return cls.from_tensor(narrow)
        return cls.from_tensor(values)

    def tensor(self) -> Tensor:
        """The tensor, in memory of torch's own: products round differently for operands that are
        aligned differently."""
        raw = torch.empty(len(self.data), dtype=torch.uint8)
        raw.numpy()[:] = self.data
        return raw.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class SentWeight:
    """One weight: its values, and its codes if it is stored in one of edgepack's formats."""

    values: Sent
    format: str = ""
    codes: Sent | None = None
    grid: Mapping[str, Sent] | None = None

    @classmethod
    def read(cls, model: Checkpoint, name: str) -> SentWeight:
        """Read it from the model that it belongs to."""
        values = Sent.from_floats(model.tensor(name).contiguous())
        stored = model.quantized(name)
        if stored is None:
            return cls(values)
        grid = {field: Sent.from_tensor(tensor) for field, tensor in stored.grid.items()}
        return cls(values, stored.format, Sent.from_tensor(stored.codes), grid)

    def quantized(self) -> QuantizedTensor | None:
        """The codes."""
        if self.codes is None or self.grid is None:
            return None
        grid = {field: sent.tensor() for field, sent in self.grid.items()}
        return QuantizedTensor(self.format, self.codes.tensor(), grid)


class SentModel(Checkpoint):
    """What is known of `model`, and the values of some weights: they come apart (`fill`)."""

    def __init__(self, model: Checkpoint) -> None:
        self._family, self._key = model.architecture.name, model.key
        self._about = dict(model.source)
        self.dimensions = replace(model.dimensions, **_plain(vars(model.dimensions)))
        self.specs = dict(model.specs)
        self._values: Mapping[str, SentWeight] = {}

    def fill(self, values: Mapping[str, SentWeight]) -> None:
        """Take the values of the weights."""
        self._values = values

    @property
    def architecture(self) -> Architecture:  # type: ignore[override]
        found: Architecture = plugins.find("architectures", self._family)
        return found

    @property
    def source(self) -> Mapping[str, Any]:
        return self._about

    @property
    def key(self) -> str:
        return self._key

    def tensor(self, name: str) -> Tensor:
        return self._values[name].values.tensor().to(torch.float32)

    def quantized(self, name: str) -> QuantizedTensor | None:
        return self._values[name].quantized()

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        raise CheckpointError("the tokenizer was not sent to this machine")

    def gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:
        raise CheckpointError("the metadata was not sent to this machine")


def _plain(value: Any) -> Any:
    """The same with dictionaries for other mappings, which cannot all be pickled."""
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value
