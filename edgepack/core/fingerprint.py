"""A digest of the code that computes a result, so that results of older code are not reused. Nobody
has to remember to bump a version.

It covers modules and all of edgepack that they import, directly or not; a package stands for all
its modules. A plug-in counts with all of its own package that it imports. Comments, docstrings and
the texts of errors are left out, since they change no result.
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
INIT = "__init__.py"
SILENT = frozenset(
    f"edgepack.{name}"
    for name in (
        *("errors", "core.os_errors", "core.progress", "core.untrusted"),
        *("core.disk", "core.stage", "core.results", "core.weight_files"),
        *("core.executor", "core.headers", "core.travel"),
        *("planning", "planning.plan", "planning.steps", "planning.target"),
        *("recipe", "recipe.sections", "recipe.read", "recipe.fields", "recipe.plain_yaml"),
        "recipe.texts",
    )
)
"""Modules that compute no part of a result: options are in the key, files are checked."""


class Code(NamedTuple):
    """What is known of a module: the digest of its syntax tree, and what it imports of edgepack and
    of its own package."""

    digest: str
    imports: frozenset[str]


@cache
def digest(*modules: str) -> str:
    """Hex digest of the code of modules, and of all of edgepack (and, for plug-ins, of their own
    package) that they import."""
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
    for place in _places(module):
        for path in sorted(place.glob("*.py")):
            if path.name != INIT:
                yield f"{module}.{path.stem}"
    for entry in entry_points(group=module):
        yield entry.module


@cache
def _read(module: str) -> Code:
    path = _path(module)
    tree = ast.parse(path.read_bytes()) if path else ast.Module([], [])
    within = {"edgepack", module.partition(".")[0]}
    package = module if path and path.name == INIT else module.rpartition(".")[0]
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = _start(node, package)
            named |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    imports = {name for name in named if name.partition(".")[0] in within and _path(name)}
    text = ast.dump(_Computing().visit(tree))
    return Code(hashlib.sha256(text.encode()).hexdigest(), frozenset(imports - {"edgepack"}))


def _start(node: ast.ImportFrom, package: str) -> str:
    """The module that names are imported from; ``from . import x`` starts at `package`."""
    if not node.level:
        return node.module or ""
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _path(module: str) -> Path | None:
    """The file of a module, None if there is no such module."""
    found = (p for place in _places(module) for p in (place.with_suffix(".py"), place / INIT))
    return next((path for path in found if path.is_file()), None)


def _places(module: str) -> Iterator[Path]:
    """Where the folder of a package may be, or the file of a module, without its suffix: of several
    places in a namespace package. Nothing is imported."""
    first, *rest = module.split(".")
    if first == "edgepack":
        yield HOME.joinpath(*rest)
        return
    spec = importlib.util.find_spec(first) if first else None
    if spec is None:
        return
    for folder in spec.submodule_search_locations or [(spec.origin or first).removesuffix(".py")]:
        yield Path(folder).joinpath(*rest)


class _Computing(ast.NodeTransformer):
    """Removes docstrings, and the errors that ``raise`` statements make."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()
