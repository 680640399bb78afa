"""Energy counters of this machine's processor (Linux: RAPL), for whoever may read them."""

from __future__ import annotations

from pathlib import Path

DOMAINS = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"
"""AMD's processors have the same names; parts of a package have one more number."""


class Counter:
    """One package's counter, which begins again at 0 after its range."""

    def __init__(self, domain: Path) -> None:
        self._file = domain / "energy_uj"
        self._range = int((domain / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last, self._total = self._read(), 0

    def _read(self) -> int:
        return int(self._file.read_text(encoding="ascii"))

    def joules(self) -> float:
        """Since it was made; to be asked at least once in its range (minutes)."""
        now = self._read()
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6


class Meter:
    """All packages together."""

    def __init__(self, counters: list[Counter]) -> None:
        self._counters = counters

    def joules(self) -> float:
        """Since it was made."""
        return sum(counter.joules() for counter in self._counters)


def meter(domains: Path = DOMAINS) -> Meter | None:
    """None where the system has no counter, or keeps it for root (as Linux does since 2020, because
    of CVE-2020-8694)."""
    packages = [domain for domain in sorted(domains.glob(PACKAGES)) if domain.name.count(":") == 1]
    try:
        counters = [Counter(package) for package in packages]
    except (OSError, ValueError):
        return None
    return Meter(counters) if counters else None
