"""Speeds that were predicted for a device, as manifests keep them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgepack.core.untrusted import Untrusted

Count = Annotated[int, Field(ge=1, le=2**60)]
Name = Annotated[str, Field(max_length=200)]
Positive = Annotated[float, Field(gt=0)]

PROMPT = 256
"""Tokens of the prompt that is predicted, as many as `edgepack bench` measures."""


class About(Untrusted):
    """What a device says of itself, as far as it tells."""

    name: Name
    """How edgepack reaches it: ``local``, ``adb``, ``ssh``."""
    model: Name | None = None
    processor: Name | None = None
    machine: Name | None = None
    cores: Count | None = None
    memory: Annotated[int, Field(ge=0)] | None = None
    """Bytes; 0 or nothing where it is not known."""
    emulated: bool | None = None

    def is_same(self, other: About) -> bool:
        """Whether both are the same kind of machine; memory may change with what else runs."""
        keys = ("name", "model", "processor", "machine", "cores")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def __str__(self) -> str:
        words = [self.name, self.model, self.processor, self.machine]
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}" if self.cores else None
        return ", ".join(word for word in (*words, cores) if word)


class Speed(Untrusted):
    """A predicted speed in tokens per second, beside the device's limit."""

    tokens_per_second: Positive
    limit: Positive
    """Decoding: bandwidth / bytes of a token. Prompts: the fastest product of any type."""
    correction: Positive | None
    """measured / predicted of models in the profile; None if it has none to compare with."""
    timings: Annotated[int, Field(ge=0)]
    """How many times of models the correction is the median of."""

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.tokens_per_second / self.limit

    def __str__(self) -> str:
        text = f"{self.tokens_per_second:.1f} tokens/s, {self.share:.0%} of the limit of "
        return f"{text}{self.limit:.1f}"


class Prediction(Untrusted):
    """Speeds of one sequence in an empty context, or the reason why there are none."""

    device: About
    threads: Count
    """The number that decodes fastest there."""
    decode: Speed | None = None
    prompt: Speed | None = None
    """Of `PROMPT` tokens."""
    skipped: str | None = None

    def text(self) -> list[str]:
        """For people, a line each."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [f"predicted for {self.device} with {threads}, the fastest number there:"]
        if self.skipped:
            return [f"nothing is predicted for {self.device}: {self.skipped}"]
        for what, speed in (
            ("decoding", self.decode),
            (f"prompts of {PROMPT} tokens", self.prompt),
        ):
            if speed is not None:
                lines.append(f"{what}: {speed} ({_corrected(speed)})")
        return lines


def _corrected(speed: Speed) -> str:
    if speed.correction is None:
        return "uncorrected: no model was timed so there"
    times = f"{speed.timings} timing{'s' if speed.timings > 1 else ''}"
    return f"× {speed.correction:.2f}, as in {times} of the profile"
