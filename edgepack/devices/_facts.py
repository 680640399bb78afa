"""What a Linux or Android machine is, and in what condition: asked by a shell script, read here.

The scripts run in any POSIX shell with coreutils, busybox or toybox. They print lines
``key=value``; what a machine lacks or forbids, they leave out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgepack.core.untrusted import whole_number

Lines = Mapping[str, list[str]]
"""Values by key, in the order in which they were printed."""

DESCRIBE = r"""{
echo "machine=$(uname -m)"
echo "system=$(uname -s)"
echo "kernel=$(uname -r)"
echo "cores=$(nproc)"
echo "arch=$(cat /proc/sys/kernel/arch)"
echo "cache=$(cat /sys/devices/system/cpu/cpu0/cache/index*/size | tail -n 1)"
echo "board=$(tr -d '\000' </proc/device-tree/model)"
sed -n 's/^MemTotal: *\([0-9]*\) kB$/memory_kib=\1/p' /proc/meminfo
sed -n -e 's/^model name[^:]*: /processor=/p' -e 's/^Hardware[^:]*: /processor=/p' \
    -e 's/^flags[^:]*: /x86_features=/p' -e 's/^Features[^:]*: /arm_features=/p' /proc/cpuinfo
for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq; do
    echo "khz=$(cat "$file")"
done
if command -v getprop >/dev/null; then
    for key in ro.product.manufacturer ro.product.model ro.soc.manufacturer ro.soc.model \
        ro.board.platform ro.build.version.release ro.build.version.sdk ro.product.cpu.abi \
        ro.kernel.qemu ro.boot.qemu; do
        echo "$key=$(getprop $key)"
    done
fi
} 2>/dev/null; true
"""

CONDITION = r"""{
echo "load=$(cat /proc/loadavg)"
for zone in /sys/class/thermal/thermal_zone*; do
    echo "zone=$(cat "$zone/temp")"
done
for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
    echo "governor=$(cat "$file")"
done
for supply in /sys/class/power_supply/*; do
    [ "$(cat "$supply/type")" = Battery ] || continue
    echo "capacity=$(cat "$supply/capacity")"
    echo "status=$(cat "$supply/status")"
done
if command -v dumpsys >/dev/null; then
    dumpsys battery | sed -n 's/^ *\([^:]*\): \(.*\)$/battery.\1=\2/p'
    dumpsys thermalservice | sed -n 's/^Thermal Status: /thermal_status=/p'
    echo "saver=$(settings get global low_power)"
fi
} 2>/dev/null; true
"""

FAMILIES = {"aarch64": "arm", "arm": "arm", "x86_64": "x86", "amd64": "x86", "i686": "x86"}
"""Kinds of CPU by the beginning of what `uname`, the kernel or Android calls them."""
_LOAD = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_NO_MILLI = 200
"""Zones below this are in °C, the others in thousandths (kernel: sysfs-class-thermal)."""
_HOTTEST = 150.0  # °C; zones that are switched off give anything


def describe(text: str) -> dict[str, Any]:
    """What `DESCRIBE` printed, as JSON.

    `cores`, `memory` in bytes, `machine`, `system`, `kernel`; where known `model`, `processor`, its
    `features` as the kernel names them, `cache` (bytes of the last one), `clusters` (how many
    `cores` have which highest `mhz`); `android` with `release`, `sdk`, `abi` and `platform`.
    `emulated` is true where the processor is not what it seems to be: speeds are then not those of
    a device.
    """
    lines = _lines(text)
    about: dict[str, Any] = {
        "cores": whole_number(_first(lines, "cores")) or 1,
        "memory": _kibibytes(_first(lines, "memory_kib")),
    }
    about |= {key: _first(lines, key) for key in ("machine", "system", "kernel")}
    about |= _known(
        processor=_joined(lines, "ro.soc.manufacturer", "ro.soc.model")
        or _first(lines, "processor"),
        model=_joined(lines, "ro.product.manufacturer", "ro.product.model")
        or _first(lines, "board"),
        features=_first(lines, f"{_family(about['machine'])}_features").split(),
        cache=_kibibytes(_first(lines, "cache").removesuffix("K")),
        clusters=_clusters(lines),
        android=_known(
            release=_first(lines, "ro.build.version.release"),
            sdk=_first(lines, "ro.build.version.sdk"),
            abi=_first(lines, "ro.product.cpu.abi"),
            platform=_first(lines, "ro.board.platform"),
        ),
    )
    return about | {"emulated": _is_emulated(lines)}


def condition(text: str) -> dict[str, Any]:
    """What `CONDITION` printed, as JSON: what `Device.condition` promises, and of Android `saver`
    (whether it saves power), `thermal_status` (0 is none, 3 severe) and `battery_celsius`."""
    lines = _lines(text)
    found: dict[str, Any] = {}
    if load := _LOAD.match(_first(lines, "load")):
        found["load"] = float(load[0])
    if heat := _temperatures(lines):
        found["celsius"] = max(heat)
    if governors := sorted(set(lines.get("governor", ()))):
        found["governor"] = ", ".join(governors)
    if (status := whole_number(_first(lines, "thermal_status"))) is not None:
        found["thermal_status"] = status
    return found | _battery(lines)


def _lines(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if value := value.strip():
            found.setdefault(key, []).append(value)
    return found


def _first(lines: Lines, key: str) -> str:
    return lines.get(key, [""])[0]


def _joined(lines: Lines, *keys: str) -> str:
    return " ".join(filter(None, (_first(lines, key) for key in keys)))


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _kibibytes(text: str) -> int:
    """Bytes; 0 where the number is not known."""
    return (whole_number(text) or 0) << 10


def _clusters(lines: Lines) -> list[dict[str, int]]:
    speeds = map(whole_number, lines.get("khz", ()))
    counts = Counter(khz // 1000 for khz in speeds if khz is not None)
    return [{"cores": counts[mhz], "mhz": mhz} for mhz in sorted(counts)]


def _is_emulated(lines: Lines) -> bool:
    """qemu's user mode shows the files of the real kernel to programs of another machine."""
    names = [_first(lines, key) for key in ("machine", "arch", "ro.product.cpu.abi")]
    families = {_family(name) for name in names if name}
    families |= {kind for kind in ("arm", "x86") if _first(lines, f"{kind}_features")}
    virtual = {_first(lines, "ro.kernel.qemu"), _first(lines, "ro.boot.qemu")}
    return len(families) > 1 or "1" in virtual


def _family(name: str) -> str:
    matches = (family for start, family in FAMILIES.items() if name.startswith(start))
    return next(matches, name)


def _temperatures(lines: Lines) -> list[float]:
    """Of all zones that can be one, in °C."""
    values = map(whole_number, lines.get("zone", ()))
    known = (value for value in values if value is not None)
    degrees = (value if value < _NO_MILLI else value / 1000 for value in known)
    return [value for value in degrees if 0 < value < _HOTTEST]


def _battery(lines: Lines) -> dict[str, Any]:
    """Android's words where it has any, else the kernel's."""
    level = whole_number(_first(lines, "battery.level") or _first(lines, "capacity"))
    if level is None:
        return {}
    found: dict[str, Any] = {"battery": level}
    powered = [values[0] for key, values in lines.items() if key.endswith(" powered")]
    if powered:
        found["charging"] = "true" in powered
    elif status := _first(lines, "status"):
        found["charging"] = status in ("Charging", "Full")
    if (tenths := whole_number(_first(lines, "battery.temperature"))) is not None:
        found["battery_celsius"] = tenths / 10
    if (saver := _first(lines, "saver")) in ("0", "1"):
        found["saver"] = saver == "1"
    return found
