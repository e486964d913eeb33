"""API keys: read once, kept as SHA-256 digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from codriver.core.errors import BadConfigValue, MissingFile, Unauthorized
from codriver.core.messages import Privacy
from codriver.core.privacy import strictness

from .config import GatewayConfig

# Enough that no two of a server's keys share them, and too few to be a key's digest.
_CALLER_DIGITS = 16
_HASHED = re.compile(r"sha256:[0-9a-f]{64}", re.IGNORECASE)


class ApiKeys:
    """Who may call. Without keys everybody may: that is for loopback and for mutual TLS.

    Errors: :class:`MissingFile`, :class:`BadConfigValue`.
    """

    def __init__(self, config: GatewayConfig) -> None:
        keys = [*config.api_keys, *(_read(config.keys_file) if config.keys_file else ())]
        if config.keys_file and not keys:
            raise BadConfigValue(
                f"The key file {config.keys_file} holds no key; put one on a line, or leave gateway.keys_file out.",
                param="gateway.keys_file",
            )
        self._digests = tuple(_digest(key) for key in keys)
        self._least = dict(self._with_class(entry) for entry in config.key_privacy)

    def least_privacy(self, caller: str) -> Privacy:
        """The class under which no request of ``caller`` goes (what :meth:`check` gave)."""
        return self._least.get(caller, "any")

    def _with_class(self, entry: str) -> tuple[str, Privacy]:
        word, _, key = entry.partition("=")
        if strictness(word) < 0 or not key:
            # The entry is not quoted: it may hold a key.
            raise BadConfigValue(
                "gateway.key_privacy holds an entry that is not CLASS=KEY; allowed classes: any, redact, local_only.",
                param="gateway.key_privacy",
            )
        caller = self.caller_of(key)
        if caller is None:
            raise BadConfigValue(
                f"gateway.key_privacy gives the class {word} to a key that is neither in gateway.api_keys nor in "
                "gateway.keys_file: it would protect nothing.",
                param="gateway.key_privacy",
            )
        return caller, cast("Privacy", word)

    def caller_of(self, key: str) -> str | None:
        """What :meth:`check` gives for ``key``; ``None`` for one that may not call."""
        digest = _digest(key)
        return digest.hex()[:_CALLER_DIGITS] if digest in self._digests else None

    def check(self, authorization: bytes) -> str:
        """Who calls: hex digits of the key's digest, empty where there are no keys.

        Raises :class:`Unauthorized` unless ``authorization`` (the header's value) carries one of the keys.
        """
        if not self._digests:
            return ""
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise Unauthorized("You didn't provide an API key: send it in a header 'Authorization: Bearer YOUR_KEY'.")
        given = hashlib.sha256(token.strip()).digest()
        # Every key is compared, so that the time taken does not tell which one is near.
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        if not found:
            raise Unauthorized("Incorrect API key provided.")
        return given.hex()[:_CALLER_DIGITS]


def _digest(key: str) -> bytes:
    if _HASHED.fullmatch(key):
        return bytes.fromhex(key[7:])
    if key.lower().startswith("sha256:") or not key.strip() or not key.isascii():
        raise BadConfigValue(
            "gateway.api_keys holds an entry that is neither ASCII text nor sha256: and 64 hex digits.",
            param="gateway.api_keys",
        )
    return hashlib.sha256(key.strip().encode()).digest()


def _read(file: Path) -> Iterable[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFile(f"The key file {file} does not exist.", param="gateway.keys_file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfigValue(f"The key file {file} cannot be read: {error}.", param="gateway.keys_file") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
