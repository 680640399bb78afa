"""Where tensors are computed: on the CPU, or on an accelerator that torch knows (CUDA, MPS).

Results differ between devices by the rounding of sums, so a device other than the CPU is in the key
of every stage that it computes. Random numbers are drawn on the CPU and sent, so that all devices
draw the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgepack.core import hardware
from edgepack.core.untrusted import quote
from edgepack.errors import RecipeError

CPU = torch.device("cpu")
AUTO = "auto"
NARROW = frozenset({"mps"})
"""Kinds of devices that have no float64."""
COUNTS: Mapping[str, Callable[[], int]] = {
    "cuda": lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0,
    "mps": lambda: int(torch.backends.mps.is_available()),
}
"""Kind of accelerator → how many of it torch can use here. The order is that of `auto`."""


def found() -> list[str]:
    """The kinds of accelerators that torch can use here, the first choice first."""
    return [kind for kind, count in COUNTS.items() if count()]


def choose(name: str, option: str = "--device") -> torch.device:
    """The device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``. `auto` is the first
    of `found`, or the CPU. One that torch does not have here is refused."""
    there = found()
    if name == AUTO:
        return torch.device(there[0] if there else "cpu")
    kind, colon, index = name.partition(":")
    known = kind in COUNTS or name == "cpu"
    if not known or (colon and not (index.isascii() and index.isdecimal() and len(index) < 4)):
        hint = f"write {AUTO}, cpu, {', '.join(COUNTS)}, or cuda:1 for the second one"
        raise RecipeError(f"{option}: {quote(name)} is no device to compute on", hint=hint)
    if name == "cpu":
        return CPU
    count = COUNTS[kind]()
    if int(index or 0) < count:
        return torch.device(name)
    if count:
        hint = f"there {'is one' if count == 1 else f'are {count}'}, counted from {kind}:0"
    else:
        hint = f"torch can use {', '.join(['cpu', *there])} here; pytorch.org says which torch "
        hint += f"has {kind}"
    raise RecipeError(f"{option}: torch {torch.__version__} finds no {name} here", hint=hint)


def keyed(device: torch.device) -> dict[str, str]:
    """What the key of a stage has of its device: nothing of the CPU, of others the kind. Which of
    several cards it was is no matter."""
    return {} if device.type == "cpu" else {"device": device.type}


def described(text: str) -> torch.device:
    """The kind of device that `describe` told of, perhaps on another machine: for keys."""
    kind = text.partition(" ")[0]
    return torch.device(kind) if kind in COUNTS else CPU


def free_memory(device: torch.device) -> int:
    """Bytes of an accelerator that are free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(hardware.available_memory())  # MPS shares that of the machine


def describe(device: torch.device) -> str:
    """The device for people: ``cpu``, ``cuda (NVIDIA L4)``."""
    if device.type != "cuda":
        return device.type
    return f"{device.type} ({torch.cuda.get_device_name(device)})"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given: for clocks."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def precise(device: torch.device) -> torch.device:
    """The device, or the CPU if the device has no float64, which linear algebra takes."""
    return CPU if device.type in NARROW else device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and hardware.multiplies_bfloat16()


def product_type(device: torch.device) -> torch.dtype:
    """The number type of a model's products where rounding is no matter (it writes text, is
    calibrated or trained): bfloat16 where there are instructions for it. Results depend on it, so
    that it belongs to the options of such stages."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def wide(x: Tensor) -> Tensor:
    """x in float64, on its device; on the CPU if the device has no float64."""
    return (x.cpu() if x.device.type in NARROW else x).double()


def back(x: Tensor, like: Tensor) -> Tensor:
    """What was computed from `wide` tensors, of the type and on the device of `like`."""
    return x.to(like.dtype).to(like.device)  # in this order: no float64 arrives there


def moved(value: Any, device: torch.device) -> Any:
    """The tensors of a mapping, list or tuple (or a tensor alone) on a device; all else as it is.
    What lies there already is not copied."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device) for part in value)
    return value
