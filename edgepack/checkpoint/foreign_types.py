"""Numbers of tensor types that stock llama.cpp does not read, and whose they are."""

from __future__ import annotations

PRISM = "of PrismML's llama.cpp"
IK = "of ik_llama.cpp"
REMOVED = "which llama.cpp no longer reads"

FOREIGN = {
    4: f"Q4_2, {REMOVED}",
    5: f"Q4_3, {REMOVED}",
    31: f"Q4_0_4_4, {REMOVED}",
    32: f"Q4_0_4_8, {REMOVED}",
    33: f"Q4_0_8_8, {REMOVED}",
    36: "I2_S of bitnet.cpp, or IQ4_NL_4_4",
    37: f"IQ4_NL_4_8, {REMOVED}",
    38: f"IQ4_NL_8_8, {REMOVED}",
    133: f"Q6_0 {IK}",
    134: f"IQ1_BN {IK}",
    135: f"IQ2_BN {IK}",
    137: f"IQ2_K {IK}",
    138: f"IQ3_K {IK}",
    139: f"IQ4_K {IK}",
    140: f"IQ5_K {IK}",
    141: f"IQ6_K {IK}",
    142: f"PQ2_0 {PRISM}",
    143: f"PTQ1_0 {PRISM}",
    144: f"IQ4_KS {IK}",
    145: f"IQ2_KS {IK}",
    146: f"IQ4_KSS {IK}",
    152: f"IQ5_KS {IK}",
    153: f"IQ2_KT {IK}",
    154: f"IQ3_KT {IK}",
    155: f"IQ4_KT {IK}",
    156: f"IQ3_KS {IK}",
    157: f"IQ2_KL {IK}",
    158: f"IQ1_KT {IK}",
}
"""Number in a file → name and owner. Sources: ggml.h of llama.cpp and of ik_llama.cpp, and
llama.cpp's issue 29058 for 142 and 143."""
HINT = (
    "stock llama.cpp has no such type: take the file of a stock type, or the unquantized model; "
    "with an unknown number, the file may be damaged or newer than this edgepack"
)


def describe(number: int) -> str:
    """What a type's number means to people."""
    return f"{number}, {FOREIGN[number]}" if number in FOREIGN else f"{number}, which is unknown"
