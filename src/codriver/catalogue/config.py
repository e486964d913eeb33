"""The catalogue's settings. The hub's token is no setting: it comes from ``HF_TOKEN`` only, and is never printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codriver.core.config import setting

from .catalogue import Catalogue
from .sources import PullSettings
from .store import Store


@dataclass(frozen=True)
class CatalogueConfig:
    """An empty text means the default that the sentence names."""

    home: str = setting("", "Folder of pulled files; empty: $CODRIVER_HOME, else codriver in the user's cache folder.")
    extra: str = setting("", "Your own entries, a TOML file or a folder of them; empty: the folder catalogue.d.")
    hub_url: str = setting("", "Address of the model hub for hf: sources; empty: $HF_ENDPOINT, else the public hub.")
    downloads: int = setting(3, "Downloads that run at the same time.", least=1, most=16)

    def store(self) -> Store:
        return Store(Path(self.home).expanduser() if self.home else None)

    def catalogue(self) -> Catalogue:
        return Catalogue.load(Path(self.extra).expanduser() if self.extra else None)

    def pull_settings(self) -> PullSettings:
        if self.hub_url:
            return PullSettings(concurrency=self.downloads, hub_url=self.hub_url)
        return PullSettings(concurrency=self.downloads)
