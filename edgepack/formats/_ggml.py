"""ggml's type numbers: those of the ``gguf`` package, and the ones that it lacks.

gguf 0.19 lacks Q2_0 (number 42: 64 columns, 18 bytes), which llama.cpp reads, and the types that
are only proposed for llama.cpp. Importing this module adds them to that package's writer and
reader; a newer gguf is not changed.
"""

from __future__ import annotations

from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

MISSING = {"Q2_0": (42, 64, 18), "IQ2_NL": (43, 32, 10), "IQ3_NL": (44, 32, 14)}
"""Types gguf lacks: number, columns per block, bytes per block (llama.cpp, ``ggml-common.h``; the
last two as in `formats.iq2_nl`)."""


def number(name: str) -> int:
    """A type's number in ``enum ggml_type``, as gguf has it or as it is proposed."""
    known = GGMLQuantizationType._member_map_.get(name)
    return MISSING[name][0] if known is None else int(known.value)


def register() -> None:
    """Add the `MISSING` types to gguf's enum and size table; doing it twice changes nothing."""
    for name, (number, columns, size) in MISSING.items():
        if number not in GGMLQuantizationType._value2member_map_:
            _add_member(GGMLQuantizationType, name, number)
        GGML_QUANT_SIZES.setdefault(GGMLQuantizationType(number), (columns, size))


def _add_member(enum: Any, name: str, number: int) -> None:
    """Do what ``EnumType`` does for a member in a class body; an enum cannot be subclassed."""
    member = int.__new__(enum, number)
    member._name_ = name
    member._value_ = number
    member.__objclass__ = enum
    member._sort_order_ = len(enum._member_names_)
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[number] = member
    type.__setattr__(enum, name, member)


register()

__all__ = ["GGML_QUANT_SIZES", "GGMLQuantizationType", "number", "register"]
