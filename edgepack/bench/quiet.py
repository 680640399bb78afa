"""Whether the machine had other things to do while it was measured, and grew slower."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from edgepack.bench.results import ModelResult, Quiet
from edgepack.bench.statistics import change, spread
from edgepack.devices.base import Device

BUSY = 0.05
"""Share of all processor time from which others are said to disturb."""
SLOWER = 0.07
"""Additional time of the last third of the rounds from which a device is said to throttle."""
WIDE = 0.05
"""Half of the middle half of a case's times, as a share, from which they are said to vary."""
IDLE = ("idle", "iowait", "guest", "guest_nice", "steal")
"""Times of ``/proc/stat`` in which no program ran, or that are counted elsewhere, too."""


class Watch:
    """Notes the state of a device before and after, and what others did on it meanwhile."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before = device.condition()
        self._start, self._times = time.monotonic(), psutil.cpu_times()
        self._own = time.process_time()

    def end(self, spent: float) -> Quiet:
        """What is known at the end; `spent` is the processor time of the workers, in seconds."""
        after = self._device.condition()
        if self._device.name != "local":
            return Quiet(before=self._before, after=after)
        now = psutil.cpu_times()
        whole = (time.monotonic() - self._start) * (psutil.cpu_count() or 1)
        busy = _busy(now) - _busy(self._times)
        others = busy - spent - (time.process_time() - self._own)
        stolen = getattr(now, "steal", 0.0) - getattr(self._times, "steal", 0.0)
        return Quiet(
            others=max(0.0, others / whole),
            stolen=max(0.0, stolen / whole),
            before=self._before,
            after=after,
        )


def _busy(times: Any) -> float:
    return float(sum(value for name, value in times._asdict().items() if name not in IDLE))


def remarks(models: Sequence[ModelResult], quiet: Quiet, device: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before trusting the numbers."""
    found = []
    if device.get("emulated"):
        found.append("emulated: these are no speeds of a device")
    if quiet.before.get("saver") or quiet.after.get("saver"):
        found.append("the device saves power: switch the battery saver off and measure again")
    if quiet.others is not None and quiet.others > BUSY:
        found.append(
            f"the machine was not quiet: others took {quiet.others:.0%} of its processor time"
        )
    if quiet.stolen is not None and quiet.stolen > BUSY:
        found.append(f"the machine is virtual and was denied {quiet.stolen:.0%} of its time")
    series = [timing.seconds for model in models for timing in model.timings]
    slower = change(series) if len(series[0]) >= 3 else 0.0
    if slower > SLOWER:
        found.append(
            f"speed fell by {1 - 1 / (1 + slower):.0%} from the first rounds to the last: the "
            "device throttles, or something else began to run"
        )
    wide = [timing for model in models for timing in model.timings if spread(timing.seconds) > WIDE]
    if wide:
        found.append(
            f"{len(wide)} of {len(series)} times vary by more than ± {WIDE:.0%} between rounds: "
            "trust the ratios, not the speeds"
        )
    return found
