"""A service for several people: one of them, at another machine, runs a job of his own files and gets its results."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_api_network import certificate
from tests.e2e.installation import Ghv, Installation, wait_for

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "64M")


class Elsewhere:
    """Somebody's own machine: another home, no service, and what he was given."""

    def __init__(self, folder: Path, url: str, ca: str, token: bytes) -> None:
        self.folder = folder
        settings = folder / ".config" / "gridhypervisor"
        settings.mkdir(parents=True)
        (settings / "token").touch(0o600)
        (settings / "token").write_bytes(token)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GHV_", "XDG_"))}
        self.environment = kept | {"HOME": str(folder), "GHV_URL": url, "GHV_CA": ca}

    def ghv(self, *words: str) -> Ghv:
        command = [sys.executable, "-m", "gridhypervisor.cli", *words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, timeout=240)
        return Ghv(done)


@contextlib.contextmanager
def served(lab: Installation, folder: Path) -> Iterator[tuple[str, str]]:
    """The installation's service, on loopback over TLS: its address, and the certificate to believe."""
    cert, key = certificate(folder)
    lab.stop()
    log = folder / "serve.log"
    command = ["serve", "--listen", "127.0.0.1:0", "--cert", cert, "--key", key]
    with log.open("wb") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "gridhypervisor.cli", *command], env=lab.environment, stdout=words, stderr=words
        )
    try:
        told = wait_for("the service", lambda: [x for x in log.read_text().split() if x.startswith("https://")])
        yield told[0], cert
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert process.returncode == 0, log.read_text()


@pytest.fixture
def house(lab: Installation, tmp_path: Path) -> Iterator[tuple[Installation, str, str]]:
    with served(lab, tmp_path / "tls") as (url, ca):
        yield lab, url, ca


def test_a_job_of_somebody_elsewhere(house: tuple[Installation, str, str], tmp_path: Path) -> None:
    lab, url, ca = house
    ada = Elsewhere(tmp_path / "ada", url, ca, lab.ghv("token", "create", "--owner", "ada").out)
    bob = Elsewhere(tmp_path / "bob", url, ca, lab.ghv("token", "create", "--owner", "bob").out)
    mine = lab.detach(*SMALL, "--site", "local", "--", "true")
    (ada.folder / "tool.sh").write_text(
        "#!/bin/sh\ncat tree/a tree/b/c; mkdir out; wc -c < big > out/count; ln -s count out/l\n"
    )
    (ada.folder / "tool.sh").chmod(0o755)
    (ada.folder / "tree/b").mkdir(parents=True)
    (ada.folder / "tree/a").write_text("one ")
    (ada.folder / "tree/b/c").write_text("two")
    (ada.folder / "big").write_bytes(os.urandom(9 << 20))
    given = [word for name in ("tool.sh", "tree", "big") for word in ("--in", name)]
    ran = ada.ghv("run", *SMALL, *given, "--out", "out/*", "--to", "home", "--", "./tool.sh")
    assert (ran.code, ran.out) == (0, b"one two"), ran
    assert "sending big" in ran.err and f"2 results in {ada.folder}/home" in ran.err
    assert (ada.folder / "home/out/count").read_text().strip() == str(9 << 20)
    assert os.readlink(ada.folder / "home/out/l") == "count"

    [job] = ada.ghv("list", "-o", "json").json
    assert (job["owner"], job["destination"]) == ("ada", "")
    assert ada.ghv("fetch", job["id"], "--to", "again").code == 0
    assert (ada.folder / "again/out/count").exists()
    assert bob.ghv("list", "-o", "json").json == []
    assert bob.ghv("show", job["id"]).code == 66
    assert bob.ghv("cancel", mine).code == 66
    assert bob.ghv("run", *SMALL, "--in", "/etc/hostname", "--site", "nowhere", "--", "true").code == 66
    everybodys = {each["id"]: each["owner"] for each in lab.ghv("list", "-o", "json").json}
    assert everybodys[job["id"]] == "ada" and everybodys[mine] not in ("ada", "bob")
    owners = {row["of"]["user"] for row in lab.ghv("accounting", "-o", "json").json["accounts"]}
    assert "ada" in owners
    kept = lab.data / "jobs" / job["id"]
    assert (kept / "results/out/count").exists()
    assert ada.ghv("delete", job["id"]).code == 0
    wait_for("its results to go with it", lambda: not kept.exists())

    [token] = [each for each in lab.ghv("token", "list", "-o", "json").json if each["owner"] == "ada"]
    assert lab.ghv("token", "revoke", token["id"]).code == 0
    refused = ada.ghv("list")
    assert refused.code == 77 and "expired or was revoked" in refused.err
    lab.ghv("wait", mine)
