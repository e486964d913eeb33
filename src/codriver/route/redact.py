"""``redact``: what a cloud engine reads has placeholders where personal data stood, and its answer is put right here.

:class:`Privacy` decides before a plan is made: a request whose data can be found gets a :class:`Veil` over the cloud
engines, and one whose cannot (no detector, pictures, encoded data, a failure) becomes ``local_only``. The engines of
the vehicle always read the original, and so do session and client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard, Health
from codriver.core.errors import Forbidden
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    RequestOptions,
    TensorRequest,
    Tensors,
)
from codriver.core.messages import Privacy as PrivacyClass
from codriver.core.plan import AttemptPlan, PlanError
from codriver.core.privacy import Detector, NoDetector, Unreadable, strictest
from codriver.privacy import NameFinder

from .conceal import Concealer
from .condense import Edged
from .personalise import Personaliser
from .vault import Vault


class NoVeil:
    """For a request that needs none: engines as they are. ``asked`` is the class that counted, ``vault`` what a session
    keeps.
    """

    asked: PrivacyClass = "any"
    vault: Vault | None = None

    def over(self, engines: Mapping[str, Engine]) -> Mapping[str, Engine]:
        return engines

    def told(self) -> dict[str, Any]:
        """What the answer's extension says beside the privacy class."""
        return {}


class StaysLocal(NoVeil):
    """For a request that was to be redacted and cannot be. ``why`` quotes nothing of it."""

    asked = "redact"

    def __init__(self, why: str) -> None:
        self.why = why

    def told(self) -> dict[str, Any]:
        return {"not_redacted": self.why}


class Veil(NoVeil):
    """One request's redaction. ``concealer`` has learnt the request."""

    asked = "redact"

    def __init__(self, concealer: Concealer, vault: Vault) -> None:
        self._concealer = concealer
        self.vault: Vault = vault

    def over(self, engines: Mapping[str, Engine]) -> Mapping[str, Engine]:
        return {
            name: Veiled(engine, self._concealer, self.vault) if engine.card.locality != "vehicle" else engine
            for name, engine in engines.items()
        }

    def told(self) -> dict[str, Any]:
        """How many different data of each kind went out as placeholders; never the data."""
        return {"redacted": self._concealer.counts()}


class Veiled:
    """A cloud engine that is given placeholders and gives values. Errors: those of the engine, and :class:`Forbidden`
    where a request cannot be redacted: nothing is sent then.
    """

    def __init__(self, engine: Engine, concealer: Concealer, vault: Vault) -> None:
        self._engine = engine
        self._concealer = concealer
        self._vault = vault

    @property
    def card(self) -> EngineCard:
        return self._engine.card

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncGenerator[ChatChunk, None]:
        try:
            # A draft is the vehicle's own words: it may say what the request does not.
            hidden = self._concealer.request(msgspec.structs.replace(request, draft=None))
        except Unreadable as reason:
            raise Forbidden(
                f"The request cannot be redacted ({reason}): nothing was sent to '{self.card.id}'.",
                param="codriver.privacy",
            ) from None
        wants = request.response_format
        personaliser = Personaliser(self._vault.values, json=wants is not None and wants.type != "text")
        answer = cast("AsyncGenerator[ChatChunk, None]", self._engine.generate(hidden, deadline))
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                shown = personaliser.take(chunk)
                if shown is not None:
                    yield shown

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        raise Forbidden("Texts to embed cannot be redacted; they stay in the vehicle.", param="codriver.privacy")

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        raise Forbidden("Tensors cannot be redacted; they stay in the vehicle.", param="codriver.privacy")

    def health(self) -> Health:
        return self._engine.health()

    async def aclose(self) -> None:
        """Nothing: the engine is its maker's to close."""


class _Local(NoVeil):
    asked = "local_only"


NO_VEIL = NoVeil()
_LOCAL = _Local()


def refuse_leak(plan: AttemptPlan, engines: Mapping[str, Engine]) -> None:
    """Raise :class:`PlanError` for a plan whose engines would read what its privacy class keeps from them."""
    if plan.privacy == "any":
        return
    for attempt in plan.attempts:
        engine = engines[attempt.engine]
        if engine.card.locality == "vehicle":
            continue
        if plan.privacy == "local_only" or not isinstance(engine, Veiled):
            raise PlanError(f"a {plan.privacy} request must not reach {attempt.engine}")


class Privacy:
    """``least`` is the vehicle's own class, under which no request goes."""

    def __init__(self, detector: Detector | None = None, least: PrivacyClass = "any") -> None:
        self._detector = detector or NoDetector()
        self._least = least

    def prepare(
        self, request: ChatRequest, vault_of: Callable[[ChatRequest], Vault], edges: Sequence[Edged] = ()
    ) -> tuple[ChatRequest, NoVeil]:
        """The request with the class that counts, its own or the vehicle's, and the veil for it. ``edges``: where parts
        of documents in it were cut.
        """
        options = request.codriver
        asked = strictest(self._least, options.privacy) if options is not None else self._least
        if asked == "any":
            return request, NO_VEIL
        if asked == "local_only":
            return _with(request, asked), _LOCAL
        vault = vault_of(request)
        entities = request.codriver.entities if request.codriver is not None else None
        concealer = Concealer(self._detector, NameFinder(entities or ()), vault)
        try:
            if self._detector.why_not:
                raise Unreadable(self._detector.why_not)
            concealer.learn(request, edges)
        except Unreadable as reason:
            return _with(request, "local_only"), StaysLocal(str(reason))
        return _with(request, asked), Veil(concealer, vault)


def _with(request: ChatRequest, privacy: PrivacyClass) -> ChatRequest:
    options = request.codriver or RequestOptions()
    if options.privacy == privacy:
        return request
    return msgspec.structs.replace(request, codriver=msgspec.structs.replace(options, privacy=privacy))
