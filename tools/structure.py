"""The structure gate: floors, heavy dependencies, lengths, names.

Reads ``[tool.structure]`` of ``pyproject.toml`` and reports ``path:line: message`` for every place where the source
breaks it. Exit code 0 when clean, 1 with violations, 2 when the table itself is wrong. Standard library only, and
it parses without importing, so it needs no installed project. Imports count wherever they stand: in functions, under
``TYPE_CHECKING``, and as a literal given to ``import_module``.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|\d+")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class BadTable(Exception):
    """``[tool.structure]`` cannot be used; the message says which key and why."""


@dataclass(frozen=True)
class Exempt:
    """One file that may break one rule, and why."""

    path: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Rules:
    """The table of ``[tool.structure]``; field names are its keys."""

    source: str
    floors: dict[str, int]
    limits_only: tuple[str, ...] = ()
    max_file_lines: int = 600
    max_function_lines: int = 80
    max_parameters: int = 5
    max_interface_methods: int = 7
    banned_names: tuple[str, ...] = ()
    only: dict[str, list[str]] = field(default_factory=dict)
    heavy: dict[str, list[str]] = field(default_factory=dict)
    exempt: tuple[Exempt, ...] = ()

    @property
    def package(self) -> str:
        return self.source.rsplit("/", 1)[-1]

    @classmethod
    def read(cls, root: Path) -> Rules:
        """The rules in ``root/pyproject.toml``; :class:`BadTable` when they are missing or wrong."""
        try:
            table = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["structure"]
        except FileNotFoundError:
            raise BadTable(f"no pyproject.toml in {root}") from None
        except KeyError:
            raise BadTable("pyproject.toml has no [tool.structure] table") from None
        if unknown := sorted(set(table) - set(cls.__dataclass_fields__)):
            raise BadTable(f"unknown key in [tool.structure]: {', '.join(unknown)}")
        if missing := sorted({"source", "floors"} - set(table)):
            raise BadTable(f"[tool.structure] needs: {', '.join(missing)}")
        try:
            exempt = tuple(Exempt(**entry) for entry in table.pop("exempt", ()))
        except TypeError:
            raise BadTable("each [[tool.structure.exempt]] needs path, rule and reason, and nothing else") from None
        for name in ("limits_only", "banned_names"):
            table[name] = tuple(table.get(name, ()))
        return cls(**table, exempt=exempt)


@dataclass(frozen=True, order=True)
class Violation:
    """One broken rule; ``path`` is relative to the project's root, ``line`` counts from 1."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Source:
    """A parsed file; ``inside`` is its path below the package, empty for files that have limits only."""

    path: str
    inside: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder right below the package; empty for the package's own files."""
        return self.inside.split("/", 1)[0] if "/" in self.inside else ""

    def module(self, package: str) -> list[str]:
        """Dotted parts of the package that relative imports start from."""
        return [package, *self.inside.split("/")[:-1]]

    def broken(self, line: int, rule: str, message: str) -> Violation:
        return Violation(self.path, line, rule, message)


def imports(source: Source, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything the file imports, wherever in the file that is."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                here = source.module(package)
                base = here[: len(here) - node.level + 1] + base
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.Call) and (name := _literal_import(node)):
            yield node.lineno, name


def _literal_import(call: ast.Call) -> str:
    """The module that ``import_module("...")`` or ``__import__("...")`` names, else nothing."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called not in ("import_module", "__import__") or not call.args:
        return ""
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def check_imports(source: Source, rules: Rules) -> Iterator[Violation]:
    """Floors, the rooms with a closed list, and heavy dependencies."""
    room = source.room
    if room and room not in rules.floors:
        yield source.broken(1, "floor", f"room '{room}' has no floor in [tool.structure.floors]")
        return
    seen: set[tuple[int, str]] = set()
    for line, name in imports(source, rules.package):
        parts = name.split(".")
        target = parts[1] if parts[0] == rules.package and len(parts) > 1 else parts[0]
        if (line, target) in seen:
            continue
        seen.add((line, target))
        if parts[0] == rules.package:
            yield from _check_floor(source, line, target, rules)
        else:
            yield from _check_third_party(source, line, name, rules)


def _check_floor(source: Source, line: int, target: str, rules: Rules) -> Iterator[Violation]:
    room = source.room
    if target == room or target not in rules.floors:  # the package's own names are on no floor
        return
    floor = rules.floors[target]
    if not room:
        if source.inside == "__init__.py" and floor > 0:
            yield source.broken(line, "floor", f"the package's __init__ imports '{target}': every import would load it")
        return
    mine = rules.floors[room]
    if floor == mine:
        yield source.broken(line, "floor", f"'{room}' imports '{target}' on the same floor ({mine})")
    elif floor > mine:
        yield source.broken(line, "floor", f"'{room}' (floor {mine}) imports '{target}' from floor {floor} above it")


def _check_third_party(source: Source, line: int, name: str, rules: Rules) -> Iterator[Violation]:
    top = name.split(".", 1)[0]
    if top in sys.stdlib_module_names:
        return
    closed = rules.only.get(source.room)
    if closed is not None and top not in closed:
        allowed = ", ".join(["the standard library", *closed])
        yield source.broken(line, "only", f"'{source.room}' imports '{top}'; it may use {allowed} only")
    elif top in rules.heavy and not _within(source.inside, rules.heavy[top]):
        places = ", ".join(rules.heavy[top])
        yield source.broken(line, "heavy", f"heavy dependency '{top}' may be imported only in: {places}")


def _within(inside: str, places: Iterable[str]) -> bool:
    return any(inside.startswith(f"{place}/") or fnmatch.fnmatch(inside, place) for place in places)


def check_limits(source: Source, rules: Rules) -> Iterator[Violation]:
    """Lines per file and function, parameters, public methods per interface."""
    lines = source.text.count("\n") + (not source.text.endswith("\n") and bool(source.text))
    if lines > rules.max_file_lines:
        yield source.broken(1, "file_lines", f"file has {lines} lines, at most {rules.max_file_lines}")
    methods = _methods(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, _FUNCTIONS):
            yield from _check_function(source, node, node in methods, rules)
        elif isinstance(node, ast.ClassDef) and _is_protocol(node):
            public = {item.name for item in node.body if isinstance(item, _FUNCTIONS) and item.name[0] != "_"}
            if len(public) > rules.max_interface_methods:
                message = (
                    f"interface '{node.name}' has {len(public)} public methods, at most {rules.max_interface_methods}"
                )
                yield source.broken(node.lineno, "interface_methods", message)


def _check_function(
    source: Source, node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool, rules: Rules
) -> Iterator[Violation]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > rules.max_function_lines:
        message = f"function '{node.name}' has {lines} lines, at most {rules.max_function_lines}"
        yield source.broken(node.lineno, "function_lines", message)
    positional = [*node.args.posonlyargs, *node.args.args]
    bound = method and bool(positional) and not _is_static(node)
    count = len(positional) + len(node.args.kwonlyargs) - bound
    if count > rules.max_parameters:
        message = f"function '{node.name}' has {count} parameters, at most {rules.max_parameters}"
        yield source.broken(node.lineno, "parameters", message)


def _methods(tree: ast.Module) -> set[ast.AST]:
    """Functions that stand right in a class body."""
    return {item for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}


def _is_static(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)


def _is_protocol(node: ast.ClassDef) -> bool:
    for base in node.bases:
        named = base.value if isinstance(base, ast.Subscript) else base
        # ``asyncio.Protocol`` is no interface: its methods are callbacks with given names.
        if ast.unparse(named) in ("Protocol", "typing.Protocol"):
            return True
    return False


def check_names(source: Source, rules: Rules) -> Iterator[Violation]:
    """Banned words in the names of folders, files and classes."""
    banned = {name.lower(): name for name in rules.banned_names}
    path = source.inside or source.path
    named = [(1, part) for part in path.removesuffix(".py").split("/")]
    named += [(node.lineno, node.name) for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    for line, name in named:
        for word in _WORD.findall(name):
            if word.lower() in banned:
                yield source.broken(line, "name", f"'{name}' holds the banned word '{banned[word.lower()]}'")


def read_sources(root: Path, rules: Rules) -> tuple[list[Source], list[Violation]]:
    """Every Python file the rules cover, and the files that do not parse."""
    sources: list[Source] = []
    unreadable: list[Violation] = []
    for folder in (rules.source, *rules.limits_only):
        for file in sorted((root / folder).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            inside = file.relative_to(root / folder).as_posix() if folder == rules.source else ""
            try:
                text = file.read_text("utf-8")
                sources.append(Source(path, inside, text, ast.parse(text, path)))
            except (SyntaxError, UnicodeDecodeError) as error:
                unreadable.append(
                    Violation(path, getattr(error, "lineno", 1) or 1, "syntax", f"does not parse: {error}")
                )
    return sources, unreadable


def check(root: Path, rules: Rules) -> tuple[list[Violation], int]:
    """All violations below ``root``, in order, and the number of files that were read."""
    sources, found = read_sources(root, rules)
    for source in sources:
        if source.inside:
            found += check_imports(source, rules)
        found += check_limits(source, rules)
        found += check_names(source, rules)
    return sorted(_without_exempt(found, rules.exempt)), len(sources)


def _without_exempt(found: list[Violation], exempt: Iterable[Exempt]) -> Iterator[Violation]:
    unused = {(entry.path, entry.rule) for entry in exempt}
    allowed = frozenset(unused)
    for violation in found:
        key = (violation.path, violation.rule)
        unused.discard(key)
        if key not in allowed:
            yield violation
    for path, rule in unused:
        yield Violation("pyproject.toml", 1, "exempt", f"nothing in {path} breaks rule '{rule}': remove its exemption")


def main(arguments: list[str] | None = None) -> int:
    """Check the project in the folder given (the current one by default)."""
    parser = argparse.ArgumentParser(description="Check floors, heavy dependencies, lengths and names.")
    parser.add_argument("root", nargs="?", type=Path, default=Path())
    root = parser.parse_args(arguments).root
    try:
        rules = Rules.read(root)
    except (BadTable, tomllib.TOMLDecodeError) as error:
        print(f"structure: {error}", file=sys.stderr)
        return 2
    violations, files = check(root, rules)
    for violation in violations:
        print(violation)
    if violations:
        print(f"structure: {len(violations)} violations in {files} files", file=sys.stderr)
        return 1
    print(f"structure: {files} files, {len(rules.floors)} rooms, no violations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
