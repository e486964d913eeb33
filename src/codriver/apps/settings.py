"""The configuration of a vehicle and of a cloud: every room's settings, composed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codriver.catalogue import CatalogueConfig
from codriver.core.config import setting
from codriver.gateway import GatewayConfig
from codriver.observe.config import ObserveConfig
from codriver.privacy import PrivacyConfig
from codriver.route.config import BreakerConfig, LinkConfig, RouteConfig

VEHICLE_MODEL = "smollm2-135m-instruct-q4_1"
CLOUD_MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"


@dataclass(frozen=True)
class OnBoard:
    """The engine in this process."""

    kind: Literal["llama_cpp", "openvino", "onnx_genai", "null", "auto"] = setting(
        "llama_cpp", "The runtime that loads the model; auto: the best by what `codriver engines tune` measured."
    )
    best: Literal["ttft", "decode", "memory"] = setting("ttft", "What auto goes by.")
    model: str = setting(VEHICLE_MODEL, "A catalogue name, or the path of a GGUF file.")
    threads: int = setting(0, "Threads for computing; 0 leaves one core to others.", least=0)
    slots: int = setting(4, "Answers written at the same time.", least=1)
    context_tokens: int = setting(2048, "Longest prompt and answer together, per slot.", least=64)
    prefix_file: Path | None = setting(
        None,
        "JSON file: the messages and tools that every conversation starts with; their state is kept on disk.",
    )
    openings: int = setting(
        8, "Most beginnings kept computed that several requests share (llama_cpp; in memory); 0: none.", least=0
    )
    embedder: str = setting("all-minilm-l6-v2-int8", "Sentence embedding model (ONNX); empty: none.")
    embedder_tokenizer: str = setting("all-minilm-l6-v2-tokenizer", "Its tokenizer.json.")
    embedder_integers: bool = setting(
        True, "Multiply in integers where its weights are int8; off, as float32, slower and in more memory."
    )
    null_text: str = setting(
        "The quick brown fox jumps over the lazy dog.", "What the null engine always answers; other engines think."
    )
    mmproj: str = setting("", "Projector for images, a catalogue name or a path; empty: the model reads text only.")


@dataclass(frozen=True)
class InTheCloud(OnBoard):
    """The cloud's embedded stand-in, for where no server is given."""

    model: str = setting(CLOUD_MODEL, "A catalogue name, or the path of a GGUF file.")
    slots: int = setting(2, "Answers written at the same time.", least=1)
    context_tokens: int = setting(4096, "Longest prompt and answer together, per slot.", least=64)
    upstream_url: str = setting("", "An OpenAI-compatible server that answers instead of the embedded engine.")
    upstream_model: str = setting("", "What that server calls the model.")
    upstream_key_env: str = setting("", "Environment variable that holds its API key.")
    upstream_prefill: Literal["none", "llama_cpp", "vllm"] = setting(
        "none", "How that server is asked to go on from a partial answer; none: in words, and repeats are taken off."
    )


@dataclass(frozen=True)
class CloudAccess:
    """The way to the cloud. Plain http is taken on loopback only."""

    url: str = setting("", "The cloud's address, as an OpenAI client's base_url; empty: no cloud.")
    model: str = setting("", "What the cloud calls the model; empty: its only one.")
    api_key_env: str = setting("", "Environment variable that holds the API key.")
    tls_ca: Path | None = setting(None, "Authority that signed the cloud's certificate (PEM).")
    tls_cert: Path | None = setting(None, "This vehicle's certificate (PEM), for mutual TLS.")
    tls_key: Path | None = setting(None, "This vehicle's private key (PEM).")
    peer: bool = setting(True, "The cloud is another Codriver: it continues partial answers and is told deadlines.")
    prefill: Literal["auto", "none", "llama_cpp", "vllm"] = setting(
        "auto", "How the cloud is asked to go on from a partial answer; auto: as another Codriver is, else in words."
    )
    verify: Literal["none", "vllm"] = setting(
        "none", "How the cloud is asked to score the vehicle's rejected draft (vllm: prompt_logprobs); needs prefill."
    )
    verify_least: float = setting(
        0.3, "Probability at which a draft's token stands although the cloud has a likelier one.", least=0, most=1
    )
    context_tokens: int = setting(4096, "The cloud model's context length; 0: not known.", least=0)
    input_usd: float = setting(0.0, "US dollars per million tokens read.", least=0)
    output_usd: float = setting(0.0, "US dollars per million tokens written.", least=0)
    images: bool = setting(False, "The cloud model reads images.")


@dataclass(frozen=True)
class HeatConfig:
    """What the vehicle does as its computer gets hot: see docs/optimize.md."""

    target: str = setting(
        "",
        "The car computer whose table of actions is followed: a name of `codriver targets list`, or TOML; empty: none.",
    )
    smaller: str = setting("", "The model for rows that say smaller, a name or a GGUF file; empty: the same model.")
    temperature_file: Path | None = setting(
        None, "File with a temperature in thousandths of a degree; not given: the hottest of Linux's thermal zones."
    )
    power_file: Path | None = setting(
        None, "File with the power that may be taken, in millionths of a watt, as hwmon's power1_cap."
    )
    every_s: float = setting(2.0, "Time between two looks at them.", least=0.05)
    hysteresis_c: float = setting(3.0, "Degrees that a row must have stopped holding by before it is left.", least=0)
    hysteresis_share: float = setting(
        0.05, "Share of the power budget that a row must have stopped holding by.", least=0, most=1
    )


@dataclass(frozen=True)
class VehicleConfig:
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    engine: OnBoard = field(default_factory=OnBoard)
    cloud: CloudAccess = field(default_factory=CloudAccess)
    route: RouteConfig = field(default_factory=RouteConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    heat: HeatConfig = field(default_factory=HeatConfig)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)


@dataclass(frozen=True)
class CloudGateway(GatewayConfig):
    """The cloud's address on a machine that it shares with a vehicle."""

    port: int = setting(8001, "The port to listen on; 0 takes a free one.", least=0, most=65535)


@dataclass(frozen=True)
class CloudConfig:
    gateway: CloudGateway = field(default_factory=CloudGateway)
    engine: InTheCloud = field(default_factory=InTheCloud)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
