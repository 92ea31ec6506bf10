"""Runs the PRE and POST scripts of workflows, on the user's machine, in the node's folder.

A script is a child of the service, and ends with it. One that was under way when the service was stopped or killed is
run again by the next service: so it must not mind to be run twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from gridhypervisor.model.workflow import Script

NOT_RUN = 127
"""The exit code of a script that could not be started, as shells have it."""


PATIENCE = 5.0
"""Seconds that a script has to end by itself when it is asked to."""


class Scripts:
    """`ended` is told by key how each ended, and in words why one could not be run."""

    def __init__(self, ended: Callable[[tuple[str, str], int, str], None]) -> None:
        self._ended = ended
        self._tasks: dict[tuple[str, str], asyncio.Task[tuple[int, str]]] = {}

    def begin(self, key: tuple[str, str], script: Script, command: tuple[str, ...], folder: str, after: int) -> None:
        """Run it after so many seconds."""
        self._tasks[key] = task = asyncio.create_task(self._run(script, command, folder, after))
        task.add_done_callback(partial(self._over, key))

    def end(self, key: tuple[str, str]) -> None:
        """End it, if it runs; it is told of all the same."""
        task = self._tasks.get(key)
        if task is not None and not task.cancelling():
            task.cancel()

    async def close(self) -> None:
        """End those that run; nobody is told."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, key: tuple[str, str], task: asyncio.Task[tuple[int, str]]) -> None:
        if self._tasks.get(key) is not task:
            return  # the service ends
        del self._tasks[key]
        if task.cancelled():
            self._ended(key, -signal.SIGTERM, "")
        elif (error := task.exception()) is not None:
            self._ended(key, NOT_RUN, f"{type(error).__name__}: {error}")
        else:
            self._ended(key, *task.result())

    async def _run(self, script: Script, command: tuple[str, ...], folder: str, after: int) -> tuple[int, str]:
        await asyncio.sleep(after)
        return await self._execute(script, command, folder)

    async def _execute(self, script: Script, command: tuple[str, ...], folder: str) -> tuple[int, str]:
        program, *arguments = command
        own = Path(folder) / program
        try:
            with open(Path(folder) / script.log if script.log else os.devnull, "ab") as log:
                process = await asyncio.create_subprocess_exec(
                    str(own) if own.exists() else program,
                    *arguments,
                    cwd=folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log if script.log_streams != "STDERR" else asyncio.subprocess.DEVNULL,
                    stderr=log if script.log_streams != "STDOUT" else asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as error:
            return NOT_RUN, f"run {program} in {folder}: {error.strerror}"
        try:
            return await process.wait(), ""
        except asyncio.CancelledError:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), PATIENCE)
                    break
            raise
