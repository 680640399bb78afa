"""How fast a model will be on a device, from its sizes and the device's profile.

Decoding takes Σ bytes of a type / bytes per second of its product of one column. A prompt of n
tokens takes Σ 2·n·weights / operations per second of its product of many columns, the head one
column. Both are multiplied by measured / predicted of the models in the profile (the median), which
stands for all that is no product: attention, norms, threads that wait for one another.
"""

from __future__ import annotations

from statistics import median

from edgepack.core.speeds import PROMPT, Prediction, Speed
from edgepack.device_profile.profile import DeviceProfile, Kind, Measured, Work


def predict(work: Work, profile: DeviceProfile) -> Prediction:
    """Speeds of a model that asks `work` of the device."""
    device, threads = profile.device, profile.threads
    if untimed := profile.untimed(work.bytes):
        reason = f"the profile did not time {', '.join(untimed)}"
        return Prediction(device=device, threads=threads, skipped=reason)
    bandwidth, flops = (
        profile.ceilings.bandwidth(threads),
        profile.ceilings.flops(threads, work.bytes),
    )
    assert bandwidth is not None
    assert flops is not None
    return Prediction(
        device=device,
        threads=threads,
        decode=_speed("decode", 1, sum(work.bytes.values()) / bandwidth, work, profile),
        prompt=_speed("prompt", PROMPT, (PROMPT * work.flops + work.head) / flops, work, profile),
    )


def _speed(kind: Kind, tokens: int, least: float, work: Work, profile: DeviceProfile) -> Speed:
    """The speed of `tokens` that take `least` seconds at the device's limit."""
    ratios = _ratios(kind, work, profile)
    correction = median(ratios) if ratios else None
    plain = tokens / _seconds(kind, tokens, work, profile)
    return Speed(
        tokens_per_second=plain * (correction or 1),
        limit=tokens / least,
        correction=correction,
        timings=len(ratios),
    )


def _ratios(kind: Kind, work: Work, profile: DeviceProfile) -> list[float]:
    """measured / predicted of the profile's models: of those with factors for a model that has
    some, of those without for others, of all if there are none alike."""
    known = [
        model
        for model in profile.models
        if sum(model.work.bytes.values()) and not profile.untimed(model.work.bytes)
    ]
    alike = [model for model in known if bool(model.work.factor_types) == bool(work.factor_types)]
    return [ratio for model in alike or known for ratio in _ratios_of(kind, model, profile)]


def _ratios_of(kind: Kind, model: Measured, profile: DeviceProfile) -> list[float]:
    """measured / predicted of one model, case by case."""
    return [
        _seconds(kind, timing.case.tokens, model.work, profile)
        / (timing.case.tokens * timing.seconds_per_token)
        for timing in model.timings
        if timing.is_plain(kind) and timing.threads == profile.threads
    ]


def _seconds(kind: Kind, tokens: int, work: Work, profile: DeviceProfile) -> float:
    """Seconds of the products of `tokens`, each type at its own speed."""
    seconds = 0.0
    for name, count in work.bytes.items():
        one, many = profile.product(name), profile.product(name, many=True)
        assert one is not None
        assert many is not None
        if kind == "decode":
            seconds += tokens * count / one.bytes_per_second
            continue
        head = work.head / 2 if name == work.head_type else 0.0
        weights = max(0.0, 8 * count / one.bits_per_weight - head)
        seconds += 2 * tokens * weights / many.flops + head * one.seconds_per_weight
    return seconds
