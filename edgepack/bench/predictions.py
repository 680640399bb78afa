"""How good a prediction was: what a folder's manifest predicts, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.bench.results import ModelResult, Timing
from edgepack.core.artifact import MANIFEST, Artifact
from edgepack.core.speeds import PROMPT, About, Prediction, Speed
from edgepack.core.untrusted import validate
from edgepack.devices.base import Device
from edgepack.runtimes.models import Model


def compare_predictions(
    promised: Sequence[Prediction | None],
    results: Sequence[ModelResult],
    device: Mapping[str, Any],
) -> list[str]:
    """A line for each speed that was predicted and measured."""
    lines = []
    for prediction, result in zip(promised, results, strict=True):
        if prediction is None or prediction.skipped:
            continue
        if not prediction.device.is_same(_about(device)):
            lines.append(f"{result.name}: predicted for another device ({prediction.device})")
            continue
        lines += [f"{result.name}, {line}" for line in _compared(prediction, result)]
    return lines


def is_of(prediction: Mapping[str, Any], device: Device) -> bool:
    """Whether a manifest's prediction is of a device."""
    about = _about({"name": device.name, **device.describe()})
    return Prediction.model_validate(prediction).device.is_same(about)


def _about(device: Mapping[str, Any]) -> About:
    return validate(About, device, "what the device says of itself")


def prediction_of(model: Model) -> Prediction | None:
    """That of the output folder which a model is, whole and without more adapters."""
    folder = model.base.parent
    if model.adapters or not (folder / MANIFEST).is_file():
        return None
    artifact = Artifact.read(folder)
    found = artifact.manifest["prediction"]
    if found is None or (model.base, model.adapter) != (artifact.base, artifact.factors):
        return None
    return Prediction.model_validate(found)


def _compared(prediction: Prediction, result: ModelResult) -> list[str]:
    """Predicted beside measured, of decoding and of prompts."""
    lines = []
    for kind, speed in (("decode", prediction.decode), ("prompt", prediction.prompt)):
        timing = _timing(kind, prediction.threads, result)
        if speed is not None and timing is not None:
            lines.append(f"{kind} {timing.case.tokens}: {_difference(speed, prediction, timing)}")
    return lines


def _timing(kind: str, threads: int, result: ModelResult) -> Timing | None:
    """The time of one sequence in an empty context that is most like what was predicted."""
    plain = [
        timing
        for timing in result.timings
        if (timing.case.kind, timing.case.depth, timing.case.batch) == (kind, 0, 1)
    ]
    return min(
        plain,
        key=lambda one: (one.threads != threads, abs(one.case.tokens - PROMPT)),
        default=None,
    )


def _difference(speed: Speed, prediction: Prediction, timing: Timing) -> str:
    """Such as ``predicted 84.1 tokens/s, measured 80.3 (−5 %)``."""
    measured = timing.tokens_per_second
    change = round(100 * (measured / speed.tokens_per_second - 1))
    sign = "−" if change < 0 else "+"
    text = f"predicted {speed.tokens_per_second:.1f} tokens/s, measured {measured:.1f}"
    other = timing.threads != prediction.threads
    threads = f", with {timing.threads} threads, not {prediction.threads}" if other else ""
    return f"{text} ({sign}{abs(change)} %{threads})"
