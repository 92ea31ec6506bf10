"""Brings home what one entry holds: its logs to the service's folder, its results to the user's.

What a node wrote may show late at the front-end. The sentinel says how long the streams are and which outputs there
are, so this waits for them, as long as the site's file system may lag and no longer. What is small comes all in one
answer, since each question takes as long as the way to the site and back; the rest comes file by file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from gridhypervisor.execution.logs import STREAMS, Logs
from gridhypervisor.execution.ports import Link
from gridhypervisor.execution.results import Unfit, admit, keep, make_link, place_of
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Allocation
from gridhypervisor.model.wire import EXIT, OUTPUTS, SPOOL, ExitRecord, Op, OutputFile, declared, from_plain

LISTING = 120.0
"""Seconds that a page of a listing may take."""

BULK = 3600.0
"""Seconds that one file may take; a lost connection is noticed by the transport long before."""

SMALL = 128 << 10
"""Bytes of files of an entry that come together: they are in memory then, and perhaps those of a thousand."""

LOOK_AGAIN = 2.0
"""Seconds between two looks at what is not yet all there."""


class Collector:
    """For one allocation, over one connection. `spool_lag`: seconds that a file may stay out of sight."""

    def __init__(
        self,
        link: Link,
        a: Allocation,
        logs: Logs,
        *,
        clock: Callable[[], float],
        spool_lag: float,
        progress: Callable[[str], None],
    ) -> None:
        self._link, self._a, self._logs, self._clock, self._progress = link, a, logs, clock, progress
        self._settled = (a.times.ended or 0.0) + spool_lag  # from then on there is all that there will be
        self._small: dict[str, bytes | None] = {}  # what came together, until it has its place; None: it is not there

    async def logs(self) -> None:
        """The streams as long as the pilot saw them, and whatever there is of the others."""
        self._progress("logs")
        self._small = await self._fetch([*STREAMS.values(), EXIT])
        folder = await asyncio.to_thread(self._keep_logs)
        sizes = self._a.exit.streams if self._a.exit is not None else {}
        for name in STREAMS.values():
            local = folder / name
            if name not in self._small:
                await self._download(name, local, optional=True)
            while (size := sizes.get(name, 0)) and _size(local) < size and self._clock() < self._settled:
                await asyncio.sleep(LOOK_AGAIN)
                await self._download(name, local, optional=True)

    async def _fetch(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """These files of the entry, and its outputs, by name, as far as they are small."""
        args = {"entry": self._a.pilot_job, "names": names, "outputs": True, "most": SMALL}
        reply, payload = await self._link.call(Op.FETCH, args, timeout=LISTING)
        found: dict[str, bytes | None] = {}
        at = 0
        for name, size in reply["sizes"].items():
            found[name] = None if size is None else payload[at : at + size]
            at += size or 0
        return found

    def _keep_logs(self) -> Path:
        """Write those that have come to the service's folder."""
        folder = self._logs.folder(self._a.job, self._a.epoch)
        come = {folder / name: self._small.get(name) for name in (*STREAMS.values(), EXIT)}
        keep({place: data for place, data in come.items() if data is not None})
        return folder

    async def streams(self, destination: Path, places: Mapping[str, str]) -> None:
        """What the program printed, over all attempts, to files of the user's own."""
        for stream, place in places.items():
            with _elsewhere(destination, place) as file:
                await asyncio.to_thread(self._logs.copy, self._a.job, stream, file)

    async def results(
        self,
        destination: Path,
        patterns: Sequence[str],
        elsewhere: Mapping[str, str] | None = None,
        *,
        others: Sequence[str] = (),
        links: bool = True,
    ) -> int:
        """Every output that fits; how many. `elsewhere`: files that some of them go to, by name; `others`: patterns of
        what is passed over where it is none of `patterns`; without `links`, these are too.

        Raises:
            Unfit: those that do not; all others are home.
        """
        unfit, brought = list[Unfit](), 0
        async for output in self._outputs():
            if output.link and not links:
                continue
            if declared(output.path, others) and not declared(output.path, patterns):
                continue
            self._progress(f"result {output.path}")
            try:
                admit(output, patterns)
                named = (elsewhere or {}).get(output.path)
                place = _elsewhere(destination, named) if named else place_of(destination, output.path)
                data = self._small.pop(f"{OUTPUTS}/{output.path}", None)
                if data is not None and hashlib.sha256(data).hexdigest() == output.sha256:
                    await asyncio.to_thread(_keep_result, place, data, output.mode & 0o777)
                else:
                    with place as path:
                        await self._bring(output, path)
                brought += 1
            except Unfit as error:
                unfit.append(error)
        if unfit:
            more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
            raise Unfit(f"{unfit[0]}{more}", unfit[0].hint)
        return brought

    async def _outputs(self) -> AsyncIterator[OutputFile]:
        # The sentinel says what there is: a look at the folder may come before the file system shows all of it.
        sentinel = self._small.get(EXIT)
        if sentinel is None:
            record = self._logs.folder(self._a.job, self._a.epoch) / EXIT
            await self._download(EXIT, record, optional=True)
            sentinel = await asyncio.to_thread(_read, record)
        exit, outputs = _understood(sentinel)
        if exit is not None and exit.by == "pilot":
            for output in outputs:
                yield output
            return
        await asyncio.sleep(max(0.0, self._settled - self._clock()))
        after, more = "", True
        while more:
            reply, _ = await self._link.call(Op.LIST_OUT, {"entry": self._a.pilot_job, "after": after}, timeout=LISTING)
            for plain in reply["files"]:
                output = from_plain(OutputFile, {"sha256": "", **plain})
                yield output
                after = output.path
            more = bool(reply["more"] and reply["files"])

    async def _bring(self, output: OutputFile, place: Path) -> None:
        if output.link:
            make_link(place, output.link)
            return
        while True:
            try:
                mode = output.mode & 0o777
                await self._download(f"{OUTPUTS}/{output.path}", place, sha256=output.sha256, mode=mode)
                return
            except LinkError as error:
                if error.kind not in ("digest", "missing", "path"):
                    raise
                if self._clock() >= self._settled:
                    hint = error.hint or "it was changed at the site after the run: submit the job again"
                    raise Unfit(str(error), hint) from error
            await asyncio.sleep(LOOK_AGAIN)

    async def _download(
        self, name: str, local: Path, *, sha256: str = "", mode: int = 0o600, optional: bool = False
    ) -> None:
        """Get one file of the entry. What the disk here has against it names the file."""
        path = f"{SPOOL}/{self._a.pilot_job}/{name}"
        try:
            await self._link.download(path, local, sha256=sha256, mode=mode, optional=optional, timeout=BULK)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(error.filename or local)) from error


def _elsewhere(destination: Path, place: str) -> contextlib.AbstractContextManager[Path]:
    """A file that the user has named, below the destination or anywhere."""
    full = Path(os.path.normpath(destination / place))
    return place_of(full.parent, full.name)


def _keep_result(place: contextlib.AbstractContextManager[Path], data: bytes, mode: int) -> None:
    with place as path:
        keep({path: data}, mode)


def _read(record: Path) -> bytes | None:
    try:
        return record.read_bytes()
    except FileNotFoundError:
        return None


def _understood(sentinel: bytes | None) -> tuple[ExitRecord | None, list[OutputFile]]:
    """The sentinel, and its outputs: links last, which costs nothing and leaves the files to be tried first."""
    if sentinel is None:
        return None, []
    exit = from_plain(ExitRecord, json.loads(sentinel))
    return exit, sorted(exit.outputs, key=lambda output: output.link != "")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
