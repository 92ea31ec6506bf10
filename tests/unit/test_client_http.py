"""The client's HTTP: an answer comes whole, however it is cut into packets; one that is not whole is told as cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gridhypervisor.client.http import Absent, Cut, Exchange

ASKED = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\nX-One: 1\r\n\r\n{}"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n4\r\nc\nd\n\r\n0\r\n\r\n"
LENGTH = b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nwords"

Ask = Callable[..., Exchange]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Ask a service that gives these bytes, in so many at a time, and then closes."""

    def asked(answer: bytes, piece: int = 1000) -> Exchange:
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with listener, peer:
                got = b""
                while len(got) < len(ASKED):
                    got += peer.recv(1000)
                assert got == ASKED
                for at in range(0, len(answer), piece):
                    peer.sendall(answer[at : at + piece])

        threading.Thread(target=serve, daemon=True).start()
        return Exchange(path, "POST", "/jobs", {"X-One": "1"}, b"{}")

    return asked


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_lines_and_bodies_come_whole_in_whatever_pieces(ask: Ask, tmp_path: Path, piece: int) -> None:
    with ask(CHUNKS, piece) as answer:
        assert (answer.status, list(answer.lines())) == (200, [b"a", b"bc", b"d"])
    (tmp_path / "socket").unlink()
    with ask(LENGTH, piece) as answer:
        assert (answer.status, answer.read()) == (404, b"words")


def test_an_answer_without_content_needs_no_length(ask: Ask) -> None:
    with ask(b"HTTP/1.1 204 No Content\r\n\r\n") as answer:
        assert (answer.status, answer.read()) == (204, b"")


@pytest.mark.parametrize("answer", [CHUNKS[:-9], CHUNKS[:-12], CHUNKS[:-5], LENGTH[:-1]])
def test_a_body_that_ends_early_is_told(ask: Ask, answer: bytes) -> None:
    with ask(answer) as found, pytest.raises(Cut):
        found.read()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n\r\nbody", b"SSH-2.0-sshd\r\n\r\n"])
def test_what_is_no_answer_is_told(ask: Ask, answer: bytes) -> None:
    with pytest.raises(Cut):
        ask(answer)


def test_a_line_that_was_not_finished_is_no_line(ask: Ask) -> None:
    with ask(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n") as answer:
        lines = answer.lines()
        assert next(lines) == b"a"
        with pytest.raises(Cut):
            next(lines)


def test_where_nobody_listens_nothing_was_sent(tmp_path: Path) -> None:
    with pytest.raises(Absent):
        Exchange(str(tmp_path / "nothing"), "GET", "/", {})
