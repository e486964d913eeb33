"""Layered configuration: defaults < TOML file < environment < command-line flag.

Each room has one frozen dataclass whose fields are made by :func:`setting`, one sentence each; ``apps/`` composes
them into one dataclass with a field per section. An unknown key or a bad value is an error that names the key and
what is allowed. Environment: ``CODRIVER_<SECTION>_<FIELD>``, e.g. ``CODRIVER_GATEWAY_PORT=8000``; a variable with that
prefix that nobody reads is an error too, save for names that end in ``API_KEY``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import BadConfigValue, MissingFile, UnknownConfigKey

T = TypeVar("T")
ENV_PREFIX = "CODRIVER_"
# Variables with the prefix that are no settings: each is read, and explained, where it is used.
_OTHER_VARIABLES = {
    "CODRIVER_API_KEY", "CODRIVER_DATA", "CODRIVER_HOME", "CODRIVER_QUANTISE", "CODRIVER_RIVALS",
    "CODRIVER_TEST_DATA", "CODRIVER_TEST_MODELS",
}  # fmt: skip
_SERVICE = re.compile(r"CODRIVER(_\w+)?_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP)(_\w+)?)")
_SERVICE_URLS = ("tcp://", "udp://")


def setting(default: Any, sentence: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A dataclass field with its sentence and, for numbers, its bounds (both allowed)."""
    metadata = {"sentence": sentence, "least": least, "most": most}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One key as documentation shows it."""

    key: str
    env: str
    type: str
    default: Any
    sentence: str


def describe(cls: type[Any]) -> Iterator[Setting]:
    """Every setting of a composed configuration class, in order."""
    for section, kind in _sections(cls).items():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            yield Setting(
                key=f"{section}.{field.name}",
                env=f"{ENV_PREFIX}{section}_{field.name}".upper(),
                type=_type_name(hints[field.name]),
                default=default,
                sentence=field.metadata.get("sentence", ""),
            )


def load(
    cls: type[T],
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    others: Iterable[type[Any]] = (),
) -> T:
    """Build ``cls`` from the layers. ``flags`` maps ``"section.field"`` to a value; ``None`` values are not set.

    ``others`` are the classes of processes that share this one's environment: variables of their sections may be set.

    Errors: :class:`MissingFile`, :class:`UnknownConfigKey`, :class:`BadConfigValue`.
    """
    sections = _sections(cls)
    values: dict[str, dict[str, Any]] = {name: {} for name in sections}
    if file is not None:
        _merge(values, _read_toml(file), sections, str(file))
    env = _without_services(env or {})
    _merge_env(values, env, sections)
    for key, value in (flags or {}).items():
        if value is not None:
            section, _, name = key.partition(".")
            _merge(values, {section: {name: value}}, sections, "flag")
            if isinstance(value, str):
                values[section][name] = _from_text(value, get_type_hints(sections[section])[name])
    named = {str(value) for members in values.values() for name, value in members.items() if name.endswith("_env")}
    _refuse_strays(sorted(set(env) - named), [cls, *others])
    built = {name: build(kind, values[name], name) for name, kind in sections.items()}
    return cls(**built)


def _sections(cls: type[Any]) -> dict[str, type[Any]]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(f"The configuration file {file} does not exist.") from None
    except IsADirectoryError:
        raise BadConfigValue(f"The configuration file {file} is a folder: name a TOML file.") from None
    except OSError as error:
        raise BadConfigValue(f"The configuration file {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfigValue(f"The configuration file {file} is not valid TOML: {error}.") from error


def _merge(
    values: dict[str, dict[str, Any]], layer: Mapping[str, Any], sections: Mapping[str, type[Any]], where: str
) -> None:
    for section, members in layer.items():
        if section not in sections:
            raise _unknown(section, sections, where)
        if not isinstance(members, Mapping):
            raise BadConfigValue(f"'{section}' ({where}) is a section: write it as a table [{section}].", param=section)
        names = [field.name for field in dataclasses.fields(sections[section])]
        for name, value in members.items():
            if name not in names:
                raise _unknown(f"{section}.{name}", [f"{section}.{n}" for n in names], where)
            values[section][name] = value


def _merge_env(values: dict[str, dict[str, Any]], env: Mapping[str, str], sections: Mapping[str, type[Any]]) -> None:
    for key, text in env.items():
        for section, kind in sections.items():
            prefix = f"{ENV_PREFIX}{section}_".upper()
            if key.startswith(prefix):
                known = {field.name.upper(): field.name for field in dataclasses.fields(kind)}
                name = known.get(key[len(prefix) :])
                if name is None:
                    raise _unknown(key, [prefix + upper for upper in known], "environment")
                values[section][name] = _from_text(text, get_type_hints(kind)[name])


def _without_services(env: Mapping[str, str]) -> dict[str, str]:
    """Our variables, less what Kubernetes sets in every container beside a service called codriver or codriver-…"""
    return {
        key: text
        for key, text in env.items()
        if key.startswith(ENV_PREFIX) and not _SERVICE.fullmatch(key) and not text.startswith(_SERVICE_URLS)
    }


def _refuse_strays(keys: Iterable[str], classes: Iterable[type[Any]]) -> None:
    """Raise :class:`UnknownConfigKey` for a variable with our prefix that sets nothing: it is misspelt."""
    sections = {f"{ENV_PREFIX}{name}_".upper() for cls in classes for name in _sections(cls)}
    for key in keys:
        if key.startswith(tuple(sections)) or key in _OTHER_VARIABLES or key.endswith("API_KEY"):
            continue
        known = {setting.env for cls in classes for setting in describe(cls)} | _OTHER_VARIABLES
        near = difflib.get_close_matches(
            key.removeprefix(ENV_PREFIX), [one.removeprefix(ENV_PREFIX) for one in sorted(known)], n=1
        )
        begins = ", ".join(sorted(section + "…" for section in sections))
        hint = f"Did you mean '{ENV_PREFIX}{near[0]}'?" if near else f"Settings begin with {begins}"
        raise UnknownConfigKey(f"Unknown configuration key '{key}' (environment). {hint}", param=key)


def _unknown(key: str, known: Any, where: str) -> UnknownConfigKey:
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else f" Allowed: {', '.join(sorted(known))}."
    return UnknownConfigKey(f"Unknown configuration key '{key}' ({where}).{hint}", param=key)


def _from_text(text: str, hint: Any) -> Any:
    kinds = _alternatives(hint)
    if bool in kinds and text.lower() in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        return text.lower() in ("true", "1", "yes", "on")
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if any(get_origin(kind) in (list, tuple) for kind in kinds):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(str(value) for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type_name(kind) for kind in get_args(hint))
    if hint is type(None):
        return "none"
    return str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))


def build(kind: type[Any], members: Mapping[str, Any], section: str) -> Any:
    """A dataclass made of settings, from a table. Errors: :class:`UnknownConfigKey`, :class:`BadConfigValue`."""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in members:
        if name not in fields:
            raise _unknown(name, fields, section)
    checked = {
        name: _check(f"{section}.{name}", value, hints[name], fields[name].metadata) for name, value in members.items()
    }
    return kind(**checked)


def _check(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    for kind in _alternatives(hint):
        fits, converted = _fit(value, kind)
        if fits:
            _check_bounds(key, converted, metadata)
            return converted
    raise BadConfigValue(f"'{key}' is {value!r}; allowed: {_type_name(hint)}.", param=key)


def _fit(value: Any, kind: Any) -> tuple[bool, Any]:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind), value
    if origin is tuple:
        return isinstance(value, (list, tuple)), tuple(value) if isinstance(value, (list, tuple)) else value
    if kind is Path:
        return isinstance(value, (str, Path)), Path(value).expanduser() if isinstance(value, (str, Path)) else value
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool), value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, origin or kind), value


def _check_bounds(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    least, most = metadata.get("least"), metadata.get("most")
    low = least is not None and isinstance(value, (int, float)) and value < least
    high = most is not None and isinstance(value, (int, float)) and value > most
    if low or high:
        bounds = " and ".join(
            f"{word} {bound}" for word, bound in (("at least", least), ("at most", most)) if bound is not None
        )
        raise BadConfigValue(f"'{key}' is {value!r}; allowed: {bounds}.", param=key)
