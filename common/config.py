"""One YAML file describes one run. Loading is strict: unknown, missing and mistyped keys are errors.

A config is a frozen pydantic model. `load` reads a file and applies `section.key=value` overrides;
the nearest known name is offered for an unknown one.
"""

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InputError

T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """Base of every config: frozen, strict about names, tolerant only of YAML's own spellings (1e-4, ints for
    floats).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed, validated again."""
        return type(self).model_validate({**self.model_dump(), **changes})


def key(
    default: Any = ...,
    *,
    affects_result: bool = True,
    affects_encoding: bool | None = None,
    **checks: Any,
) -> Any:
    """A field of a training config, which says whether it changes what the run computes.

    Args:
        default: `...`: there is none.
        affects_result: False for what says where a run happens and how it fits there: it may change when the
            run goes on.
        affects_encoding: of the data section, whether it changes what a clip or its caption is, so that a
            cache of encoded clips has to be made anew; None: as affects_result.
        checks: as pydantic's Field takes them: ge, lt, min_length, default_factory, ...
    """
    if affects_encoding is None:
        affects_encoding = affects_result
    marks: Any = {"affects_result": affects_result, "affects_encoding": affects_encoding}
    if "default_factory" not in checks:
        checks["default"] = default
    return Field(json_schema_extra=marks, **checks)


def marks_of(cls: type["Config"], name: str) -> Mapping[str, Any] | None:
    """What `key` said of a field; None if it was not made by it."""
    extra = cls.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) and "affects_result" in extra else None


def free_keys(cls: type["Config"], prefix: str = "") -> tuple[str, ...]:
    """The dotted keys, or whole sections, that do not affect the result of a run of this config."""
    found: list[str] = []
    for name in cls.model_fields:
        marks, section = marks_of(cls, name), _nested(cls, name)
        if marks is not None and not marks["affects_result"]:
            found.append(prefix + name)
        elif section is not None:
            found += free_keys(section, f"{prefix}{name}.")
    return tuple(found)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read the YAML file `path` into `cls`, then apply `a.b=value` overrides (values are YAML; `a.0.b=value`
    reaches into a list).

    Raises:
        InputError: one line per problem, each with the file, the key, what was given and what was wanted.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config {path}: no such file; presets are in configs/")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"config {path}: expected `key: value` lines, got {type(tree).__name__}")
    for override in overrides:
        _apply(cls, tree, override)
    return build(cls, tree, where=str(path))


def build(cls: type[T], tree: dict, where: str) -> T:
    """Validate a nested dict as `cls`; `where` opens every message."""
    try:
        return cls.model_validate(tree)
    except ValidationError as failure:
        problems = [_explain(cls, error, where) for error in failure.errors()]
        raise InputError("\n".join(problems)) from None


def _apply(cls: type[Config], tree: dict, override: str) -> None:
    dotted, sep, value = override.partition("=")
    if not sep or not dotted:
        raise InputError(f"override {override!r} is not of the form section.key=value")
    *parents, leaf = dotted.split(".")
    node: Any = tree
    for key in parents:
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = _entry(node, key, override)
        if not isinstance(node, dict | list):
            raise InputError(f"override {override!r}: {key!r} is a value, not a section")
    if isinstance(node, list):
        _entry(node, leaf, override)
        node[int(leaf)] = _parse(value, ())
    else:
        node[leaf] = _parse(value, _types_of(cls, parents, leaf))


def _entry(node: Any, key: str, override: str) -> Any:
    """An entry of a section by its name, of a list by its number."""
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise InputError(
                f"override {override!r}: {key!r} is not an entry of a list of {len(node)}, counted from 0"
            )
        return node[int(key)]
    return node[key]


def _parse(text: str, types: tuple) -> Any:
    """What was typed for a key: YAML, but text stays as typed (`A harbour #1: dawn` has no comment)."""
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text
    if str not in types:
        return value
    takes_list = any(typing.get_origin(t) is list for t in types)
    is_list = takes_list and isinstance(value, list) and text.lstrip().startswith("[")
    return value if is_list or (value is None and type(None) in types) else text


def _types_of(cls: type[Config], parents: Sequence[str], leaf: str) -> tuple:
    """The types a key may have; empty where the config does not say (inside a plain dict, or unknown)."""
    for part in parents:
        nested = cls if part.isdigit() else _nested(cls, part)
        if nested is None:
            return ()
        cls = nested
    field = cls.model_fields.get(leaf)
    return () if field is None else (field.annotation, *typing.get_args(field.annotation))


def _nested(cls: type[Config], name: str | int) -> type[Config] | None:
    """The config class of a section, if the field has one."""
    field = cls.model_fields.get(str(name))
    options = () if field is None else (field.annotation, *typing.get_args(field.annotation))
    return next((c for c in options if isinstance(c, type) and issubclass(c, Config)), None)


def _explain(cls: type[Config], error: Any, where: str) -> str:
    *parents, key = error["loc"] or ("",)
    dotted = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(cls, parents)
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {dotted!r}; {hint}"
    if error["type"] == "missing":
        return f"{where}: {dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {dotted}: {message}; got {error['input']!r}" if dotted else f"{where}: {message}"


def _fields_at(cls: type[Config], parents: Sequence[str | int]) -> list[str]:
    """Names of the fields of the section that `parents` leads to; list indices and union tags lead nowhere
    new.
    """
    for part in parents:
        cls = _nested(cls, part) or cls
    return list(cls.model_fields)
