"""Inputs from web servers, good and bad, over real connections on the loopback."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gridhypervisor.model.errors import InputError
from gridhypervisor.model.spec import InputSpec
from gridhypervisor.staging import fetch, stage
from gridhypervisor.staging.fetch import TRIES

CONTENT = os.urandom(1 << 16) * 48  # 3 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Archive:
    """A web server with one file, and what is wrong with it."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    statuses: list[int] = field(default_factory=list)  # of the next answers
    seen: list[dict[str, str]] = field(default_factory=list)  # the requests' headers
    url: str = ""

    def asked(self, header: str) -> list[str | None]:
        return [headers.get(header) for headers in self.seen]


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shown = Archive()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            shown.seen.append({name.lower(): value for name, value in self.headers.items()})
            if shown.statuses:
                self.send_response(shown.statuses.pop(0))
                self.send_header("Retry-After", "7")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/data/events.fits")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not self.path.startswith("/data/"):
                self.send_error(404)
                return
            if shown.etag and self.headers["If-None-Match"] == shown.etag:
                self.send_response(304)
                self.end_headers()
                return
            start, total = 0, len(shown.content)
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            if shown.ranges and asked and self.headers["If-Range"] in (None, shown.etag):
                start = int(asked[1])
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if shown.etag:
                self.send_header("ETag", shown.etag)
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            sent = shown.cuts.pop(0) if shown.cuts else total
            self.wfile.write(shown.content[start : start + sent])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shown.url = f"http://127.0.0.1:{server.server_address[1]}/data/events.fits"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield shown
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


def names(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir())


def test_fetches_once_and_tells_how_far_it_is(archive: Archive, tmp_path: Path, waits: list[float]) -> None:
    told: list[tuple[int, int | None]] = []
    got = fetch(archive.url, SHA256, tmp_path / "cache", lambda *news: told.append(news), wait=waits.append)
    assert (got.path.read_bytes(), got.sha256, got.size) == (CONTENT, SHA256, len(CONTENT))
    assert told[0] == (0, len(CONTENT)) and told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert names(tmp_path / "cache") == ["", ".about"]
    assert fetch(archive.url, SHA256, tmp_path / "cache") == got
    assert (len(archive.seen), waits) == (1, [])
    assert archive.asked("accept-encoding") == ["identity"]


def test_a_cut_connection_goes_on_where_it_broke_off(archive: Archive, tmp_path: Path, waits: list[float]) -> None:
    archive.cuts = [1_000_000, 500_000]
    assert fetch(archive.url, SHA256, tmp_path, wait=waits.append).path.read_bytes() == CONTENT
    assert archive.asked("range") == [None, "bytes=1000000-", "bytes=1500000-"]
    assert archive.asked("if-range") == [None, '"one"', '"one"']
    assert waits == [1.0, 1.0], "a try that brought something is no reason to wait longer"


def test_goes_on_after_the_service_was_killed(archive: Archive, tmp_path: Path) -> None:
    archive.cuts = [2_000_000]
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom gridhypervisor.staging import fetch\n"
        f"fetch({archive.url!r}, '', Path({str(tmp_path)!r}), wait=lambda seconds: os.kill(os.getpid(), 9))"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    assert fetch(archive.url, "", tmp_path).path.read_bytes() == CONTENT
    assert archive.asked("range") == [None, "bytes=2000000-"]


def test_a_file_that_came_whole_before_the_crash_is_not_asked_for_again(archive: Archive, tmp_path: Path) -> None:
    archive.cuts = [len(CONTENT) - 1]

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(archive.url, SHA256, tmp_path, wait=stop)
    [part] = tmp_path.glob("*.part")
    part.write_bytes(CONTENT)
    assert fetch(archive.url, SHA256, tmp_path).path.read_bytes() == CONTENT
    assert archive.asked("range") == [None, f"bytes={len(CONTENT)}-"]


def test_a_file_that_changed_meanwhile_is_begun_anew(archive: Archive, tmp_path: Path) -> None:
    archive.cuts = [1_000_000]

    def change(seconds: float) -> None:
        archive.content, archive.etag = CONTENT[::-1], '"two"'

    assert fetch(archive.url, "", tmp_path, wait=change).path.read_bytes() == CONTENT[::-1]


def test_a_mixture_of_two_contents_is_noticed_and_fetched_anew(archive: Archive, tmp_path: Path) -> None:
    archive.content, archive.etag, archive.cuts = bytes(len(CONTENT)), "", [1_000_000]

    def change(seconds: float) -> None:
        archive.content = CONTENT

    assert fetch(archive.url, SHA256, tmp_path, wait=change).path.read_bytes() == CONTENT
    assert archive.asked("range") == [None, "bytes=1000000-", None]


@pytest.mark.parametrize("ranges", [True, False])
def test_servers_that_say_little_are_served_too(archive: Archive, tmp_path: Path, ranges: bool) -> None:
    archive.etag, archive.ranges, archive.cuts = "", ranges, [1_000_000]
    assert fetch(archive.url, "", tmp_path, wait=lambda seconds: None).path.read_bytes() == CONTENT
    assert archive.asked("range") == [None, None], "without a version nothing vouches for the first part"


def test_without_a_checksum_the_source_is_asked_whether_it_changed(archive: Archive, tmp_path: Path) -> None:
    first = fetch(archive.url, "", tmp_path)
    assert fetch(archive.url, "", tmp_path) == first
    assert archive.asked("if-none-match") == [None, '"one"']
    archive.content, archive.etag = b"new", '"two"'
    assert fetch(archive.url, "", tmp_path).path.read_bytes() == b"new"


def test_a_cached_file_that_rotted_is_fetched_again(archive: Archive, tmp_path: Path) -> None:
    got = fetch(archive.url, SHA256, tmp_path)
    got.path.write_bytes(CONTENT[:-1] + b"\0")
    assert fetch(archive.url, SHA256, tmp_path).path.read_bytes() == CONTENT


def test_a_wrong_checksum_names_both_and_sets_the_file_aside(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(InputError) as wrong:
        stage([InputSpec(url=archive.url, sha256="0" * 64)], tmp_path, tmp_path / "cache")
    assert str(wrong.value) == (
        f"inputs[0]: fetch {archive.url}: the content has the SHA-256 {SHA256}, but {'0' * 64} was asked for"
    )
    [aside] = (tmp_path / "cache").glob("*.wrong")
    assert str(aside) in wrong.value.hint
    assert aside.read_bytes() == CONTENT


def test_busy_servers_are_given_the_time_they_ask_for(archive: Archive, tmp_path: Path, waits: list[float]) -> None:
    archive.statuses = [503, 429]
    assert fetch(archive.url, SHA256, tmp_path, wait=waits.append).size == len(CONTENT)
    assert waits == [7.0, 7.0]


def test_gives_up_after_some_tries_and_keeps_what_came(archive: Archive, tmp_path: Path, waits: list[float]) -> None:
    archive.cuts = [1_000_000] + [0] * TRIES
    with pytest.raises(InputError, match=rf"fetch {archive.url}: .*\({TRIES} tries\)") as given_up:
        fetch(archive.url, SHA256, tmp_path, wait=waits.append)
    assert "what has come so far is kept" in given_up.value.hint
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert fetch(archive.url, SHA256, tmp_path).path.read_bytes() == CONTENT
    assert archive.asked("range")[-1] == "bytes=1000000-"


@pytest.mark.parametrize(
    ("status", "why"), [(404, "no such file"), (403, "refuses it .403"), (400, "answered 400 Bad Request")]
)
def test_what_trying_again_cannot_mend_is_told_at_once(archive: Archive, tmp_path: Path, status: int, why: str) -> None:
    archive.statuses = [status]
    with pytest.raises(InputError, match=why):
        fetch(archive.url, SHA256, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_secrets_in_a_url_stay_out_of_messages(archive: Archive, tmp_path: Path) -> None:
    archive.statuses = [404]
    url = archive.url.replace("http://", "http://ann:hunter2@") + "?X-Amz-Signature=f00"
    with pytest.raises(InputError) as refused:
        fetch(url, "", tmp_path)
    assert "hunter2" not in str(refused.value) and "f00" not in str(refused.value)
    assert archive.asked("authorization") != [None]


def test_redirections_are_followed(archive: Archive, tmp_path: Path) -> None:
    assert fetch(archive.url.replace("/data/events.fits", "/moved"), SHA256, tmp_path).size == len(CONTENT)


def test_an_address_where_nobody_listens(tmp_path: Path, archive: Archive, waits: list[float]) -> None:
    with pytest.raises(InputError, match="refused"):
        fetch("http://127.0.0.1:1/x", "", tmp_path, wait=waits.append)
    assert len(waits) == TRIES - 1


def test_two_jobs_that_want_the_same_fetch_it_once(archive: Archive, tmp_path: Path) -> None:
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(fetch(archive.url, SHA256, tmp_path).path.read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [CONTENT] * 4
    assert len(archive.seen) == 1


def test_a_full_disk_is_this_machines_fault_and_leaves_the_part(archive: Archive, tmp_path: Path) -> None:
    """On a real small file system of the test's own, in a mount namespace that ends with it."""
    script = f"""
import subprocess
from pathlib import Path
from gridhypervisor.staging import fetch
folder = Path({str(tmp_path)!r})
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "ghv-test", folder], check=True)
try:
    fetch({archive.url!r}, {SHA256!r}, folder)
except OSError as error:
    print(error.errno, error.filename)
print([path.stat().st_size >= 1 << 20 for path in folder.glob("*.part")])
subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
print(fetch({archive.url!r}, {SHA256!r}, folder).size)
"""
    wrapper = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    done = subprocess.run([*wrapper, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    [full, part, size] = done.stdout.splitlines()
    assert full.startswith("28 ") and full.endswith(".part")
    assert (part, size) == ("[True]", str(len(CONTENT)))
    assert archive.asked("range")[-1] is not None


def test_for_users_of_the_network_only_the_public_internet_is_asked(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither this machine, nor a name that leads to it, nor one that does so only when it is looked up again."""
    for place in (archive.url, archive.url.replace("127.0.0.1", "localhost"), "http://[::ffff:10.0.0.1]/x"):
        with pytest.raises(InputError, match="is not on the public internet") as error:
            fetch(place, "", tmp_path, public=True)
        assert "upload" in error.value.hint
    assert archive.seen == []
    real, asked = socket.getaddrinfo, []

    def rebinding(host: str, port: object, *rest: object, **more: object) -> object:
        asked.append(host)
        if len(asked) == 1:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
        return real(host, port, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with pytest.raises(InputError, match=r"127\.0\.0\.1 is not on the public internet"):
        fetch(archive.url, "", tmp_path, public=True)
    assert not list(tmp_path.glob("*")) or all(path.stat().st_size == 0 for path in tmp_path.glob("*.part"))
    with pytest.raises(InputError, match="is not fetched for this job"):
        fetch("s3://bucket/key", "", tmp_path, public=True)
