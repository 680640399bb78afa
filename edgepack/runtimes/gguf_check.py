"""Checks of a GGUF file before llama.cpp opens it.

llama.cpp ends the process (GGML_ASSERT, GGML_ABORT) if a GGUF holds something that its own writers
never write. The checks here are common to all architectures. They leave out what llama.cpp itself
refuses with a message, and what only some architectures have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gguf.constants import GGMLQuantizationType as Kind
from gguf.constants import GGUFValueType as Type

from edgepack.checkpoint.gguf_header import GgufHeader, Stored
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError, EdgepackError

HINT = "the file is damaged, or another program wrote what llama.cpp does not take"
MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 512  # LLAMA_MAX_EXPERTS of the oldest version that is supported, and of the newest
UNSIGNED = {Type.UINT8, Type.UINT16, Type.UINT32, Type.UINT64}
WHOLE = {*UNSIGNED, Type.INT8, Type.INT16, Type.INT32, Type.INT64}
NOT_WEIGHTS = {Kind.I8, Kind.I16, Kind.I32, Kind.I64, Kind.F64, Kind.Q8_1, Kind.Q8_K}
"""Types that no matrix product accepts as a weight."""
ROPE_SCALING = ("none", "linear", "yarn", "longrope")
NO_VOCABULARY = ("none", "no_vocab")
VOCABULARIES = ("llama", "gpt2", "gemma4", "bert", "t5", "rwkv", "plamo2")
"""Kinds of vocabulary whose tokens must differ; others are newer than this list."""


class Key(NamedTuple):
    """Requirements of a key's value, if the file has the key."""

    types: frozenset[Type]
    holds: Callable[[Any], bool] = lambda value: True
    expected: str = ""


def _one(*types: Type) -> frozenset[Type]:
    return frozenset(types)


_COUNT = frozenset(UNSIGNED)
_EPSILON = Key(_one(Type.FLOAT32), lambda v: math.isfinite(v) and v >= 0, "a number ≥ 0")
_FINITE = Key(_one(Type.FLOAT32), math.isfinite, "a finite number")

MODEL_KEYS = {
    "block_count": Key(_COUNT, lambda v: 1 <= v <= MAX_BLOCKS, f"1 to {MAX_BLOCKS}"),
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.group_norm_epsilon": _EPSILON,
    "rope.freq_base": _FINITE,
    "rope.scaling.factor": _FINITE,
    "rope.scaling.type": Key(
        _one(Type.STRING), lambda v: v in ROPE_SCALING, f"one of {ROPE_SCALING}"
    ),
}
"""Key, without the architecture's name → requirements."""
ADAPTER_KEYS = {
    "general.type": Key(_one(Type.STRING), lambda v: v == "adapter", '"adapter"'),
    "general.architecture": Key(_one(Type.STRING)),
    "adapter.type": Key(_one(Type.STRING), lambda v: v == "lora", '"lora"'),
    "adapter.lora.alpha": _FINITE,
}


def check_model(path: Path) -> GgufHeader:
    """Refuse a model at which llama.cpp would end the process; returns its header."""
    header = GgufHeader(path)
    architecture = header.metadata.get("general.architecture", ("",))[0]
    if not isinstance(architecture, str):
        raise _wrong(path, "general.architecture", "a text", architecture)
    keys = {f"{architecture}.{key}": expected for key, expected in MODEL_KEYS.items()}
    _check_keys(header, keys)
    _check_experts(header, architecture)
    _check_heads(header, architecture)
    _check_sections(header, architecture)
    _check_vocabulary(header)
    for name, stored in header.tensors.items():
        _check_tensor(path, name, stored)
    return header


HOLDS_FACTORS = "edgepack.holds_factors"
"""Key of an adapter that takes the place of the model's factors, as it is L·R + ΔW."""


def factors_scale(adapters: Iterable[tuple[GgufHeader, float]]) -> float:
    """What scale the model's factors keep beside adapters at their scales: an adapter that is
    L·R + ΔW, at scale s beside 1 − s of the factors, makes L·R + s·ΔW."""
    return 1.0 - sum(scale for header, scale in adapters if HOLDS_FACTORS in header.metadata)


def check_adapter(path: Path, model: GgufHeader) -> GgufHeader:
    """Refuse factors at which llama.cpp would end the process with that model; their header."""
    header = GgufHeader(path)
    _check_keys(header, ADAPTER_KEYS)
    for key in ("adapter.lora.task_name", "adapter.lora.prompt_prefix"):
        _check_keys(header, {key: Key(_one(Type.STRING))})
    for name, (a, b) in _pairs(header).items():
        where = f"the factors of {shorten(name, 80)}"
        if a.kind in NOT_WEIGHTS or b.kind in NOT_WEIGHTS:
            raise _bad(
                path, f"{where} are {a.kind.name} and {b.kind.name}, which nothing multiplies"
            )
        A, B = _matrix(a), _matrix(b)
        if len(A) < 2 or len(B) < 2 or A[:-2] != B[:-2] or A[-2] != B[-1]:
            raise _bad(path, f"{where} have shapes {list(b.shape)} and {list(a.shape)}")
        base = model.tensors.get(name)
        if base is None:
            raise _bad(path, f"{where} have no weight in the model")
        shape = (*A[:-2], B[-2], A[-1])
        if name != "token_embd.weight" and _matrix(base) != shape:  # stored transposed
            raise _bad(path, f"{where} are for a weight {list(shape)}, of another model")
    return header


def _matrix(stored: Stored) -> tuple[int, ...]:
    """The shape without leading ones: a matrix, or several in one (experts)."""
    shape = stored.shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _pairs(header: GgufHeader) -> dict[str, tuple[Stored, Stored]]:
    """Weight → its factors lora_a and lora_b."""
    halves: dict[str, dict[str, Stored]] = {}
    for name, stored in header.tensors.items():
        weight, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            raise _bad(header.path, f"{shorten(name, 80)} is no factor lora_a or lora_b")
        if 0 in stored.shape:
            raise _bad(header.path, f"{shorten(name, 80)} is empty")
        halves.setdefault(weight, {})[part] = stored
    if not halves:
        raise _bad(header.path, "has no factors")
    for weight, parts in halves.items():
        if len(parts) < 2:
            raise _bad(header.path, f"{shorten(weight, 80)} has one factor only")
    return {weight: (parts["lora_a"], parts["lora_b"]) for weight, parts in halves.items()}


def _check_keys(header: GgufHeader, keys: dict[str, Key]) -> None:
    for name, expected in keys.items():
        if name not in header.metadata:
            continue
        value, kind, _ = header.metadata[name]
        if kind not in expected.types:
            names = " or ".join(sorted(t.name.lower() for t in expected.types))
            raise _wrong(header.path, name, names, f"{kind.name.lower()} {quote(value)}")
        if not expected.holds(value):
            raise _wrong(header.path, name, expected.expected, quote(value))


def _number(header: GgufHeader, key: str) -> int:
    """A count; 0 if the file does not have it, or not as a number."""
    value = header.metadata.get(key, (0,))[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _check_experts(header: GgufHeader, architecture: str) -> None:
    experts = _number(header, f"{architecture}.expert_count")
    used = _number(header, f"{architecture}.expert_used_count")
    if experts > MAX_EXPERTS or used > experts or (experts > 0 and used < 1):
        raise _wrong(header.path, "expert_used_count", "1 to expert_count", f"{used} of {experts}")


def _check_heads(header: GgufHeader, architecture: str) -> None:
    """Check that every block with queries has keys; other blocks of mixed models have neither."""
    key = f"{architecture}.attention.head_count_kv"
    value: Any = header.metadata.get(key, ([],))[0]
    for block, heads in enumerate(value if isinstance(value, list) else []):
        if heads == 0 and f"blk.{block}.attn_q.weight" in header.tensors:
            raise _wrong(header.path, key, "no 0", f"0 in block {block}")


def _check_sections(header: GgufHeader, architecture: str) -> None:
    """Check that the sections of rotary positions fit into a head."""
    key = f"{architecture}.rope.dimension_sections"
    value: Any = header.metadata.get(key, ([],))[0]
    heads = max(1, _number(header, f"{architecture}.attention.head_count"))
    width = _number(header, f"{architecture}.attention.key_length")
    width = width or _number(header, f"{architecture}.embedding_length") // heads
    sections = [n for n in value if isinstance(n, int)] if isinstance(value, list) else []
    if sum(sections) > width:
        raise _wrong(header.path, key, f"at most {width} together", quote(value))


def cache_bytes(header: GgufHeader) -> int:
    """Least bytes of keys and values per token of context, as float16."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture", ("",))[0]
    heads = max(1, _number(header, f"{architecture}.attention.head_count"))
    wide = _number(header, f"{architecture}.embedding_length") // heads
    keys = _number(header, f"{architecture}.attention.key_length") or wide
    values = _number(header, f"{architecture}.attention.value_length") or wide
    blocks = _number(header, f"{architecture}.block_count")
    found = metadata.get(f"{architecture}.attention.head_count_kv", (heads,))[0]
    groups = found if isinstance(found, list) else [found] * min(blocks, MAX_BLOCKS)
    mixed = (f"{architecture}.attention.sliding_window", f"{architecture}.ssm.state_size")
    if any(_number(header, key) for key in mixed):  # most blocks may keep little of the past
        groups = groups[:1]
    return 2 * sum(one for one in groups if isinstance(one, int)) * (keys + values)


def _check_vocabulary(header: GgufHeader) -> None:
    """Check that every token occurs once, and that lists about tokens have their length."""
    metadata, path = header.metadata, header.path
    model = metadata.get("tokenizer.ggml.model", ("",))[0]
    if model in NO_VOCABULARY:
        raise _bad(path, "has no vocabulary")
    if model not in VOCABULARIES:
        return
    tokens, kind, element = metadata.get("tokenizer.ggml.tokens", ([], Type.ARRAY, Type.STRING))
    if kind != Type.ARRAY or element != Type.STRING or not tokens:
        raise _wrong(path, "tokenizer.ggml.tokens", "a list of texts", quote(tokens))
    if (double := _twice(tokens)) is not None:
        raise _bad(path, f"tokenizer.ggml.tokens: {quote(double)} is there twice")
    for key, types in (
        ("scores", {Type.FLOAT32, Type.INT32, Type.UINT32}),
        ("token_type", {Type.INT32, Type.UINT32}),
    ):
        name = f"tokenizer.ggml.{key}"
        values, kind, element = metadata.get(name, (tokens, Type.ARRAY, next(iter(types))))
        if kind != Type.ARRAY or element not in types or len(values) < len(tokens):
            raise _wrong(path, name, f"{len(tokens)} numbers of 32 bits", quote(values))
    if not isinstance(metadata.get("tokenizer.chat_template", ("",))[0], str):
        raise _wrong(path, "tokenizer.chat_template", "a text", "something else")


def _twice(tokens: Iterable[str]) -> str | None:
    """The first token that occurs a second time. In llama.cpp tokens end at a NUL, and empty ones
    get names of their own."""
    seen: set[str] = set()
    for token in tokens:
        text = token.partition("\0")[0]
        if text and text in seen:
            return text
        seen.add(text)
    return None


class Encodable(NamedTuple):
    """The characters that a sentencepiece vocabulary can encode. llama.cpp ends the process at a
    character if neither it nor its bytes are tokens; `missing` are bytes without a token."""

    characters: frozenset[str] = frozenset()
    missing: frozenset[int] = frozenset()

    def check(self, text: str) -> None:
        """Refuse a text that would end the process."""
        if not self.missing:
            return
        for character in sorted(set(text) - self.characters):
            if self.missing & set(character.encode("utf-8", "replace")):
                raise EdgepackError(
                    f"the model has no token for {quote(character)}, nor for its bytes",
                    hint="take another text",
                )


def read_encodable(header: GgufHeader) -> Encodable:
    """The characters that a model's vocabulary can encode; all of them if not sentencepiece."""
    if header.metadata.get("tokenizer.ggml.model", ("",))[0] != "llama":
        return Encodable()
    tokens = set(header.metadata.get("tokenizer.ggml.tokens", ([],))[0])
    missing = frozenset(b for b in range(256) if not {f"<0x{b:02X}>", chr(b)} & tokens)
    characters = {token.replace("▁", " ") for token in tokens if len(token) == 1}
    return Encodable(frozenset(characters), missing)


def _check_tensor(path: Path, name: str, stored: Stored) -> None:
    """Check the sizes of a tensor, and that operators have kernels for its type."""
    if 0 in stored.shape or len(stored.shape) > 4:
        raise _bad(path, f"{shorten(name, 80)} has the shape {list(stored.shape)}")
    vector = sum(size > 1 for size in stored.shape) < 2
    if vector and name.endswith(("norm.weight", ".bias")) and stored.kind != Kind.F32:
        kind = stored.kind.name
        raise _bad(path, f"{shorten(name, 80)} is {kind}; llama.cpp takes norms and biases as F32")
    if not vector and name.endswith(".weight") and stored.kind in NOT_WEIGHTS:
        raise _bad(path, f"{shorten(name, 80)} is {stored.kind.name}, which nothing multiplies")


def _wrong(path: Path, key: str, expected: str, value: object) -> CheckpointError:
    return _bad(path, f"{shorten(key, 80)} should be {expected}, not {shorten(str(value), 80)}")


def _bad(path: Path, message: str) -> CheckpointError:
    return CheckpointError(f"{shorten(path.name, 80)}: {message}", hint=HINT)
