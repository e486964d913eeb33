"""Mutual TLS between real sockets: who gets in, and what the others are told."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from codriver.core.clock import ManualClock
from codriver.core.errors import CertificateError
from codriver.gateway.keys import KeyFiles, make_keys
from codriver.gateway.tls import client_context, server_context

from .serving import HELLO, Scripted, running

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    return make_keys(tmp_path_factory.mktemp("strangers"))


def mutual(keys: KeyFiles) -> dict[str, Any]:
    return {"tls_cert": keys.cloud, "tls_key": keys.cloud_key, "tls_client_ca": keys.ca}


async def post(url: str, context: ssl.SSLContext) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=CHAT, ssl=context) as r,
    ):
        return r.status


async def test_a_vehicle_with_its_certificate_gets_in(keys: KeyFiles) -> None:
    async with running(Scripted(*HELLO), **mutual(keys)) as server:
        url = server.urls[0]
        assert url.startswith("https://")
        assert await post(url, client_context(keys.ca, keys.vehicle, keys.vehicle_key)) == 200


@pytest.mark.parametrize("who", ["nobody", "stranger", "cloud"])
async def test_others_stay_out(keys: KeyFiles, strangers: KeyFiles, who: str) -> None:
    """``cloud``: a server's certificate is not good for being a client."""
    context = {
        "nobody": lambda: client_context(keys.ca),
        "stranger": lambda: client_context(keys.ca, strangers.vehicle, strangers.vehicle_key),
        "cloud": lambda: client_context(keys.ca, keys.cloud, keys.cloud_key),
    }[who]()
    async with running(Scripted(*HELLO), **mutual(keys)) as server:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await post(server.urls[0], context)


async def test_a_vehicle_does_not_trust_another_cloud(keys: KeyFiles, strangers: KeyFiles) -> None:
    async with running(Scripted(*HELLO), **mutual(strangers)) as server:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(server.urls[0], client_context(keys.ca, keys.vehicle, keys.vehicle_key))


async def test_a_cloud_under_another_name_is_not_trusted(tmp_path: Path) -> None:
    keys = make_keys(tmp_path, ("cloud.example",))
    async with running(Scripted(*HELLO), **mutual(keys)) as server:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(server.urls[0], client_context(keys.ca, keys.vehicle, keys.vehicle_key))


async def test_without_a_client_authority_anyone_may_connect(keys: KeyFiles) -> None:
    async with running(Scripted(*HELLO), tls_cert=keys.cloud, tls_key=keys.cloud_key) as server:
        assert await post(server.urls[0], client_context(keys.ca)) == 200


def test_expired_certificates_are_refused_before_use(keys: KeyFiles) -> None:
    later = ManualClock(time.time() + 400 * 86_400.0)
    with pytest.raises(CertificateError, match=r"cloud\.crt expired on \d{4}-\d\d-\d\d"):
        server_context(keys.cloud, keys.cloud_key, keys.ca, later)
    with pytest.raises(CertificateError, match=r"ca\.crt expired on \d{4}-\d\d-\d\d"):
        client_context(keys.ca, keys.vehicle, keys.vehicle_key, later)


def test_wrong_files_are_named(keys: KeyFiles, strangers: KeyFiles, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"vehicle\.key cannot be used with the certificate .*cloud\.crt"):
        server_context(keys.cloud, keys.vehicle_key, None)
    with pytest.raises(CertificateError, match=r"none\.key does not exist"):
        server_context(keys.cloud, tmp_path / "none.key", None)
    with pytest.raises(CertificateError, match=r"none\.crt does not exist"):
        client_context(tmp_path / "none.crt")
    with pytest.raises(CertificateError, match="needs its private key"):
        client_context(keys.ca, keys.vehicle)


def test_only_current_protocols(keys: KeyFiles) -> None:
    assert server_context(keys.cloud, keys.cloud_key, None).minimum_version == ssl.TLSVersion.TLSv1_2
