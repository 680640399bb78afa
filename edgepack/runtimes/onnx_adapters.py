"""A user's adapters on an ONNX graph whose L and R a caller may replace.

A graph has one pair of factors a weight, of any rank. So adapters are appended to them:
[L, s₁·B₁, s₂·B₂ …]·[R; A₁; A₂ …], in the graph's transposed layout.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgepack.core import telemetry
from edgepack.core.linalg import least_rank
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.runtimes.onnx_check import AGAIN, reason

Array = NDArray[Any]
Pair = tuple[Array, Array]
"""lora_A ``[in, rank]`` and lora_B ``[rank, out]``, as a graph takes them."""
GIVEN, REPLACED = "factors.safetensors", "factors.onnx_adapter"
"""The file of L and R of a graph that takes them as inputs, and of one that has values for them."""
PREFIX, ROOM = "base_model.model.", ".adapter"
WAY_OUT = "build the folder with `export: {onnx: {adapters: true}}`, or with factors of type f16"


def names_of(module: str, known: Collection[str]) -> tuple[str, str] | None:
    """The graph's names of a weight's factors that may be replaced, the empty ones if there are
    any; None if it has none."""
    for stem in (f"{module}{ROOM}", module):
        names = (f"{stem}.lora_A", f"{stem}.lora_B")
        if all(name in known for name in names):
            return names
    return None


def no_room(place: Path, module: str) -> EdgepackError:
    """The error for an adapter of a weight without such factors."""
    return EdgepackError(
        f"{shorten(str(place), 120)}: {shorten(module, 80)} has no factors in the graph that an "
        "adapter could change",
        hint=WAY_OUT,
    )


def factors_file(model: Path) -> Path | None:
    """The file with a graph's L and R, in its folder or the one above."""
    files = [folder / name for name in (GIVEN, REPLACED) for folder in model.resolve().parents[:2]]
    return next((path for path in files if path.is_file()), None)


def read_arrays(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, by name."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        where = shorten(str(path), 120)  # types that numpy lacks are a LookupError
        raise EdgepackError(f"cannot read {where}: {reason(error)}", hint=AGAIN) from error


def read_factors(path: Path) -> dict[str, Array]:
    """The tensors of either file of factors, by the graph's names."""
    if path.suffix == ".safetensors":
        return read_arrays(path)
    adapters = telemetry.onnxruntime().AdapterFormat
    try:
        found = adapters.read_adapter(str(path)).get_parameters()
    except Exception as error:  # its classes have no common base of their own
        where = shorten(str(path), 120)
        raise EdgepackError(f"cannot read {where}: {reason(error)}", hint=AGAIN) from error
    return {name: np.array(value.numpy()) for name, value in found.items()}


def read_adapter(path: Path) -> dict[str, Pair]:
    """Module → pair, from adapter_model.safetensors with the scale in lora_B."""
    tensors = read_arrays(path)
    modules = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    found = {}
    for module in modules:
        try:
            parts = [tensors[f"{PREFIX}{module}.lora_{part}.weight"] for part in "AB"]
        except KeyError:
            where = shorten(str(path), 120)
            raise EdgepackError(
                f"{where}: has no pair for {shorten(module, 80)}", hint=AGAIN
            ) from None
        found[module] = (parts[0].T, parts[1].T)
    return found


class OnnxAdapters:
    """Adapters for the graph `model`, whose inputs that may be replaced are `names`."""

    def __init__(self, model: Path, names: Collection[str], adapters: Sequence[Path]) -> None:
        path = factors_file(model)
        self._base = read_factors(path) if path else {}
        self._adapters = [read_adapter(path) for path in adapters]
        self._names: dict[str, tuple[str, str]] = {}
        for module in sorted({module for pairs in self._adapters for module in pairs}):
            found = names_of(module, {*names} & {*self._base})
            if found is None:
                raise no_room(model, module)
            self._names[module] = found

    @property
    def count(self) -> int:
        """Number of adapters."""
        return len(self._adapters)

    def values(self, scales: Sequence[float]) -> dict[str, Array]:
        """The graph's factors with the adapters at these scales, as float16, for every weight that
        any of them changes."""
        found: dict[str, Array] = {}
        for module, (A, B) in self._names.items():
            pairs = [
                (a, np.multiply(b, scale, dtype=np.float32))
                for adapter, scale in zip(self._adapters, scales, strict=True)
                for a, b in ([adapter[module]] if scale and module in adapter else [])
            ]
            found[A], found[B] = join((self._base[A], self._base[B]), pairs)
        return found


def join(base: Pair, pairs: Sequence[Pair]) -> Pair:
    """One pair in the type of `base` whose product is the sum of all products, of the least rank:
    where L and R themselves were changed, as fast as before."""
    if not pairs:
        return base
    try:
        A = np.concatenate([base[0], *(A for A, _ in pairs)], axis=1, dtype=np.float32)
        B = np.concatenate([base[1], *(B for _, B in pairs)], axis=0, dtype=np.float32)
        if np.isfinite(A).all() and np.isfinite(B).all():
            A, B = (t.numpy() for t in least_rank(torch.from_numpy(A), torch.from_numpy(B)))
    except ValueError:
        raise EdgepackError(
            "the adapter's shapes are not those of the graph's weights",
            hint="the adapter was made for another model",
        ) from None
    with np.errstate(over="ignore"):
        pair = (A.astype(base[0].dtype), B.astype(base[1].dtype))
    if not all(np.isfinite(part).all() for part in pair):
        raise EdgepackError(
            "the adapter's values do not fit float16 at this scale", hint="choose a smaller scale"
        )
    return pair
