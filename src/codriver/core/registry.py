"""One way to name things that are loaded on use: engines, and whatever later rooms make choosable.

An entry is a name and a ``"module:attr"`` string. Nothing is imported until the entry is loaded, so a missing extra
costs an entry, not the program. Third parties add entries through the entry-point group named after the registry.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from .errors import MissingExtra, UnknownEntry


class Registry:
    """``kind`` is the singular word for messages (``engine``), ``group`` the entry-point group.

    ``needs`` maps an entry to the importable modules it needs and the extra that brings them: ``{"openvino":
    (("openvino_genai",), "openvino")}``. ``checks`` are further reasons, called only by :meth:`why_not`.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        entries: Mapping[str, str],
        needs: Mapping[str, tuple[tuple[str, ...], str]] | None = None,
        checks: Mapping[str, Callable[[], str | None]] | None = None,
    ) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._needs = dict(needs or {})
        self._checks = dict(checks or {})
        for point in entry_points(group=group):
            self._entries.setdefault(point.name, point.value)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def why_not(self, name: str) -> str | None:
        """Why the entry cannot be used here, as a sentence; ``None`` when it can. Nothing heavy is imported."""
        self._target(name)
        modules, extra = self._needs.get(name, ((), ""))
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            return f"{', '.join(missing)} is not installed; add it with: pip install 'codriver[{extra}]'"
        check = self._checks.get(name)
        return check() if check else None

    def load(self, name: str) -> Any:
        """The entry's object. Errors: :class:`UnknownEntry`, :class:`MissingExtra`."""
        reason = self.why_not(name)
        if reason:
            raise MissingExtra(f"The {self.kind} '{name}' cannot be used here: {reason}.")
        module, _, attribute = self._target(name).partition(":")
        return getattr(importlib.import_module(module), attribute)

    def _target(self, name: str) -> str:
        try:
            return self._entries[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UnknownEntry(f"There is no {self.kind} '{name}'.{hint} Known: {', '.join(self.names())}.") from None
