"""The batch script for nodes that do not see the workdir, run by a real shell against a real relay's gate."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model.batch import Carried, Submission
from gridhypervisor.model.wire import Op
from gridhypervisor.sites import carrying
from gridhypervisor.sites.authority import Authority
from tests.contract.relay_peer import Peer
from testsites.site import free_address

PORT = 7750
UTILITIES = ("cat", "chmod", "date", "id", "ls", "mkdir", "mv", "rm", "sleep")
START = b'printf "%s\\n" "$0" "$@"; /bin/cat; exit 5\n'
"""What the bundle's start script is here: it tells how it was called, and what it could read."""


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("account")
    argv = [sys.executable, "-m", "gridhypervisor.agent.main", "relay", "--workdir", str(folder / "work")]
    with Peer(argv) as peer:
        peer.hello()
        yield peer


@pytest.fixture(scope="module")
def address(relay: Peer, tmp_path_factory: pytest.TempPathFactory) -> str:
    found, authority = free_address(PORT), Authority(tmp_path_factory.mktemp("tls") / "authority.pem")
    certificate, key = authority.relay()
    relay.ask(
        Op.LISTEN, host=found, first=PORT, last=PORT, certificate=certificate, key=key, authority=authority.certificate
    )
    return found


@pytest.fixture
def digest(relay: Peer) -> str:
    parts = {"start": START, "busybox": b"no program", "zstd/zstd": os.urandom(1 << 20)}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(parts.items())).encode()
    made = hashlib.sha256(sums).hexdigest()
    for name, data in {**parts, "SUMS": sums}.items():
        relay.upload(f"bundle/{made}/{name}", data)
    return made


class Node:
    """A node with these programs and no others."""

    def __init__(self, folder: Path, *programs: str) -> None:
        self.scratch, self._path = folder / "scratch", folder / "bin"
        self.own = self.scratch / f"ghv-{os.getuid()}"
        self.scratch.mkdir()
        self._path.mkdir()
        for name in (*UTILITIES, *programs):
            found = shutil.which(name, path="/usr/bin:/bin")  # the system's own
            assert found is not None, f"{name} is not installed"
            (self._path / name).symlink_to(found)

    def run(self, address: str, digest: str, first: int = PORT, *, ticket: str = "the ticket") -> tuple[int, str]:
        """The script's exit code and what it printed."""
        job = Submission(
            "inst-j1-1", "", "", str(self.scratch), 1, 1, 600, Carried(f"{address}:{first}-{PORT}", digest, ticket)
        )
        assert job.carried is not None
        script = carrying.courier_script(job, job.carried)
        done = subprocess.run(
            ["/bin/sh", "-s"], input=script.encode(), env={"PATH": str(self._path)}, capture_output=True, timeout=120,
            check=False,
        )  # fmt: skip
        words = self.own / "words-inst-j1-1"
        return done.returncode, done.stderr.decode() + (words.read_text() if words.exists() else "")


@pytest.mark.parametrize("means", ["curl", "wget", "bash", "python3", "perl"])
def test_a_node_fetches_the_bundle_by_what_it_has_and_keeps_it(
    tmp_path: Path, address: str, digest: str, means: str
) -> None:
    node = Node(tmp_path, means, "sha256sum")
    bundle = node.own / "bundle" / digest
    # Ports before the relay's may be anybody's, or nobody's.
    code, said = node.run(address, digest, PORT - 2)
    assert (code, said.splitlines()) == (5, [
        f"{bundle}/start", "courier", "--scratch", str(node.scratch), "--gate", f"{address}:{PORT - 2}-{PORT}",
        "--entry", "spool/inst-j1-1", "--words", f"{node.own}/words-inst-j1-1", "the ticket",
    ])  # fmt: skip
    assert node.own.stat().st_mode & 0o777 == 0o700 and os.access(bundle / "busybox", os.X_OK)
    (node.own / "words-inst-j1-1").unlink()
    assert node.run("127.0.0.1", digest, PORT)[0] == 5, "the second job has no need of the relay"
    assert [path.name for path in bundle.parent.iterdir()] == [digest]


@pytest.mark.parametrize("trouble", ["start", "SUMS", "empty", "changed", "half"])
def test_a_kept_bundle_that_is_not_whole_is_made_whole(tmp_path: Path, address: str, digest: str, trouble: str) -> None:
    """Cleaners of /tmp remove single files, a disk that was full leaves empty ones."""
    node = Node(tmp_path, "curl", "sha256sum")
    bundle = node.own / "bundle" / digest
    assert node.run(address, digest)[0] == 5
    match trouble:
        case "start" | "SUMS":
            (bundle / trouble).unlink()
        case "empty":
            (bundle / "start").write_bytes(b"")
        case "changed":
            (bundle / "busybox").write_bytes(b"another")
        case _:
            shutil.rmtree(bundle / "zstd")
            (bundle / "SUMS").unlink()
    assert node.run(address, digest)[0] == 5
    assert (bundle / "start").read_bytes() == START and (bundle / "busybox").read_bytes() == b"no program"
    assert hashlib.sha256((bundle / "SUMS").read_bytes()).hexdigest() == digest
    assert (bundle / "zstd/zstd").stat().st_size == 1 << 20
    assert [path.name for path in bundle.parent.iterdir()] == [digest], "nothing else stays"


def test_nothing_is_run_that_is_not_what_the_script_names(
    tmp_path: Path, relay: Peer, address: str, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "WAIT", 0)
    node = Node(tmp_path, "curl", "sha256sum")
    relay.upload(f"bundle/{digest}/start", b"echo wrong\n")
    code, said = node.run(address, digest)
    assert (
        code == 69 and f"cannot fetch the bundle from {address}, ports {PORT}, by curl" in said and "wrong" not in said
    )
    relay.upload(f"bundle/{digest}/start", START)
    assert node.run(address, digest)[0] == 5


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        (("sha256sum",), "neither curl, wget, python3, perl nor bash"),
        (("curl",), "neither sha256sum, shasum nor openssl"),
    ],
)
def test_a_node_that_lacks_something_says_what(
    tmp_path: Path, address: str, digest: str, programs: tuple[str, ...], words: str
) -> None:
    code, said = Node(tmp_path, *programs).run(address, digest)
    assert code == 72 and words in said


@pytest.mark.parametrize("program", ["shasum", "openssl"])
def test_other_programs_for_the_digest_will_do(tmp_path: Path, address: str, digest: str, program: str) -> None:
    assert Node(tmp_path, "curl", program, *(["perl"] if program == "shasum" else [])).run(address, digest)[0] == 5


def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path, address: str, digest: str) -> None:
    node = Node(tmp_path, "curl", "sha256sum")
    node.own.mkdir()
    node.own.chmod(0o755)
    code, said = node.run(address, digest)
    assert code == 77 and "is not a folder of mode 0700" in said and not list(node.own.iterdir())
