"""Energy counters of this machine's processor (Linux: RAPL), for whoever may read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Meter = Callable[[], float]
"""Joules since some moment."""

DOMAINS = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"
"""AMD's processors have the same names; parts of a package have one more number."""


def meter(domains: Path = DOMAINS) -> Meter | None:
    """Joules of all packages together; None where the system has no counter or keeps it for
    root (as Linux does since 2020, because of CVE-2020-8694)."""
    counters = [f / "energy_uj" for f in sorted(domains.glob(PACKAGES)) if f.name.count(":") == 1]
    try:
        for counter in counters:
            int(counter.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if not counters:
        return None
    return lambda: sum(int(c.read_text(encoding="ascii")) for c in counters) / 1e6
