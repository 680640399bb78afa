"""adapter_config.json of PEFT, as far as all readers of adapters need it: how pairs are scaled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from edgepack.core.untrusted import Untrusted, quote
from edgepack.errors import EdgepackError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OTHER_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Starts of PEFT's initialisers that change the base's weights."""

_Number = Annotated[float, Field(gt=0, le=1e9)]
_Rank = Annotated[int, Field(ge=1, le=1 << 20)]
_Patterns = Annotated[dict[str, _Number], Field(max_length=100_000)]


class PeftConfig(Untrusted):
    """The fields that all readers look at."""

    peft_type: str
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: _Rank = 8
    lora_alpha: _Number = 8
    alpha_pattern: _Patterns | None = None
    use_rslora: bool | None = False
    use_dora: bool | None = False
    layer_replication: Any = None

    def scale(self, module: str, rank: int) -> float:
        """PEFT's scale of a module: alpha / rank, or alpha / √rank with rslora."""
        key = _matching(self.alpha_pattern or {}, module)
        alpha = self.lora_alpha if key is None else (self.alpha_pattern or {})[key]
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matching(patterns: Iterable[str], module: str) -> str | None:
    """The first pattern that PEFT would find for a module: a regular expression for the end of its
    name, at a dot. Those that could take forever to match are refused."""
    for pattern in patterns:
        plain = pattern.replace("\\.", ".").removeprefix("^")
        if re.fullmatch(r"[\w.-]*", plain):
            ends = module == plain or (module.endswith("." + plain) and pattern[:1] != "^")
            if ends:
                return pattern
            continue
        if len(pattern) > 200 or re.search(r"\)[*+{?]", pattern) or _repeats(pattern) > 3:
            raise EdgepackError(
                f"{CONFIG}: alpha_pattern {quote(pattern)} is too complicated",
                hint="name the modules instead",
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except (re.error, OverflowError):
            raise EdgepackError(
                f"{CONFIG}: alpha_pattern {quote(pattern)} is no regular expression",
                hint="name the modules instead",
            ) from None
    return None


def _repeats(pattern: str) -> int:
    return len(re.findall(r"[*+{]", pattern))
