"""The two-layer model, for benches that make files of models."""

from __future__ import annotations

from tests.unit.optimize.conftest import sentences, short_model

__all__ = ["sentences", "short_model"]
