"""What the kills of the service have in common, wherever its jobs are: the names of steps, and the story of a fence,
which takes long. The other stories are in `test_kills.py` and `test_slurm_kills.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from gridhypervisor.model import wire
from tests.e2e.cluster import RERUN
from tests.e2e.installation import Installation, wait_for


def around(commits: Iterable[str] = (), actions: Iterable[str] = ()) -> tuple[str, ...]:
    """The steps before and after each of these."""
    whens = ("before", "after")
    return (
        *(f"{when}-commit:{commit}" for commit in commits for when in whens),
        *(f"{when}:{action}" for action in actions for when in whens),
    )


@contextlib.contextmanager
def frozen(lab: Installation, job: str) -> Iterator[Path]:
    """While this lasts watchdog, pilot and guest of the job's newest attempt are stopped; gives its entry. Then the
    watchdog alone goes on: it ends the others, at the latest when nothing was granted for long enough.
    """
    entry, guest, pilot, watchdog = lab.entry(job), lab.hypervisor(job), lab.pilot(job), lab.watchdog(job)
    assert entry is not None
    try:
        for process in (watchdog, pilot, guest):
            os.kill(process, signal.SIGSTOP)
        yield entry
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(watchdog, signal.SIGCONT)


FENCES = ("running-fencing", "fencing-ended", "fencing-fenced", "fenced-cleaned")
"""The commits of `on_silence: replace`."""


def fenced_twice(lab: Installation, *words: str) -> None:
    """Three attempts. The first is frozen, and speaks its last word while it is being fenced; the second stays frozen
    until the third has done the work. `words`: of `ghv run`, for the job; the service is to die around `FENCES`.

    Each death is followed by all of the silence again, which a new service waits for: three minutes in all. No guest
    that is to live ever meets one, so that none ends for want of a grant.
    """
    seconds = lab.work / "seconds"
    seconds.write_text("1000\n")
    silence = ("--on-silence", "replace", "--silence", "30s")
    job = lab.detach(*words, *silence, "--in", "seconds", "--out", "made", "--to", "fenced", "--", "sh", "-c", RERUN)
    with lab.counting(job) as most:
        lab.wait_word(job)
        with frozen(lab, job) as first:
            lab.die_until("after-commit:running-fencing")
        wait_for("its last word", (first / wire.EXIT).exists)  # the dead service learns of it when it lives again
        lab.die_until("after-commit:fencing-ended")
        wait_for("the second attempt", lambda: lab.job(job) and lab.entry(job) != first)
        lab.wait_word(job)
    seconds.write_text("0\n")
    with frozen(lab, job) as second, lab.counting(job) as most_then:
        lab.die_until("after-commit:fencing-fenced")
        found = lab.wait(job, 600)
    lab.die_until("after-commit:fenced-cleaned")
    assert found["job"]["state"] == "done", found
    assert (lab.work / "fenced/made").read_text() == "run\n"
    assert max(*most, *most_then) == 1
    attempts = {attempt["entry"]: attempt for attempt in found["attempts"]}
    fenced, last = attempts[second.name], found["attempts"][-1]
    reasons = [attempt["reason"] for attempt in (attempts[first.name], fenced, last)]
    assert reasons == ["grant", "lost", "exited"], found
    assert "its guest's grant is over" in fenced["message"], fenced
    order = [(event["subject"], event["after"]) for event in lab.events(job)]
    ways = {name: [after for subject, after in order if subject == attempts[name]["id"]] for name in attempts}
    assert ways[first.name][-4:] == ["fencing", "ended", "collected", "cleaned"], ways
    assert ways[second.name][-3:] == ["fencing", "fenced", "cleaned"], ways
    assert order.index((fenced["id"], "fenced")) < order.index((last["id"], "planned")), order


GANG = ("gang-begin", "gang-release")
"""The commits of a gang that is there."""


def gang_of_two(lab: Installation, *words: str) -> None:
    """It dies around the word to begin, and around giving the first round up, of which one member is ended while both
    run. The second round ends by itself: there is no third, and each guest was told of both in it."""
    seconds = lab.work / "seconds"
    seconds.write_text("1000\n")
    program = 'read -r seconds <seconds; echo begun; sleep $seconds; cat "$GHV_GANG_MEMBERS" >members'
    gang = lab.detach(
        *words, "--gang", "2", "--in", "seconds", "--out", "members", "--to", "gang", "--", "sh", "-c", program
    )
    rows = wait_for("its members", lambda: lab.ghv("list", gang, "-o", "json").json)
    members = {row["member"]: str(row["id"]) for row in rows}

    def begun(job: str) -> bool:
        entry = lab.entry(job)
        with contextlib.suppress(FileNotFoundError):
            return entry is not None and (entry / wire.STDOUT).read_bytes() == b"begun\n"
        return False

    # Whoever asks for the events has the service started again.
    wait_for("both programs", lambda: lab.events() and all(map(begun, members.values())), 600)
    wait_for("the deaths as they begin", lambda: lab.events() and len(lab.deaths_to_come()) == 2, 240)
    seconds.write_text("0\n")
    os.kill(lab.pilot(members["0"]), signal.SIGKILL)  # its watchdog ends the guest, and says so
    assert lab.ghv("wait", gang, timeout=900).code == 0
    told = [(lab.work / f"gang/{member}/members").read_text() for member in (0, 1)]
    assert told[0] == told[1] and [line.split()[:2] for line in told[0].splitlines()] == [
        ["0", f"{gang}-0"],
        ["1", f"{gang}-1"],
    ], told
    for member in (0, 1):
        found = lab.job(f"{gang}.{member}")
        assert [attempt["epoch"] for attempt in found["attempts"]] == [1, 2], found
        assert lab.ghv("logs", f"{gang}.{member}").out == b"begun\nbegun\n"


SUSPENSION = ("wish-suspend", "saving", "checkpoint", "wish-run"), ("save", "discard", "copy", "erase")
"""The commits and actions of a job that is suspended, copied and resumed."""


def suspended_and_resumed(lab: Installation, *words: str) -> None:
    """A program that counts stands still, is copied, goes on, and is cancelled; then its checkpoint is removed."""
    program = "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.2; done"
    job = lab.detach(*words, "--hypervisor", "tcg", "--", "sh", "-c", program)

    def counted() -> int:
        return len(lab.ghv("logs", job).out.splitlines())

    def insist(*words: str) -> None:
        wait_for(f"it to be heard: {words}", lambda: lab.ghv(*words, check=False).code == 0)

    def kept() -> dict[str, str]:
        done = lab.ghv("checkpoint", "list", job, "-o", "json", check=False)
        return {each["id"]: each.get("copy", "none") for each in done.json} if done.code == 0 else {}

    wait_for("it to count", counted, 300)
    insist("suspend", job)
    wait_for("it to stand still", lambda: lab.job(job)["job"]["state"] == "suspended", 300)
    stood = counted()
    [checkpoint] = wait_for("its checkpoint", kept)
    insist("checkpoint", "copy", checkpoint)
    wait_for("its copy", lambda: kept() == {checkpoint: "kept"}, 300)
    insist("resume", job)
    wait_for("it to count on", lambda: counted() > stood, 300)
    lab.ghv("cancel", job)
    found = lab.wait(job, 300)
    reasons = [attempt["reason"] for attempt in found["attempts"]]
    assert (found["job"]["state"], reasons) == ("cancelled", ["suspended", "cancelled"]), found
    assert [int(line) for line in lab.ghv("logs", job).out.splitlines()] == list(range(1, counted() + 1))
    folder = lab.workdir / wire.CHECKPOINTS
    wait_for("its checkpoint's removal", lambda: lab.events() and not list(folder.iterdir()), 240)


def array_of_two(lab: Installation, *words: str) -> None:
    """It dies as it takes the array in; then again as it makes each task of it. Each task runs once all the same."""
    program = ("--", "sh", "-c", "echo ${TASK_ID} > ran")
    ghv = lab.start("run", *words, "--array", "1-2%1", "--out", "ran", "--to", "array", *program)
    wait_for("the deaths as it is taken in", lambda: lab.events() and not lab.deaths_to_come())
    lab.die_at(*around(("group",)))
    _, err = ghv.communicate(timeout=600)
    assert ghv.returncode == 0 and b"2 of 2 well" in err, err
    [group] = [row["id"] for row in lab.ghv("list", "-o", "json").json if row["id"].startswith("a")]
    tasks = lab.ghv("list", group, "-o", "json").json
    assert [(task["member"], task["state"]) for task in tasks] == [("2", "done"), ("1", "done")], tasks
    assert [(lab.work / f"array/{n}/ran").read_text() for n in (1, 2)] == ["1\n", "2\n"]


def sent(lab: Installation, job: str, *words: str) -> None:
    """`ghv move` until it is done, whoever dies of it. `words`: of it."""

    def asked() -> bool:
        done = lab.ghv("move", job, *words, check=False)
        return done.code == 0 or len(lab.job(job)["attempts"]) > 1  # else the one before was heard, and died of it

    wait_for(f"{job} to be sent elsewhere", asked)
