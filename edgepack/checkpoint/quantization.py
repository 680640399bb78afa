"""``quantization_config`` of config.json: the methods that are decoded, and those that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError

KEY = "quantization_config"
DECODED = ("fp8", "fbgemm_fp8", "mxfp4")
"""Methods that are read as they are (`scaled`)."""
FORMATS = ("float-quantized", "naive-quantized", "mxfp4-pack-quantized", "dense")
"""Formats of compressed-tensors that are."""
ALGORITHMS = ("FP8",)
"""Algorithms of ModelOpt that are."""
UNQUANTIZED = "name the unquantized checkpoint that it was made from"
ADVICE = {
    "bitsandbytes": "name the checkpoint without bitsandbytes (often the same name without -bnb); "
    "an adapter that was trained on it fits that one",
    "gguf": "name the .gguf file itself",
}
"""Method → what to do; `UNQUANTIZED` for all others."""

Block = tuple[int, int]


def is_coded(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that weights are codes with scales."""
    return _about(config) is not None


def _about(config: Mapping[str, Any]) -> Any:
    """The settings of the quantization; a multimodal repository may have them in its text part."""
    inner, about = config.get("text_config"), config.get(KEY)
    return inner.get(KEY) if about is None and isinstance(inner, dict) else about


def block_of(config: Mapping[str, Any], place: str) -> Block | None:
    """(rows, columns) that share a scale, if config.json says so. Refuses methods whose codes
    edgepack does not decode."""
    about = _about(config)
    if about is None:
        return None
    about = about if isinstance(about, dict) else {}
    method = about.get("quant_method")
    groups = about.get("config_groups")
    found = [one for one in (groups.values() if isinstance(groups, dict) else ()) if one]
    schemes = [one.get("weights") or {} for one in found if isinstance(one, dict)]
    if method not in DECODED:
        _refuse_format(about, method, found, place)
    given = about.get("weight_block_size") or next(
        (one.get("block_structure") for one in schemes if isinstance(one, dict)), None
    )
    if given is None:
        return None
    whole = isinstance(given, list) and len(given) == 2 and all(type(n) is int for n in given)
    if not whole or min(given) < 1:
        raise CheckpointError(
            f"{place}: config.json: weight_block_size is two positive numbers",
            hint="take the config.json published with the model",
        )
    return given[0], given[1]


def _refuse_format(about: Mapping[str, Any], method: Any, groups: list[Any], place: str) -> None:
    """Refuse what is not decoded, with the format's name where a method has several."""
    what = shorten(method, 40) if isinstance(method, str) else "an unknown method"
    if method == "compressed-tensors":
        formats = {about.get("format"), *(g.get("format") for g in groups if isinstance(g, dict))}
        formats -= {None, "mixed-precision"}
        unknown = sorted(str(one) for one in formats if one not in FORMATS)
        if formats and not unknown:
            return
        what = f"{what} {shorten(', '.join(unknown), 60)}".strip()
    elif method == "modelopt":
        inner = about.get("quantization")
        found = about.get("quant_algo") or (
            inner.get("quant_algo") if isinstance(inner, dict) else None
        )
        if found in ALGORITHMS:
            return
        what = f"{what} {shorten(str(found), 40)}"
    advice = ADVICE.get(str(method), UNQUANTIZED)
    raise CheckpointError(
        f"{place}: the weights are already quantized ({what})",
        hint=f"{advice}; if it is unquantized, remove {KEY} from config.json. Read as they are: "
        "FP8 and MXFP4",
    )
