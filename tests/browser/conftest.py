"""Headless Chromium, driven over WebDriver. Without Chromium and its driver these tests skip and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.apps.conftest import Running, starting

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests, with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which is in codriver[dev]")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Selenium would otherwise look for drivers, and report on itself, over the network.
    os.environ |= {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    driven = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield driven
    driven.quit()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    """A vehicle and a cloud with null engines, as processes."""
    for start in starting(tmp_path_factory.mktemp("pair")):
        cloud = start("cloud")
        yield start("vehicle", "--cloud-url", cloud.url), cloud


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Any]:
    """Start one more process, for a test that needs its own."""
    yield from starting(tmp_path)
