"""The file of semantic routes: TOML in, checked rules out.

A route is a table ``[route.NAME]`` with example sentences and the policy for requests like them; ``other`` holds
sentences that no route shall take; ``[cache]`` bounds the answers kept for routes that set ``cache``. Limits: 64
routes, 4096 examples, 400 characters an example. The rule kept: an unknown key or a bad value is an error that names
the file, the route, the key and what is allowed; nothing is guessed.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec

from codriver.core.errors import BadConfigValue, MissingFile, UnknownConfigKey
from codriver.core.messages import Failover, Policy, Privacy
from codriver.core.parsing import allowed_values
from codriver.core.privacy import strictest

KEY = "route.semantic_file"
MOST_ROUTES = 64
MOST_EXAMPLES = 4096
_FEWEST_EXAMPLES = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
# Names that the metric uses for requests without a route.
_TAKEN = ("none", "failed", "other")

Unit = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Example = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One route. What is ``None`` is left to the request and the configuration.

    ``tools`` are the names of the tools that a request of this route may keep. A ``personal`` route is never cached.
    ``threshold`` replaces the calibrated one.
    """

    examples: tuple[Example, ...]
    policy: Policy | None = None
    engine: str | None = None
    privacy: Privacy | None = None
    failover: Failover | None = None
    deadline_ms: Positive | None = None
    first_token_ms: Positive | None = None
    budget_usd: Annotated[float, msgspec.Meta(ge=0)] | None = None
    tools: tuple[str, ...] | None = None
    personal: bool = False
    cache: bool = False
    threshold: Unit | None = None


class CacheRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``threshold``: least cosine between two questions that get one answer."""

    threshold: Unit = 0.97
    ttl_s: Positive = 3600.0
    entries: Count = 256


class RoutesFile(msgspec.Struct, frozen=True):
    """``margin``: how far the best route's score must be above the next one's."""

    route: dict[str, Rule]
    other: tuple[str, ...] = ()
    cache: CacheRule = CacheRule()
    margin: float = 0.02

    @property
    def strictest(self) -> Privacy:
        """The strictest privacy class that any route names."""
        return strictest("any", *(rule.privacy for rule in self.route.values()))

    def texts(self) -> list[str]:
        """Every example once."""
        every = [text for rule in self.route.values() for text in rule.examples]
        return list(dict.fromkeys([*every, *self.other]))


class _Top(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    route: dict[str, dict[str, Any]]
    other: tuple[Example, ...] = ()
    cache: dict[str, Any] = {}
    margin: Unit = 0.02


def read_routes(file: Path, engines: Collection[str] | None = None) -> RoutesFile:
    """The rules of ``file``; ``engines`` are the names that a route may pin, ``None``: not known here.

    Errors: :class:`MissingFile`, :class:`UnknownConfigKey`, :class:`BadConfigValue`.
    """
    try:
        members = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(f"The routes file {file} does not exist.", param=KEY) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfigValue(f"The routes file {file} cannot be read: {error}.", param=KEY) from error
    top: _Top = _convert(members, _Top, f"{file}")
    if not 1 <= len(top.route) <= MOST_ROUTES:
        raise BadConfigValue(
            f"{file}: it has {len(top.route)} routes; allowed: 1 to {MOST_ROUTES} tables [route.NAME].", param=KEY
        )
    rules: dict[str, Rule] = {}
    for name, table in top.route.items():
        where = f"{file}, route '{name}'"
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise BadConfigValue(
                f"{where}: this name is not allowed; allowed: lower-case letters, digits, - and _, at most 40 "
                f"characters, and none of {', '.join(_TAKEN)}.",
                param=KEY,
            )
        rules[name] = _checked(_convert(table, Rule, where), where, engines)
    cache: CacheRule = _convert(top.cache, CacheRule, f"{file}, [cache]")
    made = RoutesFile(rules, top.other, cache, top.margin)
    if len(made.texts()) > MOST_EXAMPLES:
        raise BadConfigValue(f"{file}: it has {len(made.texts())} examples; allowed: {MOST_EXAMPLES}.", param=KEY)
    return made


def _convert(members: Mapping[str, Any], kind: type[Any], where: str) -> Any:
    known = kind.__struct_fields__
    for key in members:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Allowed: {', '.join(known)}."
            raise UnknownConfigKey(f"{where}: unknown key '{key}'. {hint}", param=KEY)
    try:
        return msgspec.convert(members, kind)
    except msgspec.ValidationError as error:
        _refuse(error, kind, where)


def _refuse(error: msgspec.ValidationError, kind: type[Any], where: str) -> NoReturn:
    sentence, _, path = str(error).partition(" - at `")
    key = path.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    allowed = allowed_values(kind, key) if "enum" in sentence else ""
    told = f" in '{key}'" if key else ""
    raise BadConfigValue(f"{where}: not valid{told}: {sentence}.{allowed}", param=KEY) from error


def _checked(rule: Rule, where: str, engines: Collection[str] | None) -> Rule:
    """What the types alone do not tell."""
    wrong = ""
    if len(rule.examples) < _FEWEST_EXAMPLES:
        wrong = f"'examples' has {len(rule.examples)} sentences; allowed: at least {_FEWEST_EXAMPLES}"
    elif any(not text.strip() for text in rule.examples):
        wrong = "'examples' holds an empty sentence"
    elif rule.engine is not None and rule.policy is not None:
        wrong = "'engine' and 'policy' contradict each other: an engine by name leaves nothing to choose"
    elif rule.engine is not None and engines is not None and rule.engine not in engines:
        wrong = f"'engine' is '{rule.engine}'; allowed: {', '.join(engines)}"
    elif rule.privacy == "local_only" and rule.policy == "cloud-only":
        wrong = f"'privacy' {rule.privacy} and 'policy' cloud-only contradict each other"
    elif rule.cache and (rule.personal or rule.privacy == "local_only"):
        why = "personal" if rule.personal else rule.privacy
        wrong = f"'cache' is true; allowed: false, because the route is {why}"
    if wrong:
        raise BadConfigValue(f"{where}: {wrong}.", param=KEY)
    return rule
