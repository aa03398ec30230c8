"""What is in the sources of a vLLM, which are read and never run: another version's may not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEPTH = 8  # of names that are imported from elsewhere


class Sources:
    """Those below the folder that has the package ``vllm`` in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.module = cache(self._module)

    def _module(self, name: str) -> ast.Module | None:
        """A module, or None where there is none of that name."""
        path = self._folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text())
        return None

    def find(self, module: str, name: str, depth: int = _DEPTH) -> ast.AST | None:
        """What ``name`` stands for there; a name in a class is ``Class.name``."""
        tree = self.module(module)
        if tree is None or depth == 0:
            return None
        first, _, member = name.partition(".")
        found = _last(tree.body, first)
        if isinstance(found, ast.ImportFrom):
            alias = next(a for a in found.names if (a.asname or a.name) == first)
            whole = f"{alias.name}.{member}" if member else alias.name
            return self.find(str(found.module), whole, depth - 1)
        if not member or found is None:
            return found
        if isinstance(found, ast.ClassDef):
            return self._in_class(module, found, member, depth)
        return _in_dict(found, member)

    def _in_class(self, module: str, of: ast.ClassDef, member: str, depth: int) -> ast.AST | None:
        own = _last(of.body, member) or _set_on_self(of, member)
        if own is not None:
            return own
        for base in of.bases:
            if isinstance(base, ast.Name):
                found = self.find(module, f"{base.id}.{member}", depth - 1)
                if found is not None:
                    return found
        return None

    def methods(self, module: str, name: str, depth: int = _DEPTH) -> set[str]:
        """The public methods of a class, its bases' among them."""
        tree = self.module(module)
        found = None if tree is None or depth == 0 else _last(tree.body, name)
        if isinstance(found, ast.ImportFrom):
            alias = next(a for a in found.names if (a.asname or a.name) == name)
            return self.methods(str(found.module), alias.name, depth - 1)
        if not isinstance(found, ast.ClassDef):
            return set()
        names = {each.name for each in found.body if isinstance(each, _FUNCTIONS)}
        for base in found.bases:
            if isinstance(base, ast.Name):
                names |= self.methods(module, base.id, depth - 1)
        return {each for each in names if not each.startswith("_")}


def _last(body: list[ast.stmt], name: str) -> ast.AST | None:
    """The last statement that binds a name, also in what is run only sometimes."""
    found: ast.AST | None = None
    for each in _flat(body):
        if _binds(each, name):
            found = each
    return found


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for each in body:
        yield each
        if isinstance(each, ast.If | ast.Try | ast.With):
            yield from _flat(each.body)
            yield from _flat(getattr(each, "orelse", []))
            for handler in getattr(each, "handlers", []):
                yield from _flat(handler.body)


def _binds(statement: ast.stmt, name: str) -> bool:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return statement.name == name
        case ast.Assign():
            return any(isinstance(t, ast.Name) and t.id == name for t in statement.targets)
        case ast.AnnAssign():
            return isinstance(statement.target, ast.Name) and statement.target.id == name
        case ast.ImportFrom():
            return any((alias.asname or alias.name) == name for alias in statement.names)
    return False


def _set_on_self(of: ast.ClassDef, name: str) -> ast.AST | None:
    for node in ast.walk(of):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if (
                isinstance(target, ast.Attribute)
                and target.attr == name
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            ):
                return node
    return None


def _in_dict(of: ast.AST, key: str) -> ast.AST | None:
    value = getattr(of, "value", None)
    if isinstance(value, ast.Dict):
        for each in value.keys:
            if isinstance(each, ast.Constant) and each.value == key:
                return each
    return None


def missing_parameters(node: ast.AST, wanted: tuple[str, ...]) -> list[str]:
    """Those that a function does not take; what is no function takes none."""
    if not isinstance(node, _FUNCTIONS):
        return list(wanted)
    of = node.args
    taken = {each.arg for each in (*of.posonlyargs, *of.args, *of.kwonlyargs)}
    return [] if of.kwarg is not None else [each for each in wanted if each not in taken]


def mentions(node: ast.AST, word: str) -> bool:
    """Whether a name, an attribute or a string of it is that word."""
    return any(
        (isinstance(each, ast.Name) and each.id == word)
        or (isinstance(each, ast.Attribute) and each.attr == word)
        or (isinstance(each, ast.Constant) and each.value == word)
        for each in ast.walk(node)
    )
