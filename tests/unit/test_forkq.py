"""The fork site's batch system: slots, walltime, cancelling, and what remains when its own processes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-m", "gridhypervisor.agent.main", "forkq"]
UNHURRIED = [
    *(sys.executable, "-c"),
    "import sys; from gridhypervisor.agent import forkq; forkq.SLOT_POLL = 1e6; sys.exit(forkq.main(sys.argv[1:]))",
]
"""One that looks for a free slot only when it is told of one."""


class Forkq:
    """The queue as its users see it: by its command line."""

    def __init__(self, folder: Path, program: list[str] = PROGRAM) -> None:
        self.folder, self.program = folder, program

    def __call__(self, *words: str, stdin: str = "") -> str:
        argv = [*self.program, "--dir", str(self.folder), *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, *, walltime: float = 600, slots: int = 2, kill_wait: float = 1) -> str:
        words = ["--name", "inst-1", "--walltime", str(walltime), "--slots", str(slots), "--kill-wait", str(kill_wait)]
        return self("submit", *words, stdin=script).strip()

    def list(self) -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in map(json.loads, self("list").splitlines())}

    def wait(self, number: str, state: str = "ENDED", seconds: float = 120) -> dict[str, Any]:
        until(lambda: self.list()[number]["state"] == state, seconds)
        return self.list()[number]

    def supervisor(self, number: str) -> int:
        read: dict[str, int] = json.loads((self.folder / "jobs" / number / "job.json").read_text())
        return read.get("supervisor", 0)  # what is still unset is not written


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(file: Path, count: int) -> list[int]:
    until(lambda: file.exists() and len(file.read_text().split()) == count)
    return [int(word) for word in file.read_text().split()]


@pytest.fixture
def forkq(tmp_path: Path) -> Iterator[Forkq]:
    queue = Forkq(tmp_path / "queue")
    yield queue
    for number, job in queue.list().items():
        if job["state"] != "ENDED":
            queue("cancel", number)
            queue.wait(number)


def test_a_job_runs_and_its_end_is_kept(forkq: Forkq) -> None:
    number = forkq.submit("echo said; exit 7")
    assert forkq.wait(number) == {"id": number, "name": "inst-1", "state": "ENDED", "reason": "exited", "code": 7,
                                  "cpus": 1}  # fmt: skip
    assert (forkq.folder / "jobs" / number / "output").read_text() == "said\n"
    until(lambda: not (forkq.folder / "jobs" / number / "script").exists())


def test_it_is_listed_when_submit_returns_and_ids_are_never_used_again(forkq: Forkq) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: forkq.submit("true", slots=4), range(12)))
    assert len(set(numbers)) == 12
    assert forkq.list().keys() >= set(numbers)
    for number in numbers:
        assert forkq.wait(number)["code"] == 0
    assert int(forkq.submit("true")) > max(map(int, numbers))


def test_no_more_jobs_run_than_there_are_slots_and_the_next_starts_at_once(forkq: Forkq, tmp_path: Path) -> None:
    forkq.program = UNHURRIED
    log, go = tmp_path / "log", tmp_path / "go"
    script = f"echo + >>{log}; until [ -e {go} ]; do sleep 0.05; done; sleep 0.3; echo - >>{log}"
    numbers = [forkq.submit(script, slots=2) for _ in range(5)]
    # None ends before two have begun and the others wait, however slowly they are submitted.
    until(lambda: log.exists() and len(log.read_text().split()) >= 2)
    until(lambda: all(forkq.supervisor(number) for number in numbers))
    go.touch()
    for number in numbers:
        assert forkq.wait(number)["reason"] == "exited"
    running = most = 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 2


def test_walltime_ends_a_job_kindly_and_then_for_good(forkq: Forkq, tmp_path: Path) -> None:
    # Long enough that the shell has set its trap by then.
    kind = forkq.submit("trap 'exit 5' TERM; while :; do sleep 0.1; done", walltime=6, kill_wait=60)
    stubborn = forkq.submit(f"trap '' TERM; sleep 600 & echo $$ $! >{tmp_path}/pids; wait; wait", walltime=6)
    assert forkq.wait(kind) | {"id": ""} == {
        "id": "",
        "name": "inst-1",
        "state": "ENDED",
        "reason": "walltime",
        "code": 5,
        "cpus": 1,
    }
    ended = forkq.wait(stubborn)
    assert (ended["reason"], ended["code"]) == ("walltime", 137)
    assert not any(map(alive, pids(tmp_path / "pids", 2)))


def test_cancelling_reaches_every_process_of_a_running_job(forkq: Forkq, tmp_path: Path) -> None:
    number = forkq.submit(
        f"setsid sleep 600 & (sleep 600 & echo $! >>{tmp_path}/pids); echo $! $$ >>{tmp_path}/pids; wait"
    )
    family = pids(tmp_path / "pids", 3)
    forkq("cancel", number)
    assert forkq.wait(number)["reason"] == "cancelled"
    assert not any(map(alive, family))
    forkq("cancel", number, "999")  # ended, and never known: nothing to do


def test_a_stopped_job_can_be_cancelled(forkq: Forkq, tmp_path: Path) -> None:
    number = forkq.submit(f"echo $$ >{tmp_path}/pids; while :; do sleep 0.1; done")
    [script] = pids(tmp_path / "pids", 1)
    os.kill(script, signal.SIGSTOP)
    forkq("cancel", number)
    assert forkq.wait(number) | {"code": 137, "reason": "cancelled"} == forkq.list()[number]


def test_waiting_jobs_are_cancelled_wherever_they_stand_in_line(forkq: Forkq, tmp_path: Path) -> None:
    running = forkq.submit(f"echo $$ >{tmp_path}/pids; sleep 600", slots=1)
    pids(tmp_path / "pids", 1)
    waiting = [forkq.submit(f"touch {tmp_path}/ran", slots=1) for _ in range(3)]
    forkq("cancel", *waiting)  # the last one's supervisor may not have told its pid yet
    for number in waiting:
        assert forkq.wait(number) == {
            "id": number, "name": "inst-1", "state": "ENDED", "reason": "cancelled", "code": None, "cpus": 1,
        }  # fmt: skip
    assert forkq.list()[running]["state"] == "RUNNING"
    assert not (tmp_path / "ran").exists()


def test_what_a_script_leaves_behind_may_finish_its_business_but_does_not_stay(forkq: Forkq, tmp_path: Path) -> None:
    """A watchdog ignores TERM and outlives its pilot by a moment: that moment must be given."""

    def script(left: str) -> str:
        """Ends as soon as what it leaves has set its trap."""
        ready = tmp_path / "ready"
        ready.unlink(missing_ok=True)
        trapped = left.replace("TERM;", f"TERM; touch {ready};")
        return f'sh -c "{trapped}" & echo $! >{tmp_path}/pids; until [ -e {ready} ]; do sleep 0.05; done'

    outlives = "while kill -0 $$; do sleep 0.05; done 2>/dev/null"
    watchdog = forkq.submit(script(f"trap '' TERM; {outlives}; sleep 0.3; touch {tmp_path}/sentinel"), kill_wait=60)
    assert forkq.wait(watchdog)["code"] == 0
    assert (tmp_path / "sentinel").exists()
    stays = forkq.submit(script("trap : TERM; while :; do sleep 1; done"), kill_wait=1)
    assert forkq.wait(stays)["code"] == 0
    assert not any(map(alive, pids(tmp_path / "pids", 1)))


def test_a_killed_supervisor_leaves_no_process_and_no_doubt(forkq: Forkq, tmp_path: Path) -> None:
    number = forkq.submit(f"setsid sleep 600 & echo $! $$ >{tmp_path}/pids; wait", slots=1)
    family = pids(tmp_path / "pids", 2)
    after = forkq.submit("true", slots=1)
    os.kill(forkq.supervisor(number), signal.SIGKILL)
    assert forkq.wait(number)["reason"] == "lost"
    assert not any(map(alive, family))
    assert forkq.wait(after)["code"] == 0  # its slot is free again


def test_a_killed_first_in_line_does_not_hold_up_the_next(forkq: Forkq, tmp_path: Path) -> None:
    running = forkq.submit(f"echo $$ >{tmp_path}/pids; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done", slots=1)
    pids(tmp_path / "pids", 1)
    first = forkq.submit("true", slots=1)
    until(lambda: forkq.supervisor(first) > 0)
    second = forkq.submit("true", slots=1)
    os.kill(forkq.supervisor(first), signal.SIGKILL)
    (tmp_path / "go").touch()
    assert forkq.wait(first)["reason"] == "lost"
    assert forkq.wait(second)["code"] == 0
    assert forkq.list()[running]["code"] == 0


def test_jobs_outlive_the_session_that_submitted_them(forkq: Forkq, tmp_path: Path) -> None:
    words = [*PROGRAM, "--dir", str(forkq.folder), "submit", "--name", "inst-1", "--walltime", "600"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as submitter:
        # The submitter's pipes are let go at once: reading to their end must not wait for the job.
        script_text = f"echo $$ >{tmp_path}/pids; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
        printed, _ = submitter.communicate(script_text.encode(), timeout=120)
    [script] = pids(tmp_path / "pids", 1)
    with pytest.raises(ProcessLookupError):
        os.killpg(submitter.pid, signal.SIGKILL)
    assert alive(script)
    (tmp_path / "go").touch()
    assert forkq.wait(printed.decode().strip())["code"] == 0


def test_an_end_that_nobody_wrote_down_is_lost(forkq: Forkq) -> None:
    number = forkq.submit("true")
    forkq.wait(number)
    until(lambda: not alive(forkq.supervisor(number)))
    record = forkq.folder / "jobs" / number / "job.json"
    left = json.loads(record.read_text()) | {"state": "RUNNING", "reason": ""}
    record.write_text(json.dumps(left))
    until(lambda: forkq.list()[number]["state"] == "ENDED")
    assert forkq.list()[number]["reason"] == "lost"


def test_old_ends_are_forgotten(forkq: Forkq) -> None:
    number = forkq.submit("true")
    forkq.wait(number)
    record = forkq.folder / "jobs" / number / "job.json"
    long_ago = time.time() - 2 * 86400
    until(lambda: not alive(forkq.supervisor(number)))
    os.utime(record, (long_ago, long_ago))
    forkq.wait(forkq.submit("true"))
    assert number not in forkq.list()
