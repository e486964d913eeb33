"""Profiles: every figure has a source, what is missing says why, and a user's own file is checked key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from codriver.core.errors import BadConfigValue, MissingFile, UnknownConfigKey, UnknownEntry
from codriver.optimize.targets.target import find_target, shipped

OWN = """
[memory]
bandwidth_gbps = 30.0

[runtimes]
usable = ["llama_cpp"]

[runtimes.why_not]
qnn = "no licence"
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    return file


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_figure_has_a_source_and_a_missing_one_a_reason(name: str) -> None:
    found = find_target(name)
    figures = {key for key, _ in found.figures()}
    assert figures, "a profile without figures is none"
    assert figures == set(found.about.sources)
    assert not figures & set(found.about.missing)
    for key in ("memory.total_gb", "memory.bandwidth_gbps", "accelerator.int8_tops", "power.throttle_c"):
        assert key in figures or found.about.missing.get(key), key
    assert all(len(why) > 10 for why in found.runtimes.why_not.values())
    assert "llama_cpp" in found.runtimes.usable and found.runtimes.why_not


def test_the_profiles_that_were_asked_for_are_there() -> None:
    assert set(shipped()) == {"orin-nx-16gb", "raspberry-pi-5", "rcar-v4h", "sa8775p", "tda4vh", "thor"}
    assert find_target("orin-nx-16gb").cpu.peak_gops == pytest.approx(8 * 2.0 * 64)
    with pytest.raises(UnknownEntry, match=r"There is no target 'orin'\. Known: host, orin-nx-16gb"):
        find_target("orin")


def test_what_a_target_lacks_is_told_with_the_reason(own: Path) -> None:
    with pytest.raises(BadConfigValue, match=r"sa8775p has no 'memory\.bandwidth_gbps': in Qualcomm's data sheet"):
        find_target("sa8775p").need("memory.bandwidth_gbps")
    with pytest.raises(
        BadConfigValue, match=r"thor cannot be served by tensorrt_llm: its engines are built on the device"
    ):
        find_target("thor").need_runtime("tensorrt_llm")
    found = find_target(str(own))
    assert found.need("memory.bandwidth_gbps") == 30.0
    assert found.why_not("llama_cpp") is None and found.name == "mine"
    assert find_target(str(own.rename(own.with_name("host.toml")))).name == "host.toml", "that is another machine"
    assert found.why_not("qnn") == "no licence" and found.why_not("tidl") == "the profile does not name it"


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (
            ("bandwidth_gbps", "bandwith_gbps"),
            UnknownConfigKey,
            r"'memory\.bandwith_gbps'.*mean 'memory\.bandwidth_gbps'",
        ),
        (("30.0", "-1"), BadConfigValue, r"'memory\.bandwidth_gbps' is -1; allowed: at least 0"),
        (("30.0", '"fast"'), BadConfigValue, r"'memory\.bandwidth_gbps' is 'fast'; allowed: float"),
        (("[memory]", "[ram]"), UnknownConfigKey, "'ram'"),
        (("[memory]", "[memory"), BadConfigValue, "is not valid TOML"),
    ],
)
def test_a_users_file_is_refused_by_the_key(
    own: Path, change: tuple[str, str], error: type[Exception], told: str
) -> None:
    own.write_text(OWN.replace(*change))
    with pytest.raises(error, match=told):
        find_target(str(own))


def test_what_was_not_measured_or_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path))
    with pytest.raises(MissingFile, match="This machine was not measured yet: codriver targets measure"):
        find_target("host")
    with pytest.raises(MissingFile, match=r"nowhere\.toml does not exist"):
        find_target(str(tmp_path / "nowhere.toml"))
