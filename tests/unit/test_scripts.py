"""The scripts of workflows: how each ended is told once, whatever becomes of it, and none is left behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gridhypervisor.execution import scripts
from gridhypervisor.execution.scripts import NOT_RUN, Scripts
from gridhypervisor.model.workflow import Script

WAIT = 60.0


def told(*command: str, folder: Path, log: str = "", streams: str = "", kill: str = "") -> tuple[int, str]:
    """What is told of a script; `kill`: it is ended once this file is there."""

    async def run() -> tuple[int, str]:
        ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        running = Scripts(lambda key, code, why: ended.set_result((code, why)))
        running.begin(("w1", "A"), Script(command, log=log, log_streams=streams), command, str(folder), 0)
        if kill:
            await until((folder / kill).exists)
            running.end(("w1", "A"))
            running.end(("w1", "A"))
        result = await asyncio.wait_for(ended, WAIT)
        await running.close()
        return result

    return asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not holds():
            await asyncio.sleep(0.01)


def shell(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return name


def test_a_script_runs_in_its_folder_and_its_exit_code_is_told(tmp_path: Path) -> None:
    program = shell(tmp_path, "before", "pwd; echo $1 >&2; exit 7")
    assert told(program, "word", folder=tmp_path, log="log", streams="ALL") == (7, "")
    assert (tmp_path / "log").read_text() == f"{tmp_path}\nword\n"
    assert told("sh", "-c", "echo out; echo err >&2", folder=tmp_path, log="one", streams="STDERR") == (0, "")
    assert (tmp_path / "one").read_text() == "err\n"


def test_what_cannot_be_run_is_told_in_words(tmp_path: Path) -> None:
    code, why = told("./nowhere", folder=tmp_path)
    assert code == NOT_RUN and why == f"run ./nowhere in {tmp_path}: No such file or directory"
    (tmp_path / "text").write_text("no program")
    assert told("text", folder=tmp_path)[0] == NOT_RUN
    assert told("true", folder=tmp_path / "gone")[0] == NOT_RUN


@pytest.mark.parametrize("deaf", ["", "trap '' TERM;"])
def test_a_script_that_is_ended_is_gone_even_if_it_does_not_want_to(
    deaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "PATIENCE", 0.2)
    program = shell(tmp_path, "endless", f"{deaf} echo $$ > pid.new; mv pid.new pid; while :; do sleep 0.05; done")
    assert told(program, folder=tmp_path, kill="pid") == (-signal.SIGTERM, "")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_script_that_is_ended_before_it_began_is_told_of_too(tmp_path: Path) -> None:
    async def run() -> list[int]:
        told_of: list[int] = []
        running = Scripts(lambda key, code, why: told_of.append(code))
        running.begin(("w1", "A"), Script(("true",)), ("true",), str(tmp_path), 0)
        running.end(("w1", "A"))
        await until(lambda: bool(told_of))
        return told_of

    assert asyncio.run(run()) == [-signal.SIGTERM]


def test_when_the_service_ends_its_scripts_do_and_nobody_is_told(tmp_path: Path) -> None:
    program = shell(tmp_path, "endless", "echo $$ > pid.new; mv pid.new pid; while :; do sleep 0.05; done")
    told_of: list[int] = []

    async def run() -> None:
        running = Scripts(lambda key, code, why: told_of.append(code))
        running.begin(("w1", "A"), Script((program,)), (program,), str(tmp_path), 0)
        running.begin(("w1", "B"), Script((program,)), (program,), str(tmp_path), 3600)
        await until((tmp_path / "pid").exists)
        await running.close()

    asyncio.run(run())
    assert told_of == []
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
