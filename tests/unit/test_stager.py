"""Many jobs' inputs at once: one slow source holds nobody else, and the cache stays within bounds."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model.errors import InputError
from gridhypervisor.model.spec import InputSpec
from gridhypervisor.staging import Fetched, Stager, stager
from gridhypervisor.staging.fetch import Report
from gridhypervisor.staging.keeping import FORGOTTEN, IN_USE, prune

SLOW = InputSpec(url="http://slow/data")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[str]]]:
    """A source that answers when it is told to and reports until then, and who asked."""
    go_on, asked = threading.Event(), list[str]()

    def fetch(url: str, sha256: str, cache: Path, progress: Report, *, wait: object, public: bool) -> Fetched:
        asked.append(url)
        while "slow" in url and not go_on.wait(0.01):
            progress(0, None)
        if "absent" in url:
            raise InputError("it is not there", "look again")
        return Fetched(cache / "x", "0" * 64, 1)

    monkeypatch.setattr(stager, "fetch", fetch)
    yield go_on, asked
    go_on.set()


def test_one_slow_url_is_fetched_once_and_holds_nobody(slow: tuple[threading.Event, list[str]], tmp_path: Path) -> None:
    go_on, asked = slow
    (tmp_path / "local").write_text("x")

    async def jobs() -> None:
        stager = Stager(tmp_path)
        told = set[int]()
        waiting = [
            asyncio.create_task(stager.stage([SLOW], tmp_path, lambda *_, number=number: told.add(number)))
            for number in range(50)
        ]
        async with asyncio.timeout(60):
            quick = await stager.stage(["local", "http://quick/x"], tmp_path, lambda *_: None)
            assert [each.described.path for each in quick] == ["local", "x"]
            while len(told) < 50:  # until all of them wait for it
                await asyncio.sleep(0.01)
        waiting[0].cancel()
        go_on.set()
        rest = await asyncio.gather(*waiting[1:])
        assert all(each.described.path == "data" for [each] in rest)
        with pytest.raises(InputError, match=r"inputs\[0\]: it is not there"):
            await stager.stage(["http://absent/x"], tmp_path, lambda *_: None)
        stager.close()

    asyncio.run(jobs())
    assert asked.count("http://slow/data") == 1


def put(cache: Path, name: str, size: int, idle: float, now: float) -> None:
    for kind in ("", ".about"):
        path = cache / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{kind}"
        path.write_bytes(b"x" * size)
        os.utime(path, (now - idle, now - idle))


def test_what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    now = time.time()
    for name, idle in (("forgotten", FORGOTTEN + 1), ("older", IN_USE + 9), ("old", IN_USE + 5), ("new", 1.0)):
        put(tmp_path, name, 100, idle, now)
    assert prune(tmp_path, now, limit=1 << 20) == 200  # only what was forgotten
    assert prune(tmp_path, now, limit=400) == 200  # the older
    assert prune(tmp_path, now, limit=0) == 200
    assert len(list(tmp_path.iterdir())) == 2
