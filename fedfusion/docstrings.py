"""What is written about a class or function, read from its source: nothing is imported."""

import ast
import importlib.util
import inspect
from functools import cache
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef


def docstring(target: str) -> str:
    """The docstring of `package.module.Name`, through what packages re-export and from bases that have one.

    It is empty where there is none, or no source.
    """
    module, _, name = target.rpartition(".")
    found = _find(module, name)
    if found is None:
        return ""
    node, module = found
    if own := ast.get_docstring(node):
        return inspect.cleandoc(own)
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    inherited = (docstring(f"{module}.{ast.unparse(base)}") for base in bases)
    return next((text for text in inherited if text), "")


def _find(module: str, name: str) -> tuple[Definition, str] | None:
    """The definition of `name` as `module` knows it, and the module that has it."""
    path = _source(module)
    if path is None:
        return None
    for node in _tree(path).body:
        if isinstance(node, Definition) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_origin(node, module, path), alias.name)
    return None


def _origin(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The absolute name of the module that `node`, a statement in `module`, imports from."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])


@cache
def _source(module: str) -> Path | None:
    """The file of a module. Only its top package is looked up; below it, packages are folders."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or spec.origin is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *below)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
