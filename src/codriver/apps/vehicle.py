"""A vehicle: the model on board, the way to the cloud, the router between them, and the API in front."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

from codriver.core.cadence import Cadence
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, LinkObserver, NoLink
from codriver.core.errors import BadConfigValue, NoCloudConfigured
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.engines.swapping import SwappingEngine
from codriver.gateway import Console, Gateway, Listening, serve
from codriver.gateway.tls import client_context
from codriver.observe.journal import Journal
from codriver.observe.logs import configure_logs
from codriver.observe.metrics import Metrics
from codriver.observe.setup import configure_spans
from codriver.privacy.detect import make_detector
from codriver.route.condition import Sysfs
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.link import LinkMonitor, LinkView, SteadyLink
from codriver.route.pinned import PinnedEngine
from codriver.route.quality import Quality
from codriver.route.semantic import NO_ROUTES, NoRoutes, SemanticRoutes
from codriver.route.spending import NO_SPENDING, DaySpending, NoSpending

from .console import page_files
from .console.state import console_state
from .engines import no_embedder, start_embedder, start_on_board
from .quality import known_quality
from .services import Service
from .settings import VehicleConfig

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass
class Vehicle:
    """The parts of a running vehicle, filled in by its services in order."""

    config: VehicleConfig
    metrics: Metrics = field(default_factory=Metrics)
    journal: Journal = field(default_factory=Journal)
    engines: dict[str, Engine] = field(default_factory=dict)
    link: LinkView = field(default_factory=SteadyLink)
    quality: Quality = field(default_factory=Quality)
    semantic: NoRoutes = NO_ROUTES
    cadence: Cadence = field(default_factory=Cadence)
    models: Mapping[str, Engine] = field(default_factory=dict)
    listening: Listening | None = None


@asynccontextmanager
async def observe(car: Vehicle) -> AsyncIterator[None]:
    configure_logs(car.config.observe)
    flush = configure_spans(
        car.config.observe, "codriver-vehicle", car.config.catalogue.store().root / "spans" / "vehicle", car.metrics
    )
    try:
        yield
    finally:
        flush()


@asynccontextmanager
async def on_board_engine(car: Vehicle) -> AsyncIterator[None]:
    engine = await start_on_board(car.config.engine, car.config.catalogue, "vehicle")
    car.engines["vehicle"] = engine
    try:
        yield
    finally:
        await engine.aclose()


@asynccontextmanager
async def heat(car: Vehicle) -> AsyncIterator[None]:
    """The engine on board follows the table of actions of the computer that it runs on, where one is named."""
    if not car.config.heat.target:
        yield
        return
    from .heat import governor, paced

    engine = SwappingEngine(paced(car.engines["vehicle"], car.cadence))
    rules = governor(car.config.heat, car.config.engine, engine, car.config.catalogue, car.cadence)
    rules.metrics = car.metrics
    car.engines["vehicle"] = engine
    governing = asyncio.create_task(rules.run())
    try:
        yield
    finally:
        governing.cancel()
        with suppress(asyncio.CancelledError):
            await governing
        await engine.aclose()


@asynccontextmanager
async def embedder(car: Vehicle) -> AsyncIterator[None]:
    """Sentence embeddings, where the extra and the files are there; ``codriver doctor`` says when they are not."""
    engine = start_embedder(car.config.engine, car.config.catalogue)
    if engine is None:
        yield
        return
    car.engines["embedder"] = engine
    try:
        yield
    finally:
        await engine.aclose()


@asynccontextmanager
async def cloud_engine(car: Vehicle) -> AsyncIterator[None]:
    """The cloud as an engine, and the monitor of the link to it. Without a cloud's address there is neither."""
    settings = car.config.cloud
    if not settings.url:
        if car.config.route.policy in ("cloud-only", "cloud-first"):
            raise NoCloudConfigured(
                f"The policy '{car.config.route.policy}' needs a cloud: give its address with --cloud-url.",
                param="cloud.url",
            )
        yield
        return

    def probe() -> Awaitable[float]:
        return server.probe(Deadline.after(car.config.link.retry_s))

    monitor = LinkMonitor(probe, car.config.link, metrics=car.metrics, journal=car.journal)
    monitor.cadence = car.cadence
    observer: LinkObserver = monitor if car.config.route.link_aware else NoLink()
    server = OpenAIServer(_cloud_config(car.config), observer, _cloud_tls(car.config))
    car.engines["cloud"] = server
    probing = None
    if car.config.route.link_aware:
        car.link = monitor
        probing = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        if probing is not None:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
        await server.aclose()


@asynccontextmanager
async def quality(car: Vehicle) -> AsyncIterator[None]:
    """What this car knows of its engines; with an embedder, by what each request says."""
    car.quality = known_quality(car.config, car.engines.get("embedder"))
    yield


@asynccontextmanager
async def semantic_routes(car: Vehicle) -> AsyncIterator[None]:
    """What requests are about decides for them, where a file of routes is given. It needs the sentence embedder."""
    file = car.config.route.semantic_file
    if file is None:
        yield
        return
    embedder = car.engines.get("embedder")
    if embedder is None:
        raise no_embedder(car.config.engine)
    engines = [name for name, engine in car.engines.items() if engine.card.can("chat")]
    car.semantic = await SemanticRoutes.start(file, embedder, engines, car.metrics)
    try:
        yield
    finally:
        await car.semantic.aclose()


@asynccontextmanager
async def gateway(car: Vehicle) -> AsyncIterator[None]:
    lineup = Lineup(
        car.engines,
        car.link,
        car.quality,
        car.metrics,
        breaker_config=car.config.breaker,
        spending=_spending(car.config),
        sensors=Sysfs(),
    )
    detector = make_detector(car.config.privacy)
    hybrid = HybridEngine(lineup, car.config.route, detector=detector, semantic=car.semantic)
    least = car.config.route.privacy
    car.models = {"codriver": hybrid, **{name: PinnedEngine(hybrid, lineup, name, least) for name in car.engines}}
    app = Gateway(car.models, "codriver", car.config.gateway, car.metrics)
    if car.config.gateway.console:
        state = partial(console_state, "vehicle", car.config, car.models, lineup, car.semantic)
        app.show(Console(car.journal, page_files(), car.engines, state))
    car.listening = await serve(app, car.config.gateway)
    try:
        yield
    finally:
        await car.listening.aclose()


TABLE: tuple[Service[Vehicle], ...] = (
    Service("observe", observe),
    Service("vehicle engine", on_board_engine),
    Service("heat", heat),
    Service("embedder", embedder),
    Service("cloud engine", cloud_engine),
    Service("quality", quality),
    Service("semantic routes", semantic_routes),
    Service("gateway", gateway),
)


def _spending(config: VehicleConfig) -> NoSpending:
    limit_usd = config.route.budget_day_usd
    return (
        NO_SPENDING
        if limit_usd is None
        else DaySpending(limit_usd, config.route.spent_file or config.catalogue.store().root / "spent.json")
    )


def _cloud_config(config: VehicleConfig) -> OpenAIConfig:
    cloud = config.cloud
    prefill = cloud.prefill if cloud.prefill != "auto" else "peer" if cloud.peer else "none"
    if cloud.verify == "vllm" and prefill != "vllm":
        raise BadConfigValue(
            f"cloud.verify is 'vllm' and cloud.prefill '{cloud.prefill}': a draft is scored as the beginning of an "
            "answer, so set cloud.prefill to 'vllm' too.",
            param="cloud.verify",
        )
    return OpenAIConfig(
        id="cloud",
        url=cloud.url,
        model=cloud.model or ("cloud" if cloud.peer else ""),
        api_key_env=cloud.api_key_env,
        modalities=("text", "image") if cloud.images else ("text",),
        capabilities=("chat", "completions", "tools", "json_schema", "logprobs"),
        prefill=prefill,
        verify=cloud.verify,
        verify_least=cloud.verify_least,
        context_tokens=cloud.context_tokens,
        input_usd=cloud.input_usd,
        output_usd=cloud.output_usd,
        health_path="/healthz" if cloud.peer else "/health",
        peer=cloud.peer,
    )


def _cloud_tls(config: VehicleConfig) -> ssl.SSLContext | None:
    cloud = config.cloud
    address = urlsplit(cloud.url)
    if address.scheme == "http" and address.hostname not in _LOOPBACK:
        raise BadConfigValue(
            f"The cloud's address {cloud.url} is plain http, which is taken on loopback only: use https "
            "(make certificates with: codriver keys init).",
            param="cloud.url",
        )
    if address.scheme != "https":
        return None
    return client_context(cloud.tls_ca, cloud.tls_cert, cloud.tls_key)
