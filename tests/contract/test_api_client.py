"""The clients against the real server: answers, errors, and streams that survive cuts, restarts and crashes."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from gridhypervisor.client import AsyncClient, Client
from gridhypervisor.client.launcher import Paths, ensure_service
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import FollowKind, JobRequest, ServiceError
from tests.unit.fake_service import WAIT, Service

FAKE_SERVICE = (sys.executable, "-m", "tests.unit.fake_service")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "s.sock") as running:
        yield running


def request(*command: str) -> JobRequest:
    return JobRequest(JobSpec("xmm", command), "/tmp", "/tmp")


class Cutter:
    """Between client and service: passes on a few bytes of each answer, then cuts the connection."""

    def __init__(self, path: Path, target: Path, cuts: Callable[[], int]) -> None:
        self.connections = 0
        self._target, self._cuts = target, cuts
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._pass_on, args=(client, self._cuts()), daemon=True).start()

    def _pass_on(self, client: socket.socket, left: int) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(ConnectionError):
            server.connect(str(self._target))
            server.sendall(client.recv(1 << 16))
            while left > 0 and (data := server.recv(min(left, 1 << 16))):
                client.sendall(data)
                left -= len(data)


def test_bytes_are_neither_lost_nor_doubled_however_the_stream_is_cut(service: Service, tmp_path: Path) -> None:
    text = "".join(f"line {n} of a program that prints\n" for n in range(400))
    job = Client(str(service.socket)).submit(request("hold")).id
    for stream in ("stdout", "stderr"):
        service.do(lambda stream=stream: service.backend.say(job, stream, text.encode()))  # type: ignore[misc]
    service.do(lambda: service.backend.release(job))
    dice = random.Random(7)
    cutter = Cutter(tmp_path / "cut.sock", service.socket, lambda: dice.choice([0, 100, 900, 4000, 9000]))
    got = {"stdout": b"", "stderr": b""}
    try:
        for item in Client(str(tmp_path / "cut.sock"), patience=WAIT).follow(job):
            if item.kind is FollowKind.OUTPUT:
                got[item.stream] += item.data
    finally:
        cutter.close()
    assert got == {"stdout": text.encode(), "stderr": text.encode()}
    assert cutter.connections > 5, "the stream was never cut: nothing was tested"


def test_an_answer_that_is_cut_is_asked_for_again_and_a_job_is_not_doubled(service: Service, tmp_path: Path) -> None:
    left = [50, 50, 1 << 20]
    cutter = Cutter(tmp_path / "cut.sock", service.socket, lambda: left.pop(0))
    try:
        client = Client(str(tmp_path / "cut.sock"), patience=WAIT)
        assert client.submit(request("hold")).id == "j1"
        assert (cutter.connections, service.backend.submissions) == (3, 1)
        assert len(Client(str(service.socket)).jobs()) == 1
        left[:] = [50]
        with pytest.raises(ServiceError, match="went away before it answered"):
            client.stop()
    finally:
        cutter.close()


def test_a_stream_goes_on_after_a_restart(service: Service) -> None:
    client = Client(str(service.socket), patience=WAIT)
    job = client.submit(request("print", "before ", "hold", "print", "after")).id
    seen, printed = b"", threading.Event()

    def follow() -> bytes:
        nonlocal seen
        for item in client.follow(job):
            seen += item.data
            if seen:
                printed.set()
        return seen

    with ThreadPoolExecutor() as pool:
        whole = pool.submit(follow)
        assert printed.wait(WAIT)
        service.stop()
        service.start()
        service.do(lambda: service.backend.release(job))
        assert whole.result(WAIT) == b"before after"


def test_events_are_watched_across_a_restart(service: Service) -> None:
    client = Client(str(service.socket), patience=WAIT)
    first = client.submit(request("hold")).id
    events = client.watch_events()
    assert [next(events).after for _ in range(4)] == ["pending", "prolog", "queued", "running"]
    service.stop()
    service.start()
    service.do(lambda: service.backend.release(first))
    assert next(events).after == "done"


def test_a_service_that_is_away_is_an_error_that_says_what_to_do(tmp_path: Path, service: Service) -> None:
    with pytest.raises(ServiceError, match="No such file") as error:
        Client(str(tmp_path / "none.sock")).jobs()
    assert error.value.problem.code == "unavailable"
    assert "ghv service start" in error.value.problem.hint
    client = Client(str(service.socket), patience=0.2)
    client.status()
    service.stop()
    with pytest.raises(ServiceError, match=r"did not come back within 0 s"):
        client.jobs()


def test_a_crashed_service_is_started_again_and_a_stopped_one_is_not(service: Service) -> None:
    started: list[bool] = []

    def revive() -> None:
        started.append(True)
        service.socket.unlink()
        service.start()

    hasty, patient = (Client(str(service.socket), revive=revive, patience=seconds) for seconds in (0.2, WAIT))
    for client in (hasty, patient):
        client.status()
    service.stop()
    with pytest.raises(ServiceError):
        hasty.status()
    assert not started
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(service.socket))
    patient.status()
    assert started == [True]


def test_the_asynchronous_client_says_the_same(service: Service, tmp_path: Path) -> None:
    text = "".join(f"line {n}\u2028 of a program that prints\n" for n in range(300))

    async def use() -> None:
        dice = random.Random(3)
        async with AsyncClient(str(service.socket)) as client:
            job = await client.submit(request("hold", "exit", "3"))
            service.do(lambda: service.backend.say(job.id, "stdout", text.encode()))
            service.do(lambda: service.backend.release(job.id))
            cutter = Cutter(tmp_path / "cut.sock", service.socket, lambda: dice.choice([100, 900, 4000, 9000]))
            try:
                async with AsyncClient(str(tmp_path / "cut.sock"), patience=WAIT) as cut:
                    items = [item async for item in cut.follow(job.id)]
            finally:
                cutter.close()
            assert b"".join(item.data for item in items) == text.encode()
            assert items[-1].job is not None and items[-1].job.exit_code == 3
            assert (await client.job(job.id)).job == items[-1].job
            progress = [i.kind async for i in client.follow_operation(await client.verify_image("xmm"))]
            assert progress == ["progress", "done"]
            with pytest.raises(ServiceError, match="no such job"):
                await client.cancel("j99")
        with pytest.raises(ServiceError, match="reach the service"):
            async with AsyncClient(str(tmp_path / "none.sock")) as client:
                await client.jobs()

    asyncio.run(use())


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")
    where = Paths(tmp_path / "data", tmp_path / "run" / "x.sock")
    yield where
    if where.socket.exists():
        Client(str(where.socket)).stop()


def test_callers_at_once_start_one_service(paths: Paths) -> None:
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(lambda _: ensure_service(paths, FAKE_SERVICE), range(4)))
    assert started.count(True) == 1
    assert (paths.data / "starts").read_text() == "started\n"
    assert Client(str(paths.socket)).status().pid
    assert not ensure_service(paths, FAKE_SERVICE)
    assert oct(paths.log.stat().st_mode)[-3:] == "600"


def test_a_service_that_cannot_start_says_why(paths: Paths) -> None:
    paths.data.mkdir(mode=0o700)
    (paths.data / "broken").touch()
    with pytest.raises(ServiceError, match="the store: it is broken") as error:
        ensure_service(paths, FAKE_SERVICE)
    assert error.value.problem.code == "unavailable"
    assert str(paths.log) in error.value.problem.hint
    (paths.data / "broken").unlink()
    assert ensure_service(paths, FAKE_SERVICE)
