"""GGUF files and ONNX graphs with one thing wrong in them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType

from edgepack.checkpoint.gguf_header import SCALARS, GgufHeader
from tests.fuzz.mutators import NASTY, OUTSIDE, spoil_bytes, spoil_json

V = GGUFValueType
ALIGNMENT = 32
NOT_UTF8 = "@not UTF-8@"


@dataclass
class Gguf:
    """A GGUF file in pieces that can be spoiled: entries (key, type, value, element type), tensors
    (name, dimensions, type, bytes)."""

    entries: list[list[Any]]
    tensors: list[list[Any]]

    @staticmethod
    def read(path: Path) -> Gguf:
        """Of a file that is whole."""
        header = GgufHeader(path)
        entries = [[key, *entry] for key, entry in header.metadata.items()]
        tensors = [
            [t.name, [int(n) for n in t.shape], int(t.tensor_type), t.data.tobytes()]
            for t in GGUFReader(path).tensors
        ]
        return Gguf([[k, kind, v, e] for k, v, kind, e in entries], tensors)

    def to_bytes(
        self,
        version: int = 3,
        counts: tuple[int, int] | None = None,
        offsets: Mapping[int, int] | None = None,
    ) -> bytes:
        """The file; a header may say other `counts` of tensors and keys, and other `offsets` of
        tensors by their index."""
        tensors, keys = counts or (len(self.tensors), len(self.entries))
        head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
        head += b"".join(_entry(*entry) for entry in self.entries)
        at, data = 0, b""
        for index, (name, dims, kind, content) in enumerate(self.tensors):
            head += _text(name) + struct.pack("<I", len(dims))
            head += b"".join(struct.pack("<Q", n % 2**64) for n in dims)
            head += struct.pack("<IQ", kind % 2**32, (offsets or {}).get(index, at) % 2**64)
            content += bytes(-len(content) % ALIGNMENT)
            data, at = data + content, at + len(content)
        return head + bytes(-len(head) % ALIGNMENT) + data


def spoil_gguf(file: Gguf, chance: random.Random) -> bytes:
    """The file with one entry or one tensor's description changed."""
    entries, tensors = [list(e) for e in file.entries], [list(t) for t in file.tensors]
    offsets: dict[int, int] = {}
    if chance.random() < 0.75:
        _spoil_entry(entries, chance)
    else:
        offsets = _spoil_tensor(tensors, chance)
    counts = [len(tensors), len(entries)]
    if chance.random() < 0.03:
        counts[chance.randrange(2)] = chance.choice((0, 2**40, 2**64 - 1, 3))
    version = chance.choice((3,) * 30 + (0, 1, 2, 4))
    return Gguf(entries, tensors).to_bytes(version, (counts[0], counts[1]), offsets)


def _spoil_entry(entries: list[list[Any]], chance: random.Random) -> None:
    at = chance.randrange(len(entries))
    key, kind, value, _ = entries[at]
    what = chance.random()
    if what < 0.12:
        del entries[at]
    elif what < 0.16:
        entries.append(list(entries[at]))
    elif what < 0.2:
        entries[at][0] = chance.choice((key + ".x", "", "\x00", "x" * 70_000, key.upper()))
    elif what < 0.3 and kind == V.ARRAY and value:
        spoiled = list(value)
        for _ in range(chance.choice((1, 5))):
            spoiled[chance.randrange(len(spoiled))] = spoiled[chance.randrange(len(spoiled))]
        entries[at][2] = chance.choice((spoiled, spoiled[:-1], spoiled[:1], [], spoiled * 2))
    elif what < 0.5 and kind in SCALARS:
        entries[at][2] = _number(kind, chance)
    else:
        new = chance.choice((*SCALARS, V.STRING, V.STRING, V.ARRAY, V.ARRAY))
        if new == V.ARRAY:
            inner = chance.choice((V.STRING, V.INT32, V.FLOAT32, V.BOOL, V.UINT8))
            some = [_value(inner, chance) for _ in range(chance.choice((0, 1, 3)))]
            entries[at][1:] = [new, some, inner]
        else:
            entries[at][1:] = [new, _value(new, chance), None]


def _value(kind: GGUFValueType, chance: random.Random) -> Any:
    if kind == V.STRING:
        texts = [x for x in NASTY if isinstance(x, str)]
        return chance.choice([*texts, "llama", "gpt2", NOT_UTF8])
    return _number(kind, chance)


def _number(kind: GGUFValueType, chance: random.Random) -> Any:
    code = SCALARS[kind]
    if code == "?":
        return chance.random() < 0.5
    if "f" in code:
        return chance.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 3.0, 1e-5))
    bits = 8 * int(code[-1])
    top = 2 ** (bits - ("i" in code)) - 1
    return min(top, chance.choice((0, 1, 2, 3, 7, 64, 1000, 10**6, 2**31, 2**32 - 1, top)))


def _spoil_tensor(tensors: list[list[Any]], chance: random.Random) -> dict[int, int]:
    """Change a tensor's description; the offsets that are wrong."""
    at = chance.randrange(len(tensors))
    name, dims, kind, _ = tensors[at]
    what = chance.randrange(7)
    if what == 0:
        del tensors[at]
    elif what == 1:
        tensors.append(list(tensors[at]))
    elif what == 2:
        tensors[at][0] = chance.choice(("", "\x00", name + "x", "x" * 300, "token_embd.weight"))
    elif what == 3:
        wrong = chance.choice((0, 1, dims[0] + 1, 2 * dims[0], 2**31, 2**62, 2**64 - 1))
        tensors[at][1] = [wrong, *dims[1:]]
    elif what == 4:
        tensors[at][1] = chance.choice((dims[::-1], [*dims, 1], [*dims, 0], dims[:-1], [], [1] * 9))
    elif what == 5:
        tensors[at][2] = chance.choice((0, 1, 2, 8, 30, 39, 255, 2**31, (kind + 1) % 30))
    else:
        return {at: chance.choice((1, 7, 32, 2**40, 2**63, 2**64 - 32))}
    return {}


def _text(value: str) -> bytes:
    data = b"\xff\xfe" if value == NOT_UTF8 else value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, kind: int, value: Any, element: int | None) -> bytes:
    head = _text(key) + struct.pack("<I", kind)
    if kind != V.ARRAY:
        return head + _scalar(kind, value)
    assert element is not None
    body = b"".join(_scalar(element, inner) for inner in value)
    return head + struct.pack("<IQ", element, len(value)) + body


CODES: Mapping[str, str] = {
    "<u1": "<B",
    "<i1": "<b",
    "<u2": "<H",
    "<i2": "<h",
    "<u4": "<I",
    "<i4": "<i",
    "<f4": "<f",
    "?": "<?",
    "<u8": "<Q",
    "<i8": "<q",
    "<f8": "<d",
}


def _scalar(kind: int, value: Any) -> bytes:
    if kind == V.STRING:
        return _text(value)
    return struct.pack(CODES[SCALARS[GGUFValueType(kind)]], value)


# ---------------------------------------------------------------------------- ONNX


def spoil_onnx(data: bytes, chance: random.Random) -> bytes:
    """A graph with one field changed, or its bytes."""
    if chance.random() < 0.3:
        return spoil_bytes(data, chance)
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    what = chance.randrange(9)
    node = chance.choice(graph.node)
    tensor = chance.choice(graph.initializer)
    if what == 0:
        node.op_type = chance.choice(("", "Nothing", "Loop", "MatMul", "x" * 9999))
    elif what == 1 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice(("", "none", node.name))
    elif what == 2 and node.attribute:
        _spoil_attribute(chance.choice(node.attribute), chance)
    elif what == 3:
        graph.node.remove(node)
    elif what == 4:
        sizes = [chance.choice((0, -1, 1, 2**40, 2**62)) for _ in range(chance.choice((0, 1, 2)))]
        del tensor.dims[:]
        tensor.dims.extend(sizes)
    elif what == 5:
        tensor.data_type = chance.choice((0, 1, 2, 7, 8, 10, 16, 99))
    elif what == 6:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = chance.choice((f"{OUTSIDE}/data", "/etc/hostname", "", "none", "."))
            else:
                entry.value = chance.choice(("-1", "0", str(2**63), "x", ""))
    elif what == 7:
        model.opset_import[0].version = chance.choice((0, -1, 1, 9999))
        model.ir_version = chance.choice((0, 3, 9, 99))
    else:
        _spoil_input(chance.choice([*graph.input, *graph.output]), chance)
    return bytes(model.SerializeToString())


def spoil_metadata(data: bytes, chance: random.Random) -> bytes:
    """A graph whose description of its weights is changed."""
    import onnx

    model = onnx.load_model_from_string(data)
    entry = model.metadata_props[0]
    changed = spoil_json(json.loads(entry.value), chance)
    entry.value = changed.decode("utf-8", "replace")
    return bytes(model.SerializeToString())


def _spoil_attribute(attribute: Any, chance: random.Random) -> None:
    if attribute.ints:
        attribute.ints[0] = chance.choice((-1, 0, 2**40))
    attribute.i = chance.choice((-1, 0, 1, 3, 2**31, 2**62))
    attribute.f = chance.choice((-1.0, float("nan"), 0.0))
    if chance.random() < 0.2:
        attribute.type = chance.choice((1, 2, 3, 7))


def _spoil_input(value: Any, chance: random.Random) -> None:
    if chance.random() < 0.4:
        value.name = chance.choice(("", "input_ids", "logits", "x", "past_key_values.x"))
    elif value.type.tensor_type.shape.dim:
        dim = chance.choice(value.type.tensor_type.shape.dim)
        dim.dim_value = chance.choice((0, -1, 3, 2**40))
    else:
        value.type.tensor_type.elem_type = chance.choice((1, 7, 8, 10))
