"""The code that a packaged model carries: the modules that scoring needs, found by following imports."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class CarriedCode:
    """Modules and what they import.

    Attributes:
        files: the source file of each module, by the path that it has below the import path's directory.
        imports: top-level names of the other packages that the modules import when they are loaded. What
            they import inside functions, such as a library for downloads, is optional.
    """

    files: dict[Path, Path]
    imports: frozenset[str]


def follow_imports(roots: Sequence[str], without: Collection[str] = ()) -> CarriedCode:
    """Find the modules that some root modules need, imports inside functions included.

    Args:
        roots: module names; all modules of their top-level packages are followed.
        without: modules that are not needed.
    """
    packages = {root.partition(".")[0] for root in roots}
    files: dict[Path, Path] = {}
    imports: set[str] = set()
    pending, seen = list(roots), set(without)
    while pending:
        name = pending.pop()
        parent = name.rpartition(".")[0]
        if name in seen:
            continue
        seen.add(name)
        if parent:
            pending.append(parent)
        file = _source(name)
        if file is None:
            continue
        path = Path(*name.split("."))
        files[path / file.name if file.name == "__init__.py" else path.with_suffix(".py")] = file
        for imported, is_lazy in _imports_of(file.read_bytes()):
            package = imported.partition(".")[0]
            if package in packages:
                pending.append(imported)
            elif not is_lazy:
                imports.add(package)
    return CarriedCode(files, frozenset(imports))


def _source(name: str) -> Path | None:
    """A module's file, found without importing the module; None if the name is not a module's."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # its parent is a module, so the name is that of a class or function
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@cache
def _imports_of(source: bytes) -> tuple[tuple[str, bool], ...]:
    return tuple(_imports(ast.parse(source)))


def _imports(node: ast.AST, *, is_lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Names that a syntax tree imports, and whether it does so inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # expressions import nothing, and most of a tree are expressions
        if isinstance(child, ast.Import):
            yield from ((alias.name, is_lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.module is not None, "carried code uses absolute imports"
            yield child.module, is_lazy
            yield from ((f"{child.module}.{alias.name}", is_lazy) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _imports(child, is_lazy=is_lazy or is_function)
