"""A car's decision on a prompt without its engines: stand-ins carry their cards, so that nothing is loaded or asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Literal

from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, Engine, EngineCard, Price
from codriver.core.messages import ChatRequest, Message
from codriver.engines.null import Null, NullConfig
from codriver.route.decide import Decider
from codriver.route.explain import explain
from codriver.route.lineup import Lineup
from codriver.route.link import LinkEstimate, SteadyLink

from .engines import start_embedder
from .quality import known_quality
from .settings import VehicleConfig

State = Literal["up", "degraded", "down"]
# The time limit of a running car keeps a request moving; here the first run may load the graph.
_READ_S = 5.0


class AssumedLink:
    """A link in a state that someone named."""

    def __init__(self, state: State) -> None:
        self.state: State = state
        self._estimate = replace(SteadyLink().estimate(), state=state)

    def estimate(self) -> LinkEstimate:
        return self._estimate

    def on_down(self, listener: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


async def explained(config: VehicleConfig, prompt: str, state: State) -> str:
    """Errors: those of ``Decider.plan``, and of files that the configuration names."""
    patient = replace(config, route=replace(config.route, read_within_s=max(_READ_S, config.route.read_within_s)))
    async with AsyncExitStack() as stack:
        embedder = start_embedder(config.engine, config.catalogue)
        if embedder is not None:
            stack.push_async_callback(embedder.aclose)
        lineup = Lineup(_stand_ins(config), AssumedLink(state), known_quality(patient, embedder))
        request = ChatRequest(messages=[Message(role="user", content=prompt)], stream=True)
        await lineup.quality.read(request, Deadline.after(2 * _READ_S))
        decider = Decider(lineup, config.route)
        sentence = explain(lineup, decider, request, decider.plan(request), "assumed")
    return sentence if config.cloud.url else f"{sentence.removesuffix('.')}; no cloud is configured."


def _stand_ins(config: VehicleConfig) -> dict[str, Engine]:
    able: frozenset[Capability] = frozenset({"chat", "completions", "tools", "json_schema", "logprobs"})
    vehicle = Null(NullConfig(id="vehicle"))
    vehicle.card = EngineCard(
        "vehicle", "vehicle", config.engine.model, capabilities=able, context_tokens=config.engine.context_tokens
    )
    engines: dict[str, Engine] = {"vehicle": vehicle}
    if config.cloud.url:
        cloud = Null(NullConfig(id="cloud", locality="cloud"))
        price = Price(config.cloud.input_usd, config.cloud.output_usd)
        cloud.card = EngineCard(
            "cloud", "cloud", config.cloud.model, capabilities=able, context_tokens=config.cloud.context_tokens,
            price=price,
        )  # fmt: skip
        engines["cloud"] = cloud
    return engines
