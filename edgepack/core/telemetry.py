"""No usage data leaves this machine: edgepack has none of its own, and switches off that of the
libraries and programs that it starts."""

from __future__ import annotations

import os
from typing import Any

SWITCHES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and transformers through it
    "DISABLE_TELEMETRY": "1",  # their older name for it
    "DO_NOT_TRACK": "1",  # https://consoledonottrack.com
    "RAY_USAGE_STATS_ENABLED": "0",  # ray
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime since 1.29 (its pull request 27379), and genai
}
"""Variables of the environment, which processes that edgepack starts inherit. Without the last,
``import onnxruntime`` writes an identifier of the device into the user's cache folder and starts a
thread that sends events to its maker; calls of its API come too late for that."""


def switch_off() -> None:
    """Set the switches that are not set; a user's own choice stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def onnxruntime() -> Any:
    """The module ``onnxruntime``, whose events (of Windows' tracing) are off. Raises ImportError
    where it is not installed."""
    import onnxruntime as module

    module.disable_telemetry_events()
    return module
