"""``codriver drive``: mistakes are told before anything is started or fetched."""

from __future__ import annotations

import pytest

from codriver.apps.cli.drive import length_s
from codriver.bench.drive_settings import DriveSettings

from .conftest import codriver


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--policy", "fastest"], "There is no drive policy 'fastest'. Known are: 'vehicle-only'"),
        (["--seconds", "0"], "A drive needs more than zero seconds"),
        (["--seconds", "5", "--minutes", "1"], "Give --seconds or --minutes, not both."),
        (["--trace", "moon"], "There is no link trace 'moon'. Known are:"),
        (["--trace", "tunnel", "--start", "99"], "lasts 60 s; it cannot begin at 99"),
    ],
)
def test_mistakes_are_named(arguments: list[str], told: str) -> None:
    ended = codriver("drive", *arguments)
    assert ended.returncode == 2
    assert told in ended.stderr


def test_length_is_given_in_seconds_or_minutes() -> None:
    assert length_s(None, None) == DriveSettings().seconds
    assert length_s(None, 2.0) == 120.0
    assert length_s(7.0, None) == 7.0
