"""YAML of strangers as plain values: text, numbers, booleans, lists and mappings.

PyYAML builds the whole document before anybody can look at it, follows aliases of aliases without
an end, keeps the last of two equal keys, and its constructors fail on values such as ``0x_``. Here
every bound is checked while the nodes are read, and every error names its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from yaml.events import AliasEvent

from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
"""Values in a document, with what aliases repeat counted every time."""
MAX_DEPTH = 40

HINT = "write text, numbers, lists and mappings; `edgepack init` writes a recipe to start from"
_TAG = "tag:yaml.org,2002:"

_NUMBERS = {"int", "float", "bool", "null"}
_TAGS = {"str", "seq", "map", *_NUMBERS}
"""Tags that a document may write itself."""
_FAULTS = (ValueError, LookupError, ArithmeticError, AttributeError, TypeError)
"""What PyYAML's scanner and constructors raise besides their own errors."""


def parse(text: str, place: str) -> Any:
    """The value of a YAML text; `place` names its file in errors."""
    return _parse(text, place, _Loader.single)


def parse_all(text: str, place: str) -> list[Any]:
    """The values of the documents of a YAML text, empty ones left out."""
    found: list[Any] = _parse(text, place, _Loader.documents)
    return found


def _parse(text: str, place: str, read: Callable[[_Loader], Any]) -> Any:
    loader = _Loader(text, place)
    try:
        return read(loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise RecipeError(f"{place}: is not valid YAML{line}", hint=HINT) from None
    except _FAULTS:  # such as an escape beyond Unicode
        line = f" (line {loader.line + 1})"
        raise RecipeError(f"{place}: is not valid YAML{line}", hint=HINT) from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Nodes with bounds on their number and depth. Values are made by `value` alone."""

    def __init__(self, text: str, place: str) -> None:
        self.place, self.depth, self.count = place, 0, 0
        self.sizes: dict[int, int] = {}  # by id of a node that is whole; the anchors keep it alive
        try:
            super().__init__(text)
        except yaml.YAMLError:  # the reader's first look at the text
            raise RecipeError(
                f"{place}: has a control character, which YAML forbids", hint=HINT
            ) from None

    def single(self) -> Any:
        """The value of the only document."""
        node = self.get_single_node()
        return None if node is None else self.value(node)

    def documents(self) -> list[Any]:
        """The values of all documents but empty ones. Their nodes are kept until the end, because
        `sizes` knows them by id."""
        nodes = []
        while self.check_node():
            node = self.get_node()
            assert node is not None, "check_node says that there is one"
            nodes.append(node)
        values = [self.value(node) for node in nodes]
        return [value for value in values if value is not None]

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, counted; an alias counts as much as what it repeats."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent):
            target = self.anchors.get(event.anchor)
            if target is not None and id(target) not in self.sizes:
                raise self.error(event, f"*{event.anchor} repeats what it is part of")
            self._add(event, self.sizes.get(id(target), 0))
            return super().compose_node(parent, index)
        self._add(event, 1)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag.removeprefix(_TAG) not in _TAGS:
            raise self.error(event, f"the tag {quote(tag)} has no meaning here")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(event, "is nested too deeply")
        before = self.count
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.sizes[id(node)] = self.count - before + 1
        return node

    def _add(self, event: Any, count: int) -> None:
        self.count += count
        if self.count > MAX_NODES:
            raise self.error(event, f"has more than {MAX_NODES} values")

    def value(self, node: yaml.Node) -> Any:
        """A node as a plain value; its depth and size are bounded already."""
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child) for child in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in seen:
                raise self.error(key_node, f"{quote(key)} is there twice")
            seen.add(key)
            if key_node.tag == f"{_TAG}merge":
                merged = self._merged(value_node)
            else:
                own[key] = self.value(value_node)
        return {**merged, **own}

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == f"{_TAG}null":
            raise self.error(node, "a key is not text")
        return str(node.value)

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        """What ``<<`` takes from other mappings; the first of several wins."""
        values = self.value(node)
        several = values if isinstance(values, list) else [values]
        if not all(isinstance(value, dict) for value in several):
            raise self.error(node, "<< takes mappings only")
        return {key: value for one in reversed(several) for key, value in one.items()}

    def _scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind not in _NUMBERS:
            return str(node.value)
        implied = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        if implied != node.tag and not (kind == "float" and implied == f"{_TAG}int"):
            raise self.error(node, f"{quote(node.value)} is no {kind}")
        try:
            return getattr(self, f"construct_yaml_{kind}")(node)
        except _FAULTS:
            raise self.error(node, f"{quote(node.value)} is no number") from None

    def error(self, at: Any, what: str) -> RecipeError:
        """The error for an event or a node."""
        where = f"{shorten(self.place)} line {at.start_mark.line + 1}"
        return RecipeError(f"{where}: {what}", hint=HINT)
