"""Named devices as data, and devices that `edgepack bench` has measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepack.core.plugins import suggest
from edgepack.core.untrusted import shorten
from edgepack.device_profile.profile import DeviceProfile, read_profile
from edgepack.errors import RecipeError

GB = 10**9
SHARE = 0.425
"""Of a measured device's memory that one app may use: 1.7 of 4 GB. An assumption, since what the
system and other apps take is not known; the recipe says so."""


@dataclass(frozen=True)
class Kernels:
    """Formats of a target on a device, the largest first."""

    fast: tuple[str, ...]
    """Those with fast kernels there."""
    why: str
    """What that is known from."""
    small: tuple[str, ...] = ()
    """Smaller ones that may be slower, for models that do not fit otherwise."""
    profile: Literal["cpu", "mobile", "web"] = "cpu"
    """``export.onnx.profile``."""


@dataclass(frozen=True)
class Device:
    """A kind of device. `usable` are the bytes of memory that an app may take; `context` the tokens
    that a chat should remember; `bits` the bits per weight beyond which files are not worth the
    time that a token takes to read them. The first of `targets` is the usual one."""

    name: str
    title: str
    usable: int
    source: str
    """Where `usable` is from."""
    context: int
    bits: float
    targets: Mapping[str, Kernels]
    profile: DeviceProfile | None = None
    """Its measured speeds, which then decide what is fast."""


SMALL = ("q3_k", "q2_k")
GGUF_FAST = ("q8_0", "q6_k", "q5_k", "q4_k", "iq4_nl", "mxfp4")
REPACKED = Kernels(
    GGUF_FAST, "llama.cpp interleaves their rows for ARM's dot products (repack.cpp)", SMALL
)
ON_X86 = Kernels(
    GGUF_FAST, "no larger type was clearly faster on x86 (docs/bench); ARM has kernels too", SMALL
)
IN_WASM = Kernels(
    ("q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0"),
    "llama.cpp has products for wasm's 128-bit registers (arch/wasm/quants.c)",
    SMALL,
)
ONNX_FAST = ("q8_0", "int4_g32", "q4_0", "int4_g64", "int4_g128")
MAT_MUL = "ONNX Runtime multiplies 4 and 8 bits fast in all versions (docs/onnx.md)"
WHOLE_ROWS = Kernels(
    ("int8",), "wasm has no fast product of 4 bits, but one of 8 (docs/onnx.md)", profile="web"
)

ASSUMED = "assumed: the rest is for the system and other apps"
TAB = "assumed: half of the 4 GB that a page's wasm can address"

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(
            "phone-4gb",
            "a phone with 4 GB of memory",
            usable=int(1.7 * GB),
            source=ASSUMED,
            context=4096,
            bits=5.0,
            targets={"gguf": REPACKED, "onnx": Kernels(ONNX_FAST, MAT_MUL, profile="mobile")},
        ),
        Device(
            "phone-8gb",
            "a phone with 8 GB of memory",
            usable=4 * GB,
            source=ASSUMED,
            context=4096,
            bits=5.0,
            targets={"gguf": REPACKED, "onnx": Kernels(ONNX_FAST, MAT_MUL, profile="mobile")},
        ),
        Device(
            "laptop",
            "a laptop with 16 GB of memory",
            usable=8 * GB,
            source=ASSUMED,
            context=8192,
            bits=6.0,
            targets={"gguf": ON_X86, "onnx": Kernels(ONNX_FAST, MAT_MUL)},
        ),
        Device(
            "browser",
            "a page in a browser, without WebGPU",
            usable=2 * GB,
            source=TAB,
            context=2048,
            bits=8.0,
            targets={"onnx": WHOLE_ROWS, "gguf": IN_WASM},
        ),
    )
}
"""Smallest first; `edgepack init` without --device takes the first that a model fits on."""

HINT = "or give a bench.json, from `edgepack bench FILE.gguf --all-types --device adb --out DIR`"


def find(name: str) -> Device:
    """A named device, or the one whose ``bench.json`` (or the folder of it) is there."""
    if name in DEVICES:
        return DEVICES[name]
    path = Path(name).expanduser()
    if path.exists() or path.suffix == ".json":
        return measured(read_profile(path, "--device"))
    raise RecipeError(
        f"--device: there is no {shorten(name, 80)!r}",
        hint=f"{suggest(name, tuple(DEVICES))}; {HINT}",
    )


def measured(profile: DeviceProfile) -> Device:
    """The device of a profile."""
    memory = profile.device.memory
    if not memory:
        raise RecipeError(
            f"--device: the profile of {profile.device} does not say how much memory it has",
            hint="name a device: " + ", ".join(DEVICES),
        )
    usual = DEVICES["phone-4gb"]
    return Device(
        profile.device.model or profile.device.name,
        str(profile.device),
        usable=int(SHARE * memory),
        source=f"assumed: {SHARE:.1%} of {memory / GB:.2f} GB",
        context=usual.context,
        bits=usual.bits,
        targets={"gguf": Kernels(GGUF_FAST, "no larger type is faster there", SMALL)},
        profile=profile,
    )
