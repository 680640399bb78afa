"""A device of torch that is not the CPU and computes on it: `PRETEND`.

It is torch's key for backends of others (PrivateUse1), with tensors that wrap one of the CPU. Each
operation is done by the CPU's own kernel, so results are bit for bit those of the CPU, and what
depends on data runs. As on a real device, an operation on tensors of both devices is an error, and
there is no numpy(). With `narrow`, it has no float64 either, as MPS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

from edgepack.core import accelerator

NAME = "pretend"
MOVES = {"copy_", "_to_copy", "_copy_from", "_local_scalar_dense"}
"""What may see tensors of two devices, or leave this one."""
FACTORIES = {"device", "pin_memory", "layout"}
"""Arguments that say where a tensor is made."""
CALLS: Counter[str] = Counter()
"""Operations done on the device, by name."""


class Wrapped(torch.Tensor):
    """A tensor on the device; `raw` holds its values."""

    raw: torch.Tensor
    no_float64 = False

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Wrapped:
        if cls.no_float64 and raw.dtype == torch.float64:
            raise TypeError("this device has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    def tolist(self) -> Any:  # which torch leaves to the tensor itself
        return self.raw.tolist()

    def __repr__(self) -> str:
        return f"Wrapped({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, *args, **(kwargs or {}))


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation of the device."""
    name = op.overloadpacket.__name__
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    CALLS[name] += 1
    if name not in MOVES:
        for tensor in tensors:
            if not isinstance(tensor, Wrapped) and tensor.dim():
                raise RuntimeError(f"{name}: tensors on {NAME} and on the {tensor.device}")
    there = torch.device(kwargs["device"] or "cpu") if "device" in kwargs else PRETEND
    given = {k: v for k, v in kwargs.items() if k not in FACTORIES}
    raw_args, raw_kwargs = tree_map(_raw, (args, given))
    found = op(*raw_args, **raw_kwargs)
    if there.type != NAME:
        return found
    kept = {id(tensor.raw): tensor for tensor in tensors if isinstance(tensor, Wrapped)}
    return tree_map(lambda value: _wrapped(value, kept), found)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, Wrapped) else value


def _wrapped(value: Any, kept: dict[int, Wrapped]) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return kept.get(id(value)) if id(value) in kept else Wrapped(value)


PRETEND = torch.device("privateuseone", 0)  # its name until `register`
_KEPT: list[Any] = []


def register() -> None:
    """Make the device, once in a process and before anything else: autograd counts the devices when
    it runs first, and a process whose devices it has given threads can fork no more."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(compute, "PrivateUse1")
    _KEPT.append(library)


@contextmanager
def narrow() -> Iterator[torch.device]:
    """The device without float64."""
    known = accelerator.NARROW
    Wrapped.no_float64, accelerator.NARROW = True, frozenset({NAME})
    try:
        yield PRETEND
    finally:
        Wrapped.no_float64, accelerator.NARROW = False, known
