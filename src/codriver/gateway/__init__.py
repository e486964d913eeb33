"""HTTP in and out: the OpenAI, Anthropic and Ollama APIs over any engine, with keys, limits, TLS and a graceful end."""

from .app import Gateway
from .config import GatewayConfig
from .console import Console
from .server import Listening, serve

__all__ = ["Console", "Gateway", "GatewayConfig", "Listening", "serve"]
