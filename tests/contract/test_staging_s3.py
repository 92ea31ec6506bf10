"""Inputs from an S3 store that runs here: moto's server, on the loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from gridhypervisor.model.errors import InputError
from gridhypervisor.staging import fetch
from gridhypervisor.staging.s3 import S3Source, settings

CONTENT = os.urandom(1 << 16) * 48  # 3 MiB
URL = "s3://archive/xmm/0123/events.fits"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """The store's own access to the bucket; the environment is the user's."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ann")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    try:
        # The first request is answered when the server has imported its S3.
        assert httpx.put(f"http://{host}:{port}/archive", timeout=60).status_code == 200
        yield S3Store("archive", client_options={"allow_http": True, "timeout": "60s", "connect_timeout": "60s"})
    finally:
        server.stop()


def test_fetches_once_and_again_when_it_changed(store: S3Store, tmp_path: Path) -> None:
    obstore.put(store, "xmm/0123/events.fits", CONTENT)
    told: list[tuple[int, int | None]] = []
    got = fetch(URL, "", tmp_path / "cache", lambda *news: told.append(news))
    assert got.path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    before = got.path.stat()
    assert os.path.samestat(fetch(URL, "", tmp_path / "cache").path.stat(), before)
    obstore.put(store, "xmm/0123/events.fits", b"new")
    assert fetch(URL, "", tmp_path / "cache").path.read_bytes() == b"new"


def test_goes_on_from_a_part_unless_the_object_changed(store: S3Store) -> None:
    obstore.put(store, "xmm/0123/events.fits", CONTENT)
    source = S3Source(URL)
    with source.get(0, "", "") as answer:
        version = answer.version
    with source.get(2_000_000, version, "") as answer:
        assert (answer.start, answer.total) == (2_000_000, len(CONTENT))
        assert b"".join(answer.chunks) == CONTENT[2_000_000:]
    with source.get(len(CONTENT), version, "") as answer:
        assert (answer.start, list(answer.chunks)) == (len(CONTENT), [])
    obstore.put(store, "xmm/0123/events.fits", CONTENT[::-1])
    with source.get(2_000_000, version, "") as answer:
        assert answer.start == 0
        assert b"".join(answer.chunks) == CONTENT[::-1]


def test_an_empty_object(store: S3Store, tmp_path: Path) -> None:
    obstore.put(store, "empty", b"")
    assert fetch("s3://archive/empty", "", tmp_path).path.read_bytes() == b""


def test_what_is_not_there_is_told_at_once(store: S3Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fetch s3://archive/nothing: there is no such object"):
        fetch("s3://archive/nothing", "", tmp_path)
    with pytest.raises(InputError, match="names no object"):
        fetch("s3://archive", "", tmp_path)
    assert list(tmp_path.glob("*.*")) == []


def test_credentials_come_from_the_environment_then_from_the_users_files(tmp_path: Path) -> None:
    aws = tmp_path / ".aws"
    aws.mkdir()
    (aws / "credentials").write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = ds\n"
        "[lab]\naws_access_key_id = l\naws_secret_access_key = ls\naws_session_token = lt\n"
    )
    (aws / "config").write_text("[default]\nregion = eu-west-1\n[profile lab]\nendpoint_url = https://s3.lab.example\n")
    home = {"HOME": str(tmp_path)}
    assert settings(home) == {"region": "eu-west-1", "access_key_id": "d", "secret_access_key": "ds"}
    assert settings(home | {"AWS_PROFILE": "lab", "AWS_REGION": "x"}) == {
        "region": "x",
        "endpoint": "https://s3.lab.example",
        "access_key_id": "l",
        "secret_access_key": "ls",
        "session_token": "lt",
    }
    assert settings(home | {"AWS_ACCESS_KEY_ID": "e", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}) == {
        "region": "eu-west-1",
        "endpoint": "http://127.0.0.1:9",
    }
    assert settings({"HOME": "/nonexistent"}) == {"skip_signature": True}


def test_a_store_that_does_not_answer_is_given_up(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    waits: list[float] = []
    with pytest.raises(InputError, match=f"fetch {URL}: .*tries"):
        fetch(URL, "", tmp_path, wait=waits.append)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
