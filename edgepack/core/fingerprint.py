"""A digest of the code that computes a result, so that results of older code are not reused. Nobody
has to remember to bump a version.

It covers modules and all of edgepack that they import, directly or not; a package means all of its
modules. Comments, docstrings and the texts of errors are left out, since they change no result.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).parents[1]
SILENT = frozenset(
    f"edgepack.{name}"
    for name in (
        *("core.errors", "core.os_errors", "core.progress", "core.untrusted"),
        *("core.disk", "core.stage", "core.weight_files"),
        *("recipe", "recipe.sections", "recipe.read", "recipe.fields", "recipe.plain_yaml"),
        "recipe.texts",
    )
)
"""Modules that compute no part of a result: options are in the key, files are checked."""


class Code(NamedTuple):
    """A module: the digest of its syntax tree, and the modules of edgepack that it imports."""

    digest: str
    imports: frozenset[str]


@cache
def digest(*modules: str) -> str:
    """Hex digest of the code of modules, and of all of edgepack that they import."""
    found = covered_code(modules)
    text = "\n".join(f"{name} {found[name].digest}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()


def covered_code(modules: tuple[str, ...]) -> dict[str, Code]:
    """The modules that `digest` covers, by name."""
    seen: dict[str, Code] = {}
    waiting = [name for module in modules for name in _members(module)]
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in SILENT:
            seen[name] = _read(name)
            waiting += seen[name].imports
    return seen


def _members(module: str) -> Iterator[str]:
    """A module; for a package all of its modules, and plug-ins from other packages."""
    yield module
    folder = HOME.joinpath(*module.split(".")[1:])
    for path in sorted(folder.glob("*.py")):
        if path.stem != "__init__":
            yield f"{module}.{path.stem}"
    for entry in entry_points(group=module):
        yield entry.module


@cache
def _read(module: str) -> Code:
    path = _path(module)
    tree = ast.parse(path.read_bytes()) if path else ast.Module([], [])
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    imports = {name for name in named if name.startswith("edgepack.") and _path(name)}
    text = ast.dump(_Computing().visit(tree))
    return Code(hashlib.sha256(text.encode()).hexdigest(), frozenset(imports))


def _path(module: str) -> Path | None:
    """The file of a module, None if there is no such module."""
    if module.partition(".")[0] != "edgepack":  # a plug-in
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin else None
    place = HOME.joinpath(*module.split(".")[1:])
    found = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in found if path.is_file()), None)


class _Computing(ast.NodeTransformer):
    """Removes docstrings, and the errors that ``raise`` statements make."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()
