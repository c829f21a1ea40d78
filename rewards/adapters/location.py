"""Where a reward function stands, found without running anything of its module."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_HIDING = frozenset({"globals", "locals", "vars", "exec", "eval", "setattr", "__getattr__"})
"""A module that uses one of these may bind names that its text does not show."""


def locate(function: str) -> tuple[Path, str]:
    """File of the function, and its path with that file made absolute. Imports nothing.

    Raises ``ValueError``.

    >>> locate("json.decoder:JSONDecoder")[1]
    'json.decoder:JSONDecoder'
    """
    place, separator, name = function.rpartition(":")
    if not (place and separator and name.isidentifier()):
        raise ValueError(
            f"{function!r} is not of the form `package.module:name` or `dir/file.py:name`"
        )
    if place.endswith(".py"):
        file = Path(place).resolve()
        if not file.is_file():
            raise ValueError(f"{function!r}: no file {file}")
        return file, f"{file}:{name}"
    top, *inner = place.split(".")
    spec = importlib.util.find_spec(top)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    origins = [] if inner or spec is None or spec.origin is None else [Path(spec.origin)]
    candidates = [Path(folder, *inner) for folder in folders if inner]
    origins += [c.with_suffix(".py") for c in candidates] + [c / "__init__.py" for c in candidates]
    file_of_module = next((file for file in origins if file.is_file()), None)
    if file_of_module is None:
        raise ValueError(f"{function!r}: no Python file of the module {place!r}")
    return file_of_module, function


def require_name(file: Path, source: bytes, name: str) -> None:
    """Refuse a name that nothing in the file binds. Raises ``ValueError`` with the nearest one.

    What a file binds by tricks, or takes from another one by ``*``, is left to its import.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{file}:{error.lineno or 1}: is no Python ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{file}: is no Python ({error})") from None
    bound = set(_bound(tree))
    if name in bound or not _HIDING.isdisjoint(bound) or "*" in bound:
        return
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    close = difflib.get_close_matches(name, defined, n=1) or difflib.get_close_matches(name, bound)
    hint = f"did you mean {close[0]!r}?" if close else f"it defines {_listed(defined)}"
    raise ValueError(f"{file} defines no {name!r}; {hint}")


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that are bound anywhere in a file, and those of ``_HIDING`` that it uses."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.alias(name=name, asname=None):
                yield name.partition(".")[0]
            case ast.alias(asname=str(name)):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Name(id=name) if name in _HIDING:
                yield name
            case ast.Attribute(attr="modules" | "__dict__"):  # a module that changes itself
                yield "globals"


def _listed(names: list[str]) -> str:
    shown = [name for name in names if not name.startswith("_")]
    return ", ".join(shown[:10]) + ("…" if len(shown) > 10 else "") or "no function"
