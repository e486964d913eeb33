"""What the console shows besides requests: the process, its engines and its settings.

Rule: only settings of the sections and names listed here are shown, none of them a secret or a place on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codriver import __version__
from codriver.core.config import describe
from codriver.core.engine import Engine
from codriver.route.lineup import Lineup
from codriver.route.semantic import NO_ROUTES, NoRoutes

# A section's settings that are shown: all of them, or these.
_SHOWN: dict[str, tuple[str, ...] | None] = {
    "route": None,
    "privacy": ("phone_regions",),
    "link": None,
    "breaker": None,
    "engine": (
        "kind",
        "model",
        "threads",
        "slots",
        "context_tokens",
        "upstream_url",
        "upstream_model",
        "upstream_prefill",
    ),
    "cloud": (
        "url",
        "model",
        "peer",
        "prefill",
        "verify",
        "verify_least",
        "context_tokens",
        "input_usd",
        "output_usd",
        "images",
    ),
    "heat": ("target", "every_s", "hysteresis_c", "hysteresis_share"),
    "gateway": ("request_limit_s", "grace_s", "body_limit_bytes", "max_in_flight", "max_connections", "drain_s"),
    "observe": ("log_level", "spans", "sample_ratio"),
}
_SECRET_ENDS = ("_key", "_keys", "_key_env", "_file", "_password", "_secret")


def console_state(
    kind: str, config: Any, models: Iterable[str], lineup: Lineup, semantic: NoRoutes = NO_ROUTES
) -> dict[str, Any]:
    """``kind`` is vehicle or cloud; ``models`` are the names that a client may ask for."""
    return {
        "version": __version__,
        "kind": kind,
        "models": list(models),
        "engines": [_engine(name, engine, lineup.breakers[name].state) for name, engine in lineup.engines.items()],
        "routes": semantic.shown(),
        "settings": shown_settings(config),
    }


def shown_settings(config: Any) -> list[dict[str, Any]]:
    """Key, value and sentence of every setting that may be seen."""
    shown = []
    for setting in describe(type(config)):
        section, _, name = setting.key.partition(".")
        names = _SHOWN.get(section, ())
        if (names is None or name in names) and not name.endswith(_SECRET_ENDS):
            value = getattr(getattr(config, section), name)
            shown.append({"key": setting.key, "value": _plain(name, value), "sentence": setting.sentence})
    return shown


def _engine(name: str, engine: Engine, breaker: str) -> dict[str, Any]:
    card = engine.card
    return {
        "name": name,
        "locality": card.locality,
        "model": _last_part(card.model),
        "modalities": sorted(card.modalities),
        "capabilities": sorted(card.capabilities),
        "context_tokens": card.context_tokens,
        "input_usd": card.price.input_usd,
        "output_usd": card.price.output_usd,
        "health": engine.health(),
        "breaker": breaker,
    }


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and name.endswith("url"):
        return _address(value)
    if isinstance(value, str) and name == "model":
        return _last_part(value)
    return list(value) if isinstance(value, (tuple, frozenset)) else value


def _address(url: str) -> str:
    """The address without a name, a password or a query, which may hold a key."""
    if not url:
        return ""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _last_part(model: str) -> str:
    """A path's last part: the rest is a place on this machine's disk."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model
