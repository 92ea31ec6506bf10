"""The API under load: a list of 1,000 jobs against `GET /healthz`, over the Unix socket and over TLS with a token.

Each client keeps its connection and asks again as soon as it has its answer: so many clients, so many requests under
way. The service is the real one, with its store on a disk; the clients are processes beside it on the same machine.
"""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import multiprocessing
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.lab import Lab, open_lab
from benchmarks.listing import fill
from benchmarks.report import Report, figure
from gridhypervisor.client.launcher import Paths, connect, ensure_service, find_paths
from gridhypervisor.client.remote import Remote
from gridhypervisor.model.access import Scope, TokenRequest

JOBS, CLIENTS, SECONDS, RUNS = 1000, 4, 3.0, 15
HEALTH, LIST = "/healthz", f"/v1/jobs?limit={JOBS}"


@dataclass(frozen=True)
class Door:
    """A way to the service."""

    name: str
    socket: str = ""
    remote: Remote | None = None

    def connection(self) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection("localhost")
        if self.remote is not None:
            made.sock = self.remote.connect()
        else:
            made.sock = socket.socket(socket.AF_UNIX)
            made.sock.connect(self.socket)
        return made

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.remote.token}"} if self.remote is not None else {}


def client(door: Door, path: str, begin: float) -> list[float]:
    """Seconds of each request of one client."""
    connection, took = door.connection(), []
    time.sleep(max(0.0, begin - time.monotonic()))
    while (now := time.monotonic()) < begin + SECONDS:
        connection.request("GET", path, headers=door.headers)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 and body, (answer.status, body)
        took.append(time.monotonic() - now)
    connection.close()
    return took


def load(door: Door, path: str, pool: multiprocessing.pool.Pool) -> tuple[float, float]:
    """(requests a second, seconds of the slowest of 100)."""
    pool.map(time.sleep, [0.1] * CLIENTS)  # all are there
    begin = time.monotonic() + 0.5
    found = sorted(took for each in pool.map(partial(client, door, path), [begin] * CLIENTS) for took in each)
    return len(found) / SECONDS, found[int(0.99 * len(found))] if found else SECONDS


def certificate(folder: Path) -> tuple[str, str]:
    """For this machine's loopback, signed by itself; and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.touch(0o600)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return str(cert), str(private)


def serve(lab: Lab) -> tuple[Door, Door]:
    """The lab's service, through both doors."""
    lab.ghv("service", "stop")
    paths = find_paths(lab.environment)
    cert, key = certificate(lab.folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    _start(paths, ("--listen", place, "--cert", cert, "--key", key))
    token = connect(paths).create_token(TokenRequest(Scope.ADMIN)).secret  # the jobs are another user's
    return Door("Unix socket", str(paths.socket)), Door("TLS", remote=Remote(f"https://{place}", token, cert))


def _start(paths: Paths, settings: tuple[str, ...]) -> None:
    from gridhypervisor.client.launcher import COMMAND

    ensure_service(paths, (*COMMAND, *settings))


def measure(runs: int | None = None) -> Report:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with open_lab() as lab, multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        fill(lab.data / "store.sqlite", JOBS)
        doors = serve(lab)
        for door in doors:
            load(door, HEALTH, pool)  # nobody is to be measured while he still imports
        for _ in range(runs or RUNS):
            for door in doors:
                for path in (HEALTH, LIST):
                    found.setdefault((door.name, path), []).append(load(door, path, pool))
    figures = []
    for (way, path), pairs in found.items():
        what = "healthz" if path == HEALTH else f"{JOBS:,} jobs"
        figures.append(figure(f"{what}, {way}: requests", "1/s", [rate for rate, _ in pairs]))
        figures.append(figure(f"{what}, {way}: the slowest of 100", "s", [slow for _, slow in pairs]))
    return Report(
        f"The API: a list of {JOBS:,} jobs against GET /healthz, {CLIENTS} clients",
        tuple(figures),
        notes=("Service and clients share the machine's cores; each client keeps its connection.",),
    )
