"""The model catalogue: files pinned by sha256, where they come from, and the store they are pulled into.

Rule kept here: a path handed out for loading is a whole file whose sha256 was checked as the file is now.
Nothing is loaded or run here; engines do that.
"""

from .catalogue import Catalogue, default_extra
from .config import CatalogueConfig
from .entry import KINDS, CatalogueEntry, Part, Source
from .progress import Progress, Silent
from .pull import pull
from .reference import ModelFile, resolve
from .sources import PullSettings
from .store import Store, default_root, remove, verify

__all__ = [
    "KINDS",
    "Catalogue",
    "CatalogueConfig",
    "CatalogueEntry",
    "ModelFile",
    "Part",
    "Progress",
    "PullSettings",
    "Silent",
    "Source",
    "Store",
    "default_extra",
    "default_root",
    "pull",
    "remove",
    "resolve",
    "verify",
]
