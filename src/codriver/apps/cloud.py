"""A cloud: one bigger model behind the same API, or a server that is already there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from codriver.core.engine import Engine
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.gateway import Console, Gateway, Listening, serve
from codriver.observe.journal import Journal
from codriver.observe.logs import configure_logs
from codriver.observe.metrics import Metrics
from codriver.observe.setup import configure_spans
from codriver.route.lineup import Lineup
from codriver.route.trailing import GoesOn

from .console import page_files
from .console.state import console_state
from .engines import start_on_board
from .services import Service
from .settings import CloudConfig


@dataclass
class Cloud:
    """The parts of a running cloud, filled in by its services in order."""

    config: CloudConfig
    metrics: Metrics = field(default_factory=Metrics)
    engine: Engine | None = None
    listening: Listening | None = None


@asynccontextmanager
async def observe(cloud: Cloud) -> AsyncIterator[None]:
    configure_logs(cloud.config.observe)
    flush = configure_spans(
        cloud.config.observe, "codriver-cloud", cloud.config.catalogue.store().root / "spans" / "cloud", cloud.metrics
    )
    try:
        yield
    finally:
        flush()


@asynccontextmanager
async def engine(cloud: Cloud) -> AsyncIterator[None]:
    settings = cloud.config.engine
    if settings.upstream_url:
        upstream = OpenAIConfig(
            id="cloud",
            url=settings.upstream_url,
            model=settings.upstream_model,
            api_key_env=settings.upstream_key_env,
            prefill=settings.upstream_prefill,
        )
        cloud.engine = GoesOn(OpenAIServer(upstream))
    else:
        engine = await start_on_board(settings, cloud.config.catalogue, "cloud")
        # llama.cpp takes a trailing assistant message so by itself, with tools and JSON too.
        cloud.engine = engine if engine.card.can("json_resume") else GoesOn(engine)
    try:
        yield
    finally:
        await cloud.engine.aclose()


@asynccontextmanager
async def gateway(cloud: Cloud) -> AsyncIterator[None]:
    assert cloud.engine is not None
    app = Gateway({"cloud": cloud.engine}, "cloud", cloud.config.gateway, cloud.metrics)
    if cloud.config.gateway.console:
        engines = {"cloud": cloud.engine}
        state = partial(console_state, "cloud", cloud.config, engines, Lineup(engines))
        app.show(Console(Journal(), page_files(), engines, state))
    cloud.listening = await serve(app, cloud.config.gateway)
    try:
        yield
    finally:
        await cloud.listening.aclose()


TABLE: tuple[Service[Cloud], ...] = (
    Service("observe", observe),
    Service("engine", engine),
    Service("gateway", gateway),
)
