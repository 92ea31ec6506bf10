"""The service on the network: where it listens at all, TLS, clients that dawdle, and both clients through it."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gridhypervisor.client import AsyncClient, Client
from gridhypervisor.client.launcher import connect
from gridhypervisor.client.remote import Remote, find_remote
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import FollowKind, JobRequest, ServiceError
from gridhypervisor.service import guard, server
from gridhypervisor.service.listener import listen
from tests.contract.real_service import RealService

REQUEST = JobRequest(JobSpec("xmm", ("true",)))


def certificate(folder: Path, name: str = "localhost") -> tuple[str, str]:
    """One that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.touch(0o600)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return str(cert), str(private)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    folder = tmp_path_factory.mktemp("service")
    cert, key = certificate(folder / "tls")
    with RealService(folder, cert=cert, key=key) as running:
        yield running


def test_both_clients_over_tls(service: RealService) -> None:
    remote = service.remote(service.token("ada"))
    client = Client(remote)
    assert client.remote and client.caller().owner == "ada"
    job = client.submit(REQUEST).id
    assert [each.id for each in client.jobs()] == [job]
    first = next(client.follow(job))
    assert first.kind is FollowKind.JOB and first.job is not None and first.job.id == job

    async def story() -> None:
        async with AsyncClient(remote) as other:
            assert (await other.caller()).project == "physics"
            assert [each.id for each in await other.jobs()] == [job]
            async for item in other.watch_events(job=job):
                assert item.job == job
                break

    asyncio.run(story())


def test_a_service_that_is_not_the_right_one_gets_no_token(service: RealService, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path)
    for ca in (other, ""):
        with pytest.raises(ServiceError, match="certificate") as error:
            Client(Remote(service.url, "x", ca)).jobs()
        assert "GHV_CA" in error.value.problem.hint
    with pytest.raises(ServiceError, match="come back"):
        Client(Remote(service.url.replace("https", "http"), "x"), patience=0.1).jobs()


@pytest.mark.parametrize(("address", "why"), [
    ("0.0.0.0:0", "not loopback"), ("[::]:0", "not loopback"), ("127.0.0.1", "no address"),
    ("localhost:99999", "no address"), ("no.such.host.invalid:1", "no.such.host.invalid"), (":8080", "no address"),
])  # fmt: skip
def test_what_would_not_be_safe_is_refused(address: str, why: str) -> None:
    with pytest.raises(ServiceError, match=why) as error:
        listen(address)
    assert error.value.problem.hint


def test_a_certificate_must_be_usable_and_its_key_private(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with pytest.raises(ServiceError, match="belong together"):
        listen("127.0.0.1:0", cert)
    with pytest.raises(ServiceError, match="cannot be used"):
        listen("127.0.0.1:0", key, key)
    Path(key).chmod(0o644)
    with pytest.raises(ServiceError, match="everybody may read the key"):
        listen("127.0.0.1:0", cert, key)
    Path(key).chmod(0o600)
    with listen("0.0.0.0:0", cert, key).socket as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ServiceError, match="in use"):
            listen(f"127.0.0.1:{port}")


def test_the_environment_says_which_service(tmp_path: Path, service: RealService) -> None:
    token = tmp_path / "token"
    environment = {"GHV_URL": service.url, "GHV_TOKEN_FILE": str(token), "HOME": str(tmp_path)}
    with pytest.raises(ServiceError, match="there is no token in"):
        find_remote(environment)
    token.write_text(service.token("ada") + "\n")
    token.chmod(0o644)
    with pytest.raises(ServiceError, match="others may use"):
        find_remote(environment)
    token.chmod(0o600)
    found = find_remote(environment)
    assert found is not None and found.token.startswith("ghv_") and found.token not in repr(found)
    for url, why in (
        ("http://host.example:80", "for everybody"),
        ("ftp://x", "no address"),
        ("https://", "no address"),
    ):
        with pytest.raises(ServiceError, match=why):
            find_remote(environment | {"GHV_URL": url})
    assert find_remote({"HOME": str(tmp_path)}) is None


def test_ghv_is_led_by_the_environment(service: RealService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(service.token("pia"))
    named = {"GHV_URL": service.url, "GHV_TOKEN_FILE": str(token), "GHV_CA": str(service.remote("").ca)}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert connect().caller().owner == "pia"


def test_clients_that_dawdle_are_cut_off(service: RealService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a part of a head, and one that stops in the middle of a body."""
    monkeypatch.setattr(server, "HEAD", 0.2)
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    quiet = threading.Event()
    with RealService(tmp_path) as plain:
        place = Remote(plain.url, "").place
        token = plain.token("ada")
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n"
        for sent in (b"", b"GET /healthz HT", head.encode(), head.encode() + b"\r\n{"):
            with socket.create_connection(place) as sock:
                sock.settimeout(30)
                sock.sendall(sent)
                began = time.monotonic()
                answer = b""
                try:
                    while data := sock.recv(1000):
                        answer += data
                except ConnectionResetError:
                    pass
                assert time.monotonic() - began < 20 and b" 20" not in answer[:20]
        with plain.http(token) as good:
            job = good.post("/v1/jobs", json={"spec": {"image": "x", "command": ["y"]}}).json()["id"]
            with good.stream("GET", "/v1/events", params={"watch": "true", "after": 1}) as stream:
                quiet.wait(0.6)  # a stream may be silent for longer than a request may be
                good.post(f"/v1/jobs/{job}/cancel")
                assert job in next(stream.iter_lines())
