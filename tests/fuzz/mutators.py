"""Ways to spoil what a file holds: JSON values, GGUF entries, ONNX graphs, text and bytes.

All chance comes from the `random.Random` that is given, so that an input is its seed.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

OUTSIDE = "../outside"
"""Where a copy of the model lies that nobody may read: beside the folder of the case."""
DEEP = "@deep@"
"""Stands for lists in lists, deeper than anything can be written by recursion."""
DEPTHS = (50, 1_000, 30_000)

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**63), 10**12, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "1", "2.5", "true", "null", "x" * 5_000, "\x00", "a\nb\r\x1b[31mc", "\ud800"),
    *("é", "\u202e\ufeff", "%s{}", "~nobody/x", ".", "..", "/", f"{OUTSIDE}/model.safetensors"),
    *(OUTSIDE, "/etc/hostname", "file:///etc/hostname", "C:\\x", "nul\x00", "-1", "a" * 300),
    *([], {}, [[]], [None], [1, "a"], {"a": 1}, {"": None}, [{}], DEEP),
)


def spoil_json(value: Any, chance: random.Random) -> bytes:
    """A JSON value with one to three things changed, as a file."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        value = spoil(value, chance)
    text = json.dumps(value)
    if DEEP in text:
        depth = chance.choice(DEPTHS)
        opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
        text = text.replace(json.dumps(DEEP), opening * depth + "1" + closing * depth)
    if chance.random() < 0.05:  # a key twice: JSON allows it
        text = text.replace("{", "{" + json.dumps(_a_key(value, chance)) + ": null, ", 1)
    data = text.encode()
    return spoil_bytes(data, chance) if chance.random() < 0.1 else data


def spoil(value: Any, chance: random.Random) -> Any:
    """The value with one node changed, deleted, repeated or added."""
    places = list(_places(value))
    if not places or chance.random() < 0.03:
        return copy.deepcopy(chance.choice(NASTY))
    depth = chance.randint(1, max(len(place) for place in places))
    place = chance.choice([p for p in places if len(p) <= depth])
    parent = value
    for step in place[:-1]:
        parent = parent[step]
    last = place[-1]
    what = chance.random()
    if what < 0.1:
        del parent[last]
    elif what < 0.15 and isinstance(parent, dict):
        parent[str(chance.choice(NASTY))] = parent.pop(last)
    elif what < 0.2 and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent[last]) for _ in range(chance.choice((1, 3))))
    else:
        parent[last] = _changed(parent[last], chance)
    return value


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool) or chance.random() < 0.6:
        return copy.deepcopy(chance.choice(NASTY))
    if isinstance(value, int | float):
        third = value // 3 if isinstance(value, int) else value / 3
        return chance.choice((-value, value + 1, value * 2, 0, value * 1000, third, str(value)))
    if isinstance(value, str) and value:
        at = chance.randrange(len(value))
        return chance.choice(
            (value[:at], value * 2, value.upper(), value[:at] + "\x00" + value[at:], [value])
        )
    if isinstance(value, dict):
        return list(value.items()) if chance.random() < 0.5 else list(value)
    return {str(i): v for i, v in enumerate(value)} if isinstance(value, list) else None


def _places(value: Any, place: tuple[Any, ...] = ()) -> Any:
    """Paths to all nodes below `value`; of long lists some."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, inner in [*items[:40], *items[-3:]]:
        yield (*place, key)
        if len(place) < 6:
            yield from _places(inner, (*place, key))


def _a_key(value: Any, chance: random.Random) -> str:
    return chance.choice(list(value)) if isinstance(value, dict) and value else "a"


def spoil_bytes(data: bytes, chance: random.Random, within: int | None = None) -> bytes:
    """Bytes flipped, cut, repeated or put in, in the first `within` (all of them otherwise)."""
    found = bytearray(data)
    end = min(len(found), within or len(found)) or 1
    kind = chance.random()
    if kind < 0.15:
        return bytes(found[: chance.randrange(end)])
    if kind < 0.2:
        return b""
    if kind < 0.3:
        at = chance.randrange(end)
        junk = chance.choice((b"\x00" * 64, b"\xff" * 8, b"\xef\xbb\xbf", b"[" * 5_000, b"\x1b[2J"))
        found[at:at] = junk
        return bytes(found)
    if kind < 0.4:
        at = chance.randrange(end)
        found[at : at + 8] = chance.choice((2**63, 2**32 - 1, 0, 2**64 - 1)).to_bytes(8, "little")
        return bytes(found)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(end)
        if at < len(found):
            found[at] = chance.randrange(256)
    return bytes(found)


YAML = (
    *("model: !!python/object/apply:os.getcwd []", "model: !!int x", "model: 2020-99-99"),
    *("model: 0x_", "model: !!timestamp x", "? {a: b}\n: c", "<<: [1, 2]", "<<: *none", "&a [*a]"),
    *("model: m\nmodel: n", "compress: &c {rank: 1}\nslice: *c", "\tmodel: m", "model: |\n  m\x00"),
    *("--- a\n--- b", "%YAML 9.9\n--- {}", "!!binary aGk=", "model: !!set {a, b}", "{" * 3_000),
    *(
        "model: .nan",
        "compress: {target_size: .inf}",
        "compress: {target_size: -5GB}",
        "- " * 4_000,
    ),
    "x0: &x0 [x]\n"
    + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 10))
    + "model: *x9",
)


def spoil_yaml(value: Any, chance: random.Random) -> bytes:
    """A recipe: JSON is YAML too; or one of its own traps, alone or behind a good recipe."""
    kind = chance.random()
    if kind < 0.75:
        return spoil_json(value, chance)
    trap = chance.choice(YAML)
    text = trap if kind < 0.9 else json.dumps(value)[1:-1] + "\n" + trap
    return text.encode(errors="surrogatepass")


TEMPLATES = (
    *("{% for i in range(10**12) %}x{% endfor %}", "{{ 'x' * 10**10 }}", "{{ 1 // 0 }}"),
    *("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ ''.__class__.__mro__ }}"),
    *("{% for %}", "{{ messages | nofilter }}", "{{ messages[0] + 1 }}", "{{ messages[99].role }}"),
    *(
        "{% include 'x' %}",
        "{% import '/etc/hostname' as x %}",
        "{% extends x %}",
        "{{ {}['a'].b }}",
    ),
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}",
    "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    *("{{ strftime_now('%' * 9999) }}", "{% generation %}x{% endgeneration %}", "\ud800", "\x00"),
    *(
        "{{ messages | tojson(indent=10**9) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ [1] * 10**9 }}",
    ),
    *("{{ lipsum(10**6) }}", "{{ range(10**9) | list | length }}", "{{ 9**9**9 }}", "{{ cycler }}"),
    *("{{ ('x' * 99999) | wordwrap(1) | indent(9999) }}", "{" * 100_000, "{{ (((((1)))) }}", ""),
    "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
)


def spoil_template(template: str, chance: random.Random) -> str:
    """A Jinja template: cut, with pieces of others put in, or another altogether."""
    kind = chance.random()
    if kind < 0.3:
        return chance.choice(TEMPLATES)
    at = chance.randrange(len(template))
    if kind < 0.6:
        return template[:at] + chance.choice(TEMPLATES) + template[at:]
    if kind < 0.8:
        return template[:at] + template[at + chance.randint(1, 12) :]
    word = chance.choice(("role", "content", "messages", "user", "assistant", "m", "%}", "'"))
    return template.replace(word, str(chance.choice(NASTY)), chance.choice((1, -1)))


def spoil_lines(data: bytes, chance: random.Random) -> bytes:
    """Text of lines with fields, such as CSV or ``key=value``: one field of one line changed."""
    lines = data.decode("utf-8", "replace").split("\n")
    at = chance.randrange(len(lines))
    kind = chance.random()
    if kind < 0.2:
        del lines[at]
    elif kind < 0.3:
        lines.insert(at, lines[at])
    elif kind < 0.4:
        return spoil_bytes(data, chance)
    else:
        sign = chance.choice(("=", ",", " "))
        fields = lines[at].split(sign)
        fields[chance.randrange(len(fields))] = chance.choice(WORDS)
        lines[at] = sign.join(fields)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


WORDS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "99999999999999999999",
        "9" * 5_000,
        "1e999",
        "nan",
        "inf",
        "²",
        "٣",
    ),
    *("0x10", "1_0", "true", "=", ",", '"', "'", "\x00", "\u2028", "\x85", "é", "x" * 5_000, "_"),
)
"""Fields that are numbers to one function and none to another, and ends of lines of all kinds."""
Spoil = Callable[[Any, random.Random], bytes]
