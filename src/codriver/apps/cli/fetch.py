"""Fetches catalogue entries that are not here yet, with a progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from codriver.catalogue import CatalogueConfig, pull

from .models import progress_for


def fetch_missing(references: Iterable[str], settings: CatalogueConfig) -> None:
    """Pull those of ``references`` that are catalogue names and not in the store. Errors: those of
    ``catalogue.pull``.
    """
    catalogue, store = settings.catalogue(), settings.store()
    for name in references:
        if name not in catalogue.names():
            continue
        entry = catalogue.entry(name)
        if store.state(entry) != "present":
            with progress_for(entry) as progress:
                asyncio.run(pull(entry, store, progress, settings.pull_settings()))
