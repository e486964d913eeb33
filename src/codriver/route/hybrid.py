"""``HybridEngine``: the router as an Engine. Whoever can talk to one engine can talk to all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard, Health
from codriver.core.errors import CodriverError, UnsupportedModality
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, Message, TensorRequest, Tensors
from codriver.core.privacy import Detector, strictest

from .condense import condenser
from .config import RouteConfig
from .decide import Decider
from .execute import Run
from .lineup import Lineup
from .redact import NoVeil, Privacy
from .semantic import NO_ROUTES, NoRoutes
from .sessions import Sessions


class HybridEngine:
    """One engine made of those in ``lineup``. It does not own them: whoever made them closes them."""

    def __init__(
        self,
        lineup: Lineup,
        config: RouteConfig | None = None,
        name: str = "codriver",
        detector: Detector | None = None,
        semantic: NoRoutes = NO_ROUTES,
    ) -> None:
        self._semantic = semantic
        self._config = config or RouteConfig()
        self._lineup = lineup if self._config.link_aware else lineup.without_link()
        self._decider = Decider(self._lineup, self._config)
        self._privacy = Privacy(detector, self._config.privacy)
        cards = [engine.card for engine in lineup.engines.values()]
        # About four characters to a token; a quarter of the context is left for what is new and for the answer.
        contexts = [card.context_tokens for card in cards if card.locality == "vehicle" and card.can("chat")]
        least_tokens = min(filter(None, contexts), default=0)
        self._sessions = Sessions(self._config.sessions, self._config.session_messages, 3 * least_tokens)
        self._condenser = condenser(self._config, tuple(lineup.engines.values()), least_tokens)
        self.card = EngineCard(
            id=name,
            locality="vehicle",
            model=name,
            modalities=frozenset().union(*(card.modalities for card in cards)),
            capabilities=frozenset[Capability]({"context"}).union(*(card.capabilities for card in cards)),
            context_tokens=max((card.context_tokens for card in cards), default=0),
        )

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncGenerator[ChatChunk, None]:
        """Rule, condense, read, plan, run, remember. Errors: those of ``Decider.plan`` and ``Run.chunks``."""
        whole, ruling = await self._semantic.rule(self._sessions.extend(request), deadline)
        condensed = None
        if ruling.answer is None and whole.codriver is not None and whole.codriver.context is not None:
            condensed = await self._condenser.apply(whole, deadline)
            whole = condensed.request
        edges = () if condensed is None else condensed.edges
        whole, veil = self._privacy.prepare(whole, self._sessions.vault, edges)
        if ruling.answer is not None:
            answer = Answer()
            for chunk in ruling.answer:
                answer.add(chunk)
                yield chunk
            self._record(request, answer, veil)
            return
        await self._lineup.quality.read(whole, deadline)
        plan = self._decider.plan(whole, deadline.remaining_s())
        run = Run(self._lineup.veiled(veil), self._config, plan, whole, deadline)
        run.told = ruling.told if condensed is None else {**ruling.told, **condensed.told}
        async with aclosing(run.chunks()) as stream:
            async for chunk in stream:
                yield chunk
        ruling.keep(run)
        self._record(request, run.answer, veil)

    def _record(self, request: ChatRequest, answer: Answer, veil: NoVeil) -> None:
        """Keep the exchange in the conversation that the request names, if it names one."""
        if request.codriver is not None and request.codriver.session:
            done = answer.completion().choices[0].message
            told = Message(role="assistant", content=done.content, tool_calls=done.tool_calls or None)
            self._sessions.record(request, told, veil.asked, veil.vault)

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        """By the first engine that can, the vehicle's before the cloud's."""
        error: CodriverError | None = None
        # A vector tells much of its text, and a text with placeholders has another one.
        local = strictest(request.privacy, self._config.privacy) != "any"
        for name in self._able("embeddings", local):
            try:
                return await self._lineup.engines[name].embed(request, deadline)
            except CodriverError as failure:
                error = failure
        raise error or UnsupportedModality("No engine here makes embeddings.", param="model")

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        """By the first engine that can, the vehicle's before the cloud's."""
        error: CodriverError | None = None
        for name in self._able("tensors", self._config.privacy != "any"):
            try:
                return await self._lineup.engines[name].infer(request, deadline)
            except CodriverError as failure:
                error = failure
        raise error or UnsupportedModality("No engine here runs tensor graphs.", param="model")

    def _able(self, capability: str, local: bool) -> list[str]:
        names = [*self._lineup.of("vehicle"), *(() if local else self._lineup.of("cloud"))]
        return [
            name
            for name in names
            if capability in self._lineup.engines[name].card.capabilities and not self._lineup.link_down(name)
        ]

    def health(self) -> Health:
        """Ready as soon as any engine is; otherwise the best that any of them says."""
        found = [engine.health() for engine in self._lineup.engines.values()]
        order = {"ready": 0, "busy": 1, "loading": 2, "down": 3}
        return min(found, key=lambda health: order[health.state], default=Health("down", reason="no engine is set up"))

    async def aclose(self) -> None:
        """Nothing: see the class."""
