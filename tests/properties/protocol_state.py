"""What the protocol model knows: one VM, its allocations, their sites; what must never be; the ways to get it wrong.

Two simplifications carry it. Files that are written once (`owner`, the sentinel) and records that only appear can lag
without a copy of their own: a late look is a look not yet taken; only verdicts from *absence* need an age. And whatever
the controller sends is `sent` until it lands: so a cut connection, a hung relay and a paused old controller are one.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Ctl = Literal["none", "planned", "staged", "submitting", "submitted", "running", "revoking", "revoked", "ended",
              "lost", "fencing", "fenced", "collected"]  # fmt: skip
Pilot = Literal["none", "started", "looked", "owner", "guest", "orphan", "finished", "exited", "dead", "yielded"]
Ending = Literal["", "completed", "stopped", "failed"]

WALLTIME: Final = {False: 1, True: 3}  # ticks that a watchdog lets a pilot live (with grants: longer than a fence)
GRACE: Final = 1  # ticks: the longest that a written file stays invisible, and that a watchdog takes to kill
GRANT: Final = 1  # ticks that a grant lasts, from the sending of the heartbeat that was acknowledged
OUTLAST: Final = {r: w + 1 for r, w in WALLTIME.items()}  # the controller's patience, in ticks of its own clock

MUTATIONS: Final = {
    "track-by-job-id": "a submission whose reply was lost is taken not to have happened, instead of revoked",
    "resubmit-on-lost-reply": "no word from a submission: a new allocation at once, the old one not revoked",
    "absent-once-is-gone": "a job that one listing does not show has ended",
    "no-owner-link": "the pilot looks for `owner` and then writes it, instead of link(2)",
    "revoke-on-unknown": "an allocation at a silent site counts as revoked",
    "record-is-enough": "the batch system's record alone ends an allocation that a pilot owns, though its node be lost",
    "record-of-another-run": "the record of a run that yielded counts for the run that owns",
    "no-grace": "a confirmed record ends an allocation at once, without a second look for the sentinel",
    "lost-without-revoking": "a record without an owner seen ends the allocation, and nobody takes `owner`",
    "no-walltime-on-stop": "the pilot, not the watchdog, enforces the walltime: a stopped pilot's guest runs on",
    "no-watchdog-grant": "nobody on the node enforces the grant",
    "grant-from-receipt": "a grant counts from when its acknowledgement came, not from when its heartbeat was sent",
    "grant-from-memory": "a grant is given without reading the store after the heartbeat came",
    "fenced-with-its-grant": "a fenced allocation counts as over before its last grant is",
    "grants-forgotten": "a restarted controller takes it that nobody has answered a heartbeat before it",
    "remove-uncollected": "an ended entry is removed before its results are collected",
    "remove-blindly": "the relay removes an entry whatever sentinel has appeared in it since",
    "remove-the-owner": "cleaning removes `owner` of an allocation that may have been submitted",
    "no-row-versions": "a plan is committed although its rows have changed since they were read",
    "cancel-is-believed": "a cancelled job has ended as soon as its cancellation was sent",
    "cancel-discards": "a cancelled run's results are not collected, however it ended",
    "wait-for-the-record": "an allocation that a pilot owns waits for sentinel or record, forever",
    "move-on-request": "a successor is planned as soon as the pilot has been asked to leave, before it has ended",
    "boot-untold": "a pilot that was asked for ahead boots its guest before its word has come",
    "go-on-request": "the successor gets its word as soon as the pilot has been asked to save, before it has ended",
    "go-after-completion": "the successor gets its word though the one before has completed",
    "successor-decides": "a job ends with its successor, though that never got its word",
    "evict-when-taken-up": "a checkpoint is removed when its successor's guest runs, though the job may need it again",
}
"""Ways to get it wrong. Each is one change to the relation below; the search must find what it breaks."""

FAULTS: Final = frozenset(
    {"lose", "repeat", "crash-before-effect", "crash-after-effect", "pause-controller", "silence", "stop-pilot",
     "kill-pilot", "node-dies", "partition", "requeue"}
)  # fmt: skip
"""Steps that cost one of the state's remaining faults; lateness of every kind is free."""


class Run(NamedTuple):
    """One start of a pilot: an allocation's first, and the one that a requeue or a duplicate brings."""

    pilot: Pilot = "none"
    left: int = 0  # ticks of walltime left
    stopped: bool = False  # SIGSTOP: the pilot, not its watchdog
    cut: bool = False  # its node reaches nobody, and nobody reaches it
    recorded: bool = False  # the batch system's record has its end, confirmed by its node
    ending: Ending = ""  # how its guest ended


class Allocation(NamedTuple):
    # The controller's row.
    ctl: Ctl = "none"
    submitted: bool = False  # SUBMITTING was committed under this allocation
    leave: bool = False  # the job is to go on elsewhere: its pilot may be asked to stop
    ahead: bool = False  # planned while the one before may still run: no guest before its word
    go: bool = False  # its word: nothing of the one before can run any more
    clean: bool = False
    # The controller's memory: ticks until patience ends; a restart begins them anew.
    timer: int = 0
    record_seen: bool = False
    word: int = 0  # ticks until the grant of the last heartbeat that was answered is surely over
    # The site.
    sent: frozenset[str] = frozenset()  # effects on their way
    entry: Literal["absent", "there", "removed"] = "absent"
    owner: Literal["", "controller", "pilot0", "pilot1"] = ""
    ending: Ending = ""  # the sentinel
    fresh: bool = False  # the sentinel may not be visible yet
    wish: bool = False  # cancel requested
    told: bool = False  # its word is in the entry
    batch: Literal["unknown", "queued", "running", "over"] = "unknown"
    runs: tuple[Run, Run] = (Run(), Run())
    silent: bool = False
    # Grants, as ticks left were they to arrive now; -1: none.
    grant: int = 0
    acknowledged: int = -1


Rows = tuple[str, str, int, tuple[tuple[Ctl, bool, bool, bool, bool], ...]]


class State(NamedTuple):
    replace: bool = False  # on_silence: replace, with grants
    moves: bool = False  # the job may be moved, at any moment
    handover: bool = False  # the same, and its guest is saved for a successor that may be asked for ahead of time
    want: Literal["run", "cancel"] = "run"  # delete: cancel, and the rows go when `done`
    job: Literal["active", "completed", "failed", "cancelled"] = "active"
    events: int = 0  # terminal events recorded
    results: bool = False  # some run's results are the user's
    checkpoint: Literal["", "kept", "removed"] = ""  # what the first allocation's guest has left
    allocations: tuple[Allocation, Allocation] = (Allocation(), Allocation())
    late: tuple[Rows, Rows, int, str] | None = None  # a paused controller's plan: rows read, rows to write, effect
    faults: int = 0  # that may still happen
    harm: str = ""  # what a step just did that must not be


class Step(NamedTuple):
    name: str
    epoch: int
    state: State
    situation: str = ""  # a critical situation that this step is


SETTLED: Final = frozenset({"revoked", "lost", "fenced", "collected"})
MAY_BE_GRANTED: Final = frozenset({"submitting", "submitted", "running", "revoking"})
LIVE: Final = frozenset({"started", "looked", "owner", "guest", "orphan"})
GUEST: Final = frozenset({"guest", "orphan"})


def guests(state: State) -> int:
    """How many guests of the VM run their virtual CPUs."""
    return sum(run.pilot in GUEST for a in state.allocations for run in a.runs)


def violation(state: State) -> str:
    """Which property the state breaks, or nothing."""
    if guests(state) > 1:
        return "two guests"
    first, second = state.allocations
    if second.ctl != "none" and (second.go or not second.ahead) and any(run.pilot in GUEST for run in first.runs):
        return "a guest runs although its successor may"
    if state.harm:
        return state.harm
    if state.events > 1:
        return "ended twice"
    if state.job != "active" and guests(state):
        return "ended while its guest runs"
    if state.job == "active" and state.checkpoint == "removed":
        return "a checkpoint was lost"
    return ""


def done(state: State) -> bool:
    clean = all(a.clean or a.ctl == "none" for a in state.allocations)
    return state.job != "active" and clean and state.checkpoint != "kept"


def put(state: State, e: int, a: Allocation) -> State:
    """Replace an allocation, forgetting what can no longer matter (so that fewer states are told apart)."""
    if a.ctl != "running" and (a.record_seen or a.timer):
        a = a._replace(record_seen=False, timer=0)
    if a.word and a.ctl not in MAY_BE_GRANTED and a.ctl != "fencing":
        a = a._replace(word=0)
    if (a.grant or a.acknowledged >= 0) and all(run.pilot not in LIVE for run in a.runs):
        a = a._replace(grant=0, acknowledged=-1)
    first, second = state.allocations
    return state._replace(allocations=(a, second) if e == 0 else (first, a))


def put_run(a: Allocation, r: int, run: Run) -> Allocation:
    if run.left and run.pilot not in LIVE:
        run = run._replace(left=0)
    return a._replace(runs=(run, a.runs[1]) if r == 0 else (a.runs[0], run))


def rows_of(state: State) -> Rows:
    return (
        state.want,
        state.job,
        state.events,
        tuple((a.ctl, a.submitted, a.leave, a.ahead, a.go) for a in state.allocations),
    )


def over(a: Allocation, r: int, run: Run, confirmed: bool = True) -> Allocation:
    """Run `r` has become `run`, and has ended as the batch system sees it; so its job is over."""
    return put_run(a, r, run._replace(recorded=run.recorded or confirmed))._replace(batch="over")


def killed(run: Run) -> Run:
    """The pilot gets SIGKILL; its watchdog, if it had owned anything, is left with the guest or the sentinel."""
    match run.pilot:
        case "guest":
            return run._replace(pilot="orphan", stopped=False)
        case "owner":
            return run._replace(pilot="finished", stopped=False, ending="failed")
        case _:
            return run._replace(pilot="dead", stopped=False)


def recorded(a: Allocation, mutation: str) -> bool:
    """A record counts for the run that took `owner`: the end of another, which yielded, says nothing about it."""
    if mutation == "record-of-another-run":
        return any(run.recorded for run in a.runs)
    return a.owner == "pilot0" and a.runs[0].recorded or a.owner == "pilot1" and a.runs[1].recorded
