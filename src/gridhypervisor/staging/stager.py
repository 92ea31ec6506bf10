"""Stages inputs for many jobs at once, without letting a slow source stand in the way of anybody else.

Fetching has threads of its own, and so has the reading of local files. A URL that several jobs want is fetched by one
of them; the others wait for that without holding a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gridhypervisor.model.errors import InputError
from gridhypervisor.model.spec import InputSpec
from gridhypervisor.model.wire import Input
from gridhypervisor.staging.fetch import Fetched, Report, fetch
from gridhypervisor.staging.inputs import Planned, Progress, Staged, expand, local_file
from gridhypervisor.staging.keeping import prune

FETCHERS, READERS = 16, 4
"""Threads: URLs under way at once; jobs whose local files are read at once (a disk serves no more)."""


class Closing(Exception):
    """The service stops; what has come so far is kept."""


@dataclass
class _Fetching:
    done: asyncio.Future[Fetched]
    told: list[Report] = field(default_factory=list)


class Stager:
    """`cache`: the folder for what URLs name. `public`: these are fetched from the public internet alone."""

    def __init__(self, cache: Path, *, public: bool = False) -> None:
        self._cache, self._public = cache, public
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._under_way: dict[tuple[str, str], _Fetching] = {}
        self._closing = threading.Event()

    async def stage(self, specs: Sequence[str | InputSpec], folder: Path, progress: Progress) -> list[Staged]:
        """Every input as a file on this machine, in any order; see `staging.stage`.

        `progress` is called from any thread.

        Raises:
            InputError: an input cannot be had. OSError: the cache cannot be written.
        """
        loop = asyncio.get_running_loop()
        planned = await loop.run_in_executor(self._readers, expand, specs, folder)
        fetching = [asyncio.create_task(self._fetched(item, progress)) for item in planned if item.url]
        try:
            local = [item for item in planned if not item.url]
            read = await loop.run_in_executor(self._readers, lambda: [local_file(item, progress) for item in local])
            return [*read, *await asyncio.gather(*fetching)]
        finally:
            for task in fetching:
                task.cancel()

    def close(self) -> None:
        """End what is under way, at its next word."""
        self._closing.set()
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def _fetched(self, item: Planned, progress: Progress) -> Staged:
        key = (item.url, item.sha256)
        fetching = self._under_way.get(key)
        if fetching is None:
            told: list[Report] = []
            done = asyncio.get_running_loop().run_in_executor(self._fetchers, self._fetch, *key, told)
            fetching = self._under_way[key] = _Fetching(done, told)
            done.add_done_callback(lambda _: self._under_way.pop(key))
            done.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask
        fetching.told.append(lambda now, total: progress(item.name, now, total))
        try:
            got = await asyncio.shield(fetching.done)  # others may want it although this job no longer does
        except InputError as error:
            raise InputError(f"{item.field}: {error}", error.hint) from error
        return Staged(got.path, Input(item.name, got.size, got.sha256, item.mode))

    def _fetch(self, url: str, sha256: str, told: list[Report]) -> Fetched:
        def report(done: int, total: int | None) -> None:
            self._go_on()
            for tell in list(told):
                tell(done, total)

        def wait(seconds: float) -> None:
            self._closing.wait(seconds)
            self._go_on()

        got = fetch(url, sha256, self._cache, report, wait=wait, public=self._public)
        with contextlib.suppress(OSError):  # what is here is here
            prune(self._cache, time.time())
        return got

    def _go_on(self) -> None:
        if self._closing.is_set():
            raise Closing
