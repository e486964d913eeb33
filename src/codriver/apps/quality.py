"""What a car knows of its engines before it has asked them: calibrations, and the model that reads requests.

The rule kept: what cannot be read with here (no embedder, another policy) is left out, never waited for; a file that
the operator named and that is not usable is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from codriver.core.engine import Engine
from codriver.route.quality import Calibration, Quality, load_calibration

from .settings import VehicleConfig

SHIPPED_MODEL = "quality-model.json"


def known_quality(config: VehicleConfig, embedder: Engine | None) -> Quality:
    """Errors: :class:`MissingFile`, :class:`BadConfigValue` naming the calibration or the quality model at fault."""
    calibration = _calibration(config)
    read = _learned(config, embedder, calibration is not None)
    quality = read if read is not None else Quality()
    if calibration is not None:
        quality.learn("vehicle", calibration)
    return quality


def _calibration(config: VehicleConfig) -> Calibration | None:
    """The car's own, else what is shipped for its model, if anything is."""
    if config.route.calibration is not None:
        return load_calibration(config.route.calibration)
    shipped = resources.files("codriver.route") / "data" / f"{config.engine.model}.json"
    with resources.as_file(shipped) as file:
        return load_calibration(file) if file.is_file() else None


def _learned(config: VehicleConfig, embedder: Engine | None, calibrated: bool) -> Quality | None:
    # Under any other policy who goes first is settled before the request is read.
    if embedder is None or not config.route.learned or config.route.policy != "auto":
        return None
    from codriver.route.learned import LearnedQuality
    from codriver.route.outcome_model import load_model

    own = config.route.quality_model
    with resources.as_file(resources.files("codriver.route") / "data" / SHIPPED_MODEL) as shipped:
        if own is None and not shipped.is_file():
            return None
        model = load_model(own if own is not None else shipped)
    heads = _heads(config, model.file.heads, calibrated)
    return LearnedQuality(model, embedder, heads, config.route.read_within_s)


def _heads(config: VehicleConfig, known: Mapping[str, object], calibrated: bool) -> dict[str, str]:
    """An engine's own head goes before its calibration, and that before the head for engines nobody knows. In a model
    of the operator's own, ``vehicle`` and ``cloud`` are this car's.
    """
    heads = {"cloud": config.cloud.model if config.cloud.model in known else "cloud"}
    if config.engine.model in known:
        heads["vehicle"] = config.engine.model
    elif not calibrated or config.route.quality_model is not None:
        heads["vehicle"] = "vehicle"
    return heads
