"""Brings home what one entry holds: its logs to the service's folder, its results to the user's.

What a node wrote may show late at the front-end. The sentinel says how long the streams are and which outputs there
are, so this waits for them, as long as the site's file system may lag and no longer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from gridhypervisor.execution.logs import STREAMS, Logs
from gridhypervisor.execution.ports import Link
from gridhypervisor.execution.results import Unfit, admit, make_link, place_of
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Allocation
from gridhypervisor.model.wire import EXIT, OUTPUTS, SPOOL, ExitRecord, Op, OutputFile, from_plain

LISTING = 120.0
"""Seconds that a page of a listing may take."""

BULK = 3600.0
"""Seconds that one file may take; a lost connection is noticed by the transport long before."""

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

    async def logs(self) -> None:
        """The streams as long as the pilot saw them, and whatever there is of the others."""
        self._progress("logs")
        folder = self._logs.folder(self._a.job, self._a.epoch)
        sizes = self._a.exit.streams if self._a.exit is not None else {}
        for name in STREAMS.values():
            local = folder / name
            await self._download(name, local, optional=True)
            while _size(local) < sizes.get(name, 0) and self._clock() < self._settled:
                await asyncio.sleep(LOOK_AGAIN)
                await self._download(name, local, optional=True)

    async def results(self, destination: Path, patterns: Sequence[str]) -> None:
        """Every output that fits.

        Raises:
            Unfit: those that do not; all others are home.
        """
        unfit = list[Unfit]()
        async for output in self._outputs():
            self._progress(f"result {output.path}")
            try:
                admit(output, patterns)
                with place_of(destination, output.path) as place:
                    await self._bring(output, place)
            except Unfit as error:
                unfit.append(error)
        if unfit:
            more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
            raise Unfit(f"{unfit[0]}{more}", unfit[0].hint)

    async def _outputs(self) -> AsyncIterator[OutputFile]:
        record = self._logs.folder(self._a.job, self._a.epoch) / EXIT
        await self._download(EXIT, record, optional=True)
        # The sentinel says what there is: a look at the folder may come before the file system shows all of it.
        exit, outputs = await asyncio.to_thread(_read, record)
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


def _read(record: Path) -> tuple[ExitRecord | None, list[OutputFile]]:
    """The sentinel, and its outputs: links last, which costs nothing and leaves the files to be tried first."""
    try:
        exit = from_plain(ExitRecord, json.loads(record.read_bytes()))
    except FileNotFoundError:
        return None, []
    return exit, sorted(exit.outputs, key=lambda output: output.link != "")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
