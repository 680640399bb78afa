"""The ways to compile llama.cpp for other machines, and which of them a machine can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.errors import EdgepackError


@dataclass(frozen=True)
class Variant:
    """One way to compile llama.cpp."""

    machine: str
    """As `uname -m` has it."""
    cpu: str
    """In zig's words; llama.cpp uses what this CPU has."""
    features: tuple[str, ...] = ()
    """What the CPU must have, in the words of /proc/cpuinfo."""
    define: str = ""
    """Makes `shared/cpu.cpp` look for these features."""

    @property
    def target(self) -> str:
        """In zig's words; musl, because Android lets apps make the system calls that it makes."""
        return f"{self.machine}-linux-musl"


VARIANTS: Mapping[str, Variant] = {
    "aarch64-dotprod": Variant(
        "aarch64",
        "generic+v8_2a+dotprod+fullfp16",
        ("asimddp", "fphp", "asimdhp"),
        "NEEDS_DOTPROD",
    ),
    "aarch64": Variant("aarch64", "generic"),
    "x86_64-avx2": Variant("x86_64", "x86_64_v3", ("avx2", "fma", "f16c", "bmi2"), "NEEDS_AVX2"),
    "x86_64": Variant("x86_64", "x86_64_v2", ("sse4_2",)),
}
"""By name, those for newer CPUs first. One with i8mm would have to show on a phone that it pays."""


def choose_variant(about: Mapping[str, Any]) -> str:
    """The variant for a device, of what its `describe` says. Where the CPU is emulated its features
    are not known, so that it gets the one that needs least."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(about["machine"], about["machine"])
    features = set(about.get("features", ()))
    for name, variant in VARIANTS.items():
        if variant.machine == machine and features.issuperset(variant.features):
            return name
    machines = ", ".join(sorted({variant.machine for variant in VARIANTS.values()}))
    raise EdgepackError(
        f"there is no worker for {about['machine']}"
        + (" without SSE 4.2" if machine == "x86_64" else ""),
        hint=f"workers are made for Linux and Android on {machines}",
    )
