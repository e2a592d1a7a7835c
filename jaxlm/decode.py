"""YAML text and dotted overrides become a frozen dataclass; whatever does not fit is named with its path."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import yaml
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError

C = TypeVar("C")
Raw = dict[str, Any]
NULL, MISSING = "null is not allowed here", "this key is required"


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the key and says what would be right."""


class _Loader(yaml.SafeLoader):
    """YAML with the floats of YAML 1.2 (`1e-3` is a number) and no repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := {k for k in keys if keys.count(k) > 1}:
            raise ConfigError(f"key {sorted(map(str, repeated))[0]!r} stands twice, at{node.start_mark}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(text: str, origin: str) -> Any:
    """The value of a YAML text. Raises ConfigError with line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def read(path: Path) -> Raw:
    """The mapping in a YAML file. Raises ConfigError when it is missing, unreadable or no mapping."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names(path.parent), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"configuration file {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
    raw = parse(text, str(path))
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration file {path} must hold a mapping of keys to values, not a {_kind(raw)}")
    return raw


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def override(raw: Raw, overrides: Iterable[tuple[str, str]]) -> Raw:
    """A copy of `raw` with dotted keys set: ("model.layers", "4"). Values are read as YAML."""
    raw = _copy(raw)
    for key, text in overrides:
        value, node = parse(text, f"the value of --{key}"), raw
        *parents, last = key.split(".")
        for depth, part in enumerate(parents):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--{key}: {'.'.join(parents[: depth + 1])} is a {_kind(node)}, it has no keys")
        node[last] = value
    return raw


def _copy(raw: Any) -> Any:
    return {k: _copy(v) for k, v in raw.items()} if isinstance(raw, dict) else raw


def dotted(arguments: list[str]) -> list[tuple[str, str]]:
    """`--model.layers 4 --optim.lr=1e-3` as pairs. Raises ConfigError for anything that is no such pair."""
    pairs, rest = [], list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise ConfigError(f"unexpected argument {flag!r}; overrides look like --model.layers 4")
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"--{key} needs a value, e.g. --{key} 4")
            value = rest.pop(0)
        pairs.append((key, value))
    return pairs


def decode(raw: Raw, kind: type[C]) -> C:
    """Builds the dataclass. Raises ConfigError listing every unknown key, wrong type and refused value."""
    try:
        return _converter().structure(raw, kind)
    except cattrs.BaseValidationError as error:
        messages = cattrs.transform_error(error, path="", format_exception=_sentence)
        raise ConfigError("\n".join(_clean(m) for m in messages)) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _clean(message: str) -> str:
    """cattrs writes `sentence @ .model.layers`; we write `model.layers: sentence`."""
    sentence, _, path = message.rpartition(" @ ")
    path = path.lstrip(".")
    if sentence.startswith((NULL, MISSING)):
        return f"{path}: {sentence}; write a value in the file or give --{path} VALUE"
    named = not path or sentence.startswith((f"{path}=", f"{path}."))
    return sentence if named or re.match(r"[a-z_]+\.[a-z_]+[ =]", sentence) else f"{path}: {sentence}"


def _sentence(error: BaseException, kind: type | None) -> str:
    if isinstance(error, ForbiddenExtraKeysError):
        known = {f.name: f.default for f in dataclasses.fields(error.cl)}
        of = f" of kind {known['kind']}" if "kind" in known else ""
        return "; ".join(
            f"unknown key {key!r}{of}{_suggest(str(key), list(known))}" for key in sorted(map(str, error.extra_fields))
        )
    if isinstance(error, KeyError):
        return MISSING
    return str(error)


def _suggest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(known)}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` or the list of what there is."""
    return _suggest(word, sorted(known))


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "true/false value", int: "whole number", float: "number"}
    return names.get(type(value), type(value).__name__)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)

    def strict(kind: type, expected: str, accepts: tuple[type, ...]) -> None:
        def hook(value: Any, _: Any) -> Any:
            if value is None:
                raise ValueError(f"{NULL}, expected {expected}")
            if type(value) not in accepts:
                raise ValueError(f"{value!r} is a {_kind(value)}, expected {expected}")
            return kind(value)

        converter.register_structure_hook(kind, hook)

    strict(int, "a whole number", (int,))
    strict(float, "a number", (int, float))

    def finite(value: Any, kind: Any) -> float:
        if type(value) is float and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return number(value, kind)

    number = converter.get_structure_hook(float)
    converter.register_structure_hook(float, finite)
    strict(str, "text", (str,))
    strict(bool, "true or false", (bool,))

    def literal(value: Any, kind: Any) -> Any:
        choices = typing.get_args(kind)
        if value not in choices or (isinstance(value, bool) and value not in [c for c in choices if c is value]):
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, choices))}{_near(value, choices)}")
        return value

    def scalar(value: Any, _: Any) -> Any:
        if not isinstance(value, (str, int, float, bool)):
            raise ValueError(f"{value!r} is a {_kind(value)}, expected text, a number or true/false")
        return value

    def mapping(value: Any, kind: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is a {_kind(value)}, expected a mapping of keys to values")
        key, item = typing.get_args(kind)
        found, wrong = {}, []
        for name, inner in value.items():
            try:
                found[converter.structure(name, key)] = converter.structure(inner, item)
            except (cattrs.BaseValidationError, TypeError, ValueError) as error:
                error.add_note(AttributeValidationNote(f"in {name}", str(name), item))
                wrong.append(error)
        if wrong:
            raise ClassValidationError("in a mapping", wrong, kind)  # pyright: ignore[reportCallIssue]
        return found

    plain = str | int | float | bool
    converter.register_structure_hook_func(lambda t: typing.get_origin(t) is typing.Literal, literal)
    converter.register_structure_hook_func(lambda t: typing.get_origin(t) is dict, mapping)
    converter.register_structure_hook_func(lambda t: t == plain, scalar)

    def fields_of(kind: Any) -> Any:
        inner = cattrs.gen.make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

        def hook(value: Any, _: Any) -> Any:
            if value is None:
                value = {}
            if not isinstance(value, Mapping):
                raise ValueError(f"{value!r} is a {_kind(value)}, expected a mapping of keys to values")
            return inner(value, kind)

        return hook

    converter.register_structure_hook_factory(dataclasses.is_dataclass, fields_of)

    def one_of(union: Any) -> Any:
        kinds = kinds_of(union)
        first = next(iter(kinds))

        def hook(value: Any, _: Any) -> Any:
            kind = value.get("kind", first) if isinstance(value, Mapping) else first
            if not isinstance(kind, str) or kind not in kinds:
                refused = ValueError(f"{kind!r} is not one of {', '.join(kinds)}{_near(kind, tuple(kinds))}")
                refused.add_note(AttributeValidationNote("in kind", "kind", str))
                raise ClassValidationError("in a choice", [refused], kinds[first])  # pyright: ignore[reportCallIssue]
            return converter.structure(value, kinds[kind])

        return hook

    converter.register_structure_hook_factory(is_choice, one_of)
    return converter


def is_choice(kind: Any) -> bool:
    """Whether a type is a union of dataclasses that their field `kind` tells apart."""
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else ()
    return bool(members) and all(dataclasses.is_dataclass(m) and "kind" in m.__dataclass_fields__ for m in members)


def kinds_of(union: Any) -> dict[str, type]:
    """The members of such a union by their `kind`; the first is the one meant where the key is absent."""
    return {member.__dataclass_fields__["kind"].default: member for member in typing.get_args(union)}


def _near(value: Any, choices: tuple[Any, ...]) -> str:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def docs(kind: type) -> dict[str, str]:
    """What the `Attributes:` section of a dataclass, or of one it extends, says of each field."""
    sections = [re.search(r"Attributes:\n(.*)", c.__doc__ or "", re.DOTALL) for c in reversed(kind.__mro__)]
    lines = [line for section in sections if section for line in section.group(1).splitlines()]
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if start := re.match(r"\s+([a-z_0-9]+): (.*)", line):
            name = start.group(1)
            found[name] = start.group(2).strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def encode(value: Any) -> Any:
    """A dataclass as plain YAML values, in field order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump(value: Any, *, comments: bool = False) -> str:
    """YAML text of a dataclass; with `comments`, each key is followed by what it means."""
    text = yaml.safe_dump(encode(value), sort_keys=False, allow_unicode=True, width=10_000)
    if not comments:
        return text
    return "\n".join(_commented(text.splitlines(), dict(_sections("", value)))) + "\n"


def _sections(path: str, value: Any) -> Iterable[tuple[str, dict[str, str]]]:
    """What each dataclass inside a value says of its fields, by the path it lies at."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield path, docs(type(value))
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _sections(f"{path}.{name}".lstrip("."), inner)


def _commented(lines: list[str], sections: dict[str, dict[str, str]]) -> Iterable[str]:
    path: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        key = line.strip().partition(":")[0]
        path = [*path[:depth], key]
        meaning = sections.get(".".join(path[:-1]), {}).get(key)
        yield f"{line:<36}  # {meaning}" if meaning else line
