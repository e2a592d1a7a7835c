"""Expressions of rules in CEL, Google's Common Expression Language (https://cel.dev), which always end. The only module
that knows cel-python, of the extra `policy`.

Numbers are strict here in one way more than CEL is: a number that is NaN or infinite compares as false with everything,
so a rule that reads one would be silent when it matters most. Reading one is an error.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxlm.decode import suggest

MOST = 2000
"""Characters of an expression."""
_MACROS = ("all", "exists", "exists_one", "filter", "has", "map")

_KINDS = {
    "BoolType": "a true/false value",
    "DoubleType": "a number",
    "IntType": "a whole number",
    "ListType": "a list",
    "MapType": "a mapping",
    "NullType": "null",
    "StringType": "text",
}
MISSING, DIVIDED = "there is no ", "modulus or divide by zero"
"""How the sentences about a name that is not there, and about a division, begin."""

Path = tuple[str, ...]


class Invalid(ValueError):
    """An expression that is none, at a column from 1."""

    def __init__(self, why: str, column: int = 1):
        super().__init__(why)
        self.why, self.column = why, column


class Fault(Exception):
    """An expression that gave neither true nor false."""


def require() -> None:
    """Raises Invalid where cel-python is not installed."""
    try:
        import celpy  # noqa: F401
    except ImportError as error:
        raise Invalid(
            f"policies need the package cel-python ({error}): run `uv sync --extra policy` "
            "(or pip install 'jaxlm[policy]')"
        ) from None


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression.

    Attributes:
        text: as it was written.
        reads: every name it reads, as ("train", "loss").
        parts: each side of its && and ||, alone: one of them may hide an error of the other.
    """

    text: str
    reads: frozenset[Path]
    parts: tuple[Any, ...]
    _run: Any

    def __call__(self, facts: Mapping[str, Any]) -> bool:
        """What it says of these facts, nested mappings of numbers, text and booleans. Raises Fault."""
        return self._judge(self._run, facts)

    def tried(self, facts: Mapping[str, Any]) -> None:
        """Judges every part of it. Raises Fault."""
        for part in self.parts:
            self._judge(part, facts)
        self(facts)

    def _judge(self, run: Any, facts: Mapping[str, Any]) -> bool:
        from celpy.adapter import json_to_cel
        from celpy.celtypes import BoolType
        from celpy.evaluation import CELEvalError

        for path in sorted(self.reads):
            _require_finite(path, facts)
        try:
            given = {name: json_to_cel(facts[name]) for name in {path[0] for path in self.reads} & facts.keys()}
            said = run.evaluate(given)
        except CELEvalError as error:
            raise Fault(_sentence(error)) from None
        except Exception as error:  # whatever it is, a rule that was not judged is not a rule that holds
            raise Fault(f"{type(error).__name__}: {str(error)[:200]}") from None
        if not isinstance(said, BoolType):
            raise Fault(f"gives {_kind(type(said).__name__)}, not true or false")
        return bool(said)


def compile(text: str) -> Program:
    """Raises Invalid where it is no expression of CEL."""
    require()
    from celpy import Environment
    from celpy.celparser import CELParseError
    from celpy.evaluation import base_functions

    if len(text) > MOST:
        raise Invalid(f"is {len(text):,} characters long, at most {MOST:,} are taken")
    environment = Environment()
    try:
        tree = environment.compile(text)
        for name, column in _calls(tree):
            if name not in base_functions and name not in _MACROS:
                raise Invalid(
                    f"there is no function {name}{suggest(name, [*filter(str.isidentifier, base_functions)])}", column
                )
        parts = tuple(environment.program(part) for part in _parts(tree))
        return Program(text, frozenset(_reads(tree)), parts, environment.program(tree))
    except Invalid:
        raise
    except CELParseError as error:
        raise Invalid("is no CEL from here on", error.column or 1) from None
    except Exception as error:  # such as brackets too deep for the parser
        raise Invalid(f"cannot be read ({type(error).__name__}: {str(error)[:200]})") from None


def column_of(program: Program, path: Path) -> int:
    """Where an expression first names a path, from 1."""
    dotted = re.search(r"\b" + r"\s*\.\s*".join(map(re.escape, path)) + r"\b", program.text)
    found = dotted.start() if dotted else program.text.find(path[-1])
    return max(found, 0) + 1


def value(facts: Mapping[str, Any], path: Path) -> Any:
    """What lies under a path; None where there is nothing."""
    at: Any = facts
    for name in path:
        if not isinstance(at, Mapping) or name not in at:
            return None
        at = at[name]
    return at


def _reads(tree: Any, bound: frozenset[str] = frozenset()) -> set[Path]:
    """The paths that a tree of lark reads, variables of macros left out."""
    if not hasattr(tree, "data"):
        return set()
    if (path := _path(tree)) is not None:
        return set() if path[0] in bound else {path}
    if tree.data == "member_dot_arg" and str(tree.children[1]) in _MACROS and len(tree.children) > 2:
        over, _, arguments = tree.children
        variable = _path(arguments.children[0])
        inner = bound | ({variable[0]} if variable else frozenset())
        return _reads(over, bound).union(*(_reads(each, inner) for each in arguments.children[1:]))
    return set().union(*(_reads(each, bound) for each in tree.children))


def _calls(tree: Any) -> list[tuple[str, int]]:
    """Names of functions and methods, each with its column."""
    if not hasattr(tree, "data"):
        return []
    named = {"ident_arg": 0, "dot_ident_arg": 0, "member_dot_arg": 1}.get(str(tree.data))
    own = [] if named is None else [(str(tree.children[named]), tree.children[named].column or 1)]
    return [*own, *(call for each in tree.children for call in _calls(each))]


def _parts(tree: Any) -> list[Any]:
    """The trees on both sides of each && and ||, those inside macros left out: their variables mean nothing outside."""
    if not hasattr(tree, "data") or str(tree.data) == "member_dot_arg":
        return []
    sides = tree.children if str(tree.data) in ("conditionaland", "conditionalor") and len(tree.children) == 2 else []
    return [*sides, *(part for each in tree.children for part in _parts(each))]


def _path(tree: Any) -> Path | None:
    """`a.b["c"]` as ("a", "b", "c"); None for what is no such chain."""
    if not hasattr(tree, "data"):
        return None
    children = tree.children
    match str(tree.data):
        case "ident":
            return (str(children[0]),)
        case "member_dot":
            head = _path(children[0])
            return None if head is None else (*head, str(children[1]))
        case "member_index":
            head, key = _path(children[0]), _literal(children[1])
            return None if head is None or key is None else (*head, key)
    return _path(children[0]) if len(children) == 1 else None


def _literal(tree: Any) -> str | None:
    while hasattr(tree, "data") and len(tree.children) == 1:
        if str(tree.data) == "literal":
            text = str(tree.children[0])
            return text[1:-1] if text[:1] in ("'", '"') else None
        tree = tree.children[0]
    return None


def _require_finite(path: Path, facts: Mapping[str, Any]) -> None:
    waiting = [(path, value(facts, path))]
    while waiting:
        name, found = waiting.pop()
        if isinstance(found, float) and not math.isfinite(found):
            raise Fault(f"{'.'.join(name)} is {found}")
        if isinstance(found, Mapping):
            waiting += [((*name, str(key)), each) for key, each in found.items()]


def _sentence(error: Any) -> str:
    """What cel-python says, in words; it never quotes values that were read."""
    text = str(error.args[0] if error.args else error)
    if match := re.match(r"no such member in mapping: '(.*)'$", text):
        return f"{MISSING}{match[1]}"
    if match := re.match(r"undeclared reference to '(\w+)'", text):
        return f"{MISSING}{match[1]}"
    if text.startswith("found no matching overload"):
        kinds = [_kind(each) for each in re.findall(r"celtypes\.(\w+)'", text)]
        hint = "; double(x) makes a number of a whole one" if "a whole number" in kinds and "a number" in kinds else ""
        return f"cannot be computed with {' and '.join(kinds)}{hint}"
    return text.split("(")[0].strip()[:200] or type(error).__name__


def _kind(name: str) -> str:
    return _KINDS.get(name, name)
