"""What this machine is, and how it is now, as a page is told."""

from __future__ import annotations

import platform
from typing import Any

import psutil

from edgepack.core.hardware import available_memory
from edgepack.devices.local import Local

NEAR = 0.98
"""Share of the temperature at which a processor protects itself that counts as severe."""


def describe() -> dict[str, Any]:
    """For `hello`; memory is what this process may use."""
    about = Local().describe()
    name = about["processor"] or platform.machine()
    return {"name": name, "cores": about["cores"], "memory": available_memory()}


def condition() -> dict[str, Any]:
    """For `device`: battery, heat, free memory."""
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    return {
        "battery": None if battery is None else round(battery.percent / 100, 2),
        "charging": battery is None or bool(battery.power_plugged),
        "thermal": _thermal(),
        "memory_free": psutil.virtual_memory().available,
    }


def _thermal() -> str | None:
    """How near sensors are to what their makers call high and critical; None where none says."""
    read = getattr(psutil, "sensors_temperatures", dict)  # macOS and Windows have none
    sensors: dict[str, Any] = read()
    every = [one for group in sensors.values() for one in group if one.current and one.high]
    if not every:
        return None
    if any(one.critical and one.current >= NEAR * one.critical for one in every):
        return "severe"
    return "moderate" if any(one.current >= one.high for one in every) else "none"
