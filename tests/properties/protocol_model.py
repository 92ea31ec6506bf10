"""The protocol "never two guests" as a small executable model: one VM, its allocations, their sites, and the faults.

The model decides nothing for the product: it is the text of `docs/never-two-guests.md` in a form that can be searched.
`steps` is the whole transition relation; `violation` says what must never be; `settle` runs the system with the faults
off. What is not modelled: bytes, images, hand-over by migration, clocks that run at different rates.

Two simplifications carry it. Files that are written once (`owner`, the sentinel) and records that only appear can lag
without a copy of their own: a late look is a look not yet taken; only verdicts from *absence* need an age. And whatever
the controller sends is `sent` until it lands: so a cut connection, a hung relay and a paused old controller are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

Ctl = Literal["none", "planned", "staged", "submitting", "submitted", "running", "revoking", "revoked", "ended",
              "lost", "fencing", "fenced", "collected"]  # fmt: skip
Pilot = Literal["none", "started", "looked", "owner", "guest", "orphan", "finished", "exited", "dead", "yielded"]
Ending = Literal["", "completed", "stopped", "failed"]

WALLTIME: Final = 1  # ticks that a pilot's watchdog lets it live, on the node's clock
GRACE: Final = 1  # ticks: the longest that a written file stays invisible, and that a watchdog takes to kill
GRANT: Final = 1  # ticks that a grant lasts, from the sending of the heartbeat that was acknowledged
OUTLAST: Final = WALLTIME + 1  # ticks on the controller's own clock after which a pilot seen before must be over

MUTATIONS: Final = {
    "track-by-job-id": "a submission whose reply was lost is taken not to have happened, instead of revoked",
    "resubmit-on-lost-reply": "no word from a submission: a new allocation at once, the old one not revoked",
    "absent-once-is-gone": "a job that one listing does not show has ended",
    "no-owner-link": "the pilot looks for `owner` and then writes it, instead of link(2)",
    "revoke-on-unknown": "an allocation at a silent site counts as revoked",
    "record-is-enough": "the batch system's record alone ends an allocation that a pilot owns, even when a node is lost",
    "record-of-another-run": "the record of a run that yielded counts for the run that owns",
    "no-grace": "a confirmed record ends an allocation at once, without a second look for the sentinel",
    "lost-without-revoking": "a record without an owner seen ends the allocation, and nobody takes `owner`",
    "no-walltime-on-stop": "the pilot, not the watchdog, enforces the walltime: a stopped pilot's guest runs on",
    "no-watchdog-grant": "nobody on the node enforces the grant",
    "grant-from-receipt": "a grant counts from when its acknowledgement came, not from when its heartbeat was sent",
    "grant-from-memory": "a grant is given without reading the store after the heartbeat came",
    "remove-uncollected": "an ended entry is removed before its results are collected",
    "remove-blindly": "the relay removes an entry whatever sentinel has appeared in it since",
    "remove-the-owner": "cleaning removes `owner` of an allocation that may have been submitted",
    "no-row-versions": "a plan is committed although its rows have changed since they were read",
    "cancel-is-believed": "a cancelled job has ended as soon as its cancellation was sent",
    "cancel-discards": "a cancelled run's results are not collected, however it ended",
    "wait-for-the-record": "an allocation that a pilot owns waits for sentinel or record, forever",
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
    clean: bool = False
    # The controller's memory: ticks until patience ends; a restart begins them anew.
    timer: int = OUTLAST
    record_seen: bool = False
    # The site.
    sent: frozenset[str] = frozenset()  # effects on their way
    entry: Literal["absent", "there", "removed"] = "absent"
    owner: Literal["", "controller", "pilot0", "pilot1"] = ""
    ending: Ending = ""  # the sentinel
    fresh: bool = False  # the sentinel may not be visible yet
    wish: bool = False  # cancel requested
    batch: Literal["unknown", "queued", "running", "over"] = "unknown"
    runs: tuple[Run, Run] = (Run(), Run())
    silent: bool = False
    # Grants, as ticks left were they to arrive now; -1: none.
    grant: int = 0
    acknowledged: int = -1


Rows = tuple[str, str, int, tuple[tuple[Ctl, bool], ...]]


class State(NamedTuple):
    replace: bool = False  # on_silence: replace, with grants
    want: Literal["run", "cancel"] = "run"  # delete: cancel, and the rows go when `done`
    job: Literal["active", "completed", "failed", "cancelled"] = "active"
    events: int = 0  # terminal events recorded
    results: bool = False  # some run's results are the user's
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
    if second.ctl != "none" and any(run.pilot in GUEST for run in first.runs):
        return "a guest runs although its successor may"
    if state.harm:
        return state.harm
    if state.events > 1:
        return "ended twice"
    if state.job != "active" and guests(state):
        return "ended while its guest runs"
    return ""


def done(state: State) -> bool:
    return state.job != "active" and all(a.clean or a.ctl == "none" for a in state.allocations)


# --- helpers -----------------------------------------------------------------------------------------------------


def _set(state: State, e: int, a: Allocation) -> State:
    """Replace an allocation, forgetting what can no longer matter (so that fewer states are told apart)."""
    if a.ctl != "running" and (a.record_seen or a.timer != OUTLAST and a.ctl != "fencing"):
        a = a._replace(record_seen=False, timer=a.timer if a.ctl == "fencing" else OUTLAST)
    if (a.grant or a.acknowledged >= 0) and all(run.pilot not in LIVE for run in a.runs):
        a = a._replace(grant=0, acknowledged=-1)
    first, second = state.allocations
    return state._replace(allocations=(a, second) if e == 0 else (first, a))


def _run(a: Allocation, r: int, run: Run) -> Allocation:
    if run.left and run.pilot not in LIVE:
        run = run._replace(left=0)
    return a._replace(runs=(run, a.runs[1]) if r == 0 else (a.runs[0], run))


def _rows(state: State) -> Rows:
    return state.want, state.job, state.events, tuple((a.ctl, a.submitted) for a in state.allocations)


def _over(a: Allocation, r: int, run: Run, confirmed: bool = True) -> Allocation:
    """Run `r` has become `run`, and has ended as the batch system sees it; so its job is over."""
    return _run(a, r, run._replace(recorded=run.recorded or confirmed))._replace(batch="over")


def _killed(run: Run) -> Run:
    """The pilot gets SIGKILL; its watchdog, if it had owned anything, is left with the guest or the sentinel."""
    match run.pilot:
        case "guest":
            return run._replace(pilot="orphan", stopped=False)
        case "owner":
            return run._replace(pilot="finished", stopped=False, ending="failed")
        case _:
            return run._replace(pilot="dead", stopped=False)


def _recorded(a: Allocation, mutation: str) -> bool:
    """A record counts for the run that took `owner`: the end of another, which yielded, says nothing about it."""
    if mutation == "record-of-another-run":
        return any(run.recorded for run in a.runs)
    return a.owner == "pilot0" and a.runs[0].recorded or a.owner == "pilot1" and a.runs[1].recorded


# --- the controller: observe, plan, commit -------------------------------------------------------------------------


def controller(s: State, e: int, mutation: str) -> Iterator[tuple[str, State, str, str]]:
    """What the planner may commit about allocation `e`: name, state, effect to send, situation."""
    a = s.allocations[e]
    wanted, seen = s.want == "run" and s.job == "active", not a.silent
    sentinel, hidden = bool(a.ending), a.ending == "" or a.fresh

    def to(ctl: Ctl, **more: object) -> State:
        return _set(s, e, a._replace(ctl=ctl, **more))  # type: ignore[arg-type]

    match a.ctl:
        case "none":
            former = s.allocations[:e]
            free = all(f.ctl in SETTLED and f.ending not in ("completed", "stopped")
                       or f.ctl in ("lost", "fenced") for f in former)  # fmt: skip
            if wanted and free:
                yield "plan", to("planned"), "prepare", ""
        case "planned" if seen and a.entry == "there":
            yield "staged", to("staged"), "", ""
        case "staged" if wanted:
            yield "submit", to("submitting", submitted=True), "submit", ""
        case "submitting" if seen and a.batch != "unknown":
            yield "see-job", to("submitted"), "", ""
        case "revoking" if seen and a.owner == "controller":
            yield "revoked", to("revoked"), "", ""
        case "fencing" if a.timer == 0:
            yield "fenced", to("fenced"), "", "fenced while its guest had run" if a.owner[:5] == "pilot" else ""
        case "ended" if seen:
            yield "collect", to("collected")._replace(results=s.results or a.ending == "completed"), "", ""
            if mutation == "remove-uncollected":
                yield "skip-collecting", to("collected"), "", ""
    if seen and a.ctl in ("submitted", "submitting", "revoking") and a.owner[:5] == "pilot":
        lost_race = "a pilot was faster than a revocation" if a.ctl == "revoking" else ""
        yield "see-owner", to("running", timer=OUTLAST), "", lost_race
    if seen and sentinel and a.ctl in ("submitting", "submitted", "running", "revoking", "fencing"):
        cancelled = "it completed although it was cancelled" if s.want != "run" and a.ending == "completed" else ""
        yield "see-sentinel", to("ended"), "", cancelled
    if seen and a.ctl in ("lost", "fenced") and a.ending == "completed":
        rescued = to("collected")._replace(results=True)
        yield "collect-late", rescued, "", "the sentinel of an allocation given up came after all"

    # Not known to be owned: whatever the reason to stop waiting, `owner` decides.
    if a.ctl in ("planned", "staged", "submitting", "submitted"):
        give_up = a.ctl == "submitting" and seen or a.ctl == "submitted" and a.batch == "over" and seen
        if s.want != "run" or give_up:
            on_the_way = "revoked while its submission was on its way" if "submit" in a.sent else ""
            yield "revoke", to("revoking"), "revoke", on_the_way
            if give_up and mutation == "lost-without-revoking" and a.batch == "over":
                yield "lose", to("lost"), "", ""
            if a.ctl == "submitting" and (mutation == "resubmit-on-lost-reply" or mutation == "track-by-job-id"):
                yield "forget", to("lost" if mutation[0] == "r" else "revoked"), "", ""
    # Owned by a pilot: its sentinel, a record that its node confirmed, or its walltime outlasted.
    if a.ctl == "running" and seen:
        if _recorded(a, mutation) and not a.record_seen:
            unseen = "the record is there before the sentinel" if hidden and sentinel else ""
            yield "see-record", _set(s, e, a._replace(record_seen=True, timer=min(a.timer, GRACE))), "", unseen
        if hidden and a.timer == 0 and (mutation != "wait-for-the-record" or a.record_seen):
            yield "lose", to("lost"), "", "" if a.record_seen else "lost by outlasting its walltime"
        if hidden and (mutation == "record-is-enough" and a.batch == "over" or mutation == "no-grace" and _recorded(a, mutation)):
            yield "lose", to("lost"), "", ""
    if mutation == "absent-once-is-gone" and a.ctl in ("submitted", "running") and seen:
        yield "lose", to("lost"), "", ""
    if a.silent and a.ctl in ("submitting", "submitted", "running", "revoking"):
        if mutation == "revoke-on-unknown":
            yield "revoked", to("revoked"), "", ""
        if s.replace:
            yield "fence", to("fencing", timer=GRANT + 1), "", ""
    yield from _ending(s, e, a, mutation)


def _ending(s: State, e: int, a: Allocation, mutation: str) -> Iterator[tuple[str, State, str, str]]:
    """Commits that end the job; made once for the job, so only under its latest allocation."""
    if s.job != "active" or a.ctl == "none" or (e == 0 and s.allocations[1].ctl != "none"):
        if s.job == "active" and e == 0 and a.ctl == "none" and s.want != "run":
            yield "finish", s._replace(job="cancelled", events=s.events + 1), "", ""
        return
    last = e == 1 or s.want != "run"
    verdict: Literal["", "completed", "failed", "cancelled"] = ""
    if a.ctl == "collected" and (a.ending != "failed" or last):
        verdict = "completed" if a.ending == "completed" else "cancelled" if s.want != "run" else "failed"
    elif a.ctl in SETTLED and last:
        verdict = "cancelled" if s.want != "run" else "failed"
    elif mutation == "cancel-is-believed" and s.want != "run" and a.wish:
        verdict = "cancelled"
    elif mutation == "cancel-discards" and s.want != "run" and a.ctl == "ended":
        done_ = _set(s, e, a._replace(ctl="collected"))
        yield "finish", done_._replace(job="cancelled", events=s.events + 1), "", ""
    if verdict:
        yield "finish", s._replace(job=verdict, events=s.events + 1), "", ""


def _controller_steps(s: State, e: int, mutation: str) -> Iterator[Step]:
    for name, planned, effect, situation in controller(s, e, mutation):
        state = planned
        if effect:
            b = state.allocations[e]
            state = _set(state, e, b._replace(sent=b.sent | {effect}))
        yield Step(name, e, state, situation)
        if s.faults and s.late is None and name in ("plan", "submit", "finish"):
            late = (_rows(s), _rows(planned), e, effect)
            yield Step("pause-controller", e, s._replace(late=late, faults=s.faults - 1))
    yield from _resend(s, e, mutation)
    if s.late is not None and s.late[2] == e:
        yield _wake(s, e, mutation)


def _resend(s: State, e: int, mutation: str) -> Iterator[Step]:
    """Effects that the rows still call for are sent again, under the same name; a submission never is."""
    a = s.allocations[e]
    if a.silent:
        return
    need = ""
    if a.ctl == "planned" and a.entry == "absent":
        need = "prepare"
    elif a.ctl == "revoking" and not a.owner:
        need = "revoke"
    elif a.ctl == "running" and s.want != "run" and not a.wish and not a.ending:
        need = "cancel"
    elif a.ctl in SETTLED and s.job != "active":
        if a.ctl == "revoked" and a.batch == "queued" and not a.wish:
            need = "cancel"
        elif a.entry == "there":
            need = "remove"
        elif not a.clean:
            yield Step("cleaned", e, _set(s, e, a._replace(clean=True)))
    if need and need not in a.sent:
        yield Step(f"send-{need}", e, _set(s, e, a._replace(sent=a.sent | {need})))


def _wake(s: State, e: int, mutation: str) -> Step:
    """A controller that was paused between plan and commit goes on; the store compares its rows' versions."""
    assert s.late is not None
    read, write, _, effect = s.late
    s = s._replace(late=None)
    if read != _rows(s) and mutation != "no-row-versions":
        return Step("late-commit", e, s, "an old controller's commit was refused")
    want, job, events, rows = write
    allocations = [a._replace(ctl=ctl, submitted=sub) for a, (ctl, sub) in zip(s.allocations, rows, strict=True)]
    if effect:
        allocations[e] = allocations[e]._replace(sent=allocations[e].sent | {effect})
    events = s.events + events - read[2]
    both = (allocations[0], allocations[1])
    return Step("late-commit", e, s._replace(job=job, events=events, allocations=both))  # type: ignore[arg-type]


# --- the site ------------------------------------------------------------------------------------------------------


def _land(s: State, e: int, effect: str, mutation: str) -> Step:
    """An effect arrives, whoever sent it and however long ago."""
    a = s.allocations[e]
    a = a._replace(sent=a.sent - {effect})
    situation = harm = ""
    match effect:
        case "prepare" if a.entry != "there":
            if a.entry == "removed":
                situation = "a late preparation after the removal"
            a = a._replace(entry="there")
        case "submit":
            if a.batch == "unknown":
                a = a._replace(batch="queued")
            elif a.runs[1].pilot == "none" and a.batch == "over":
                a = a._replace(batch="queued")
            if a.ctl in SETTLED:
                situation = "a submission surfaced after its revocation"
        case "revoke" if not a.owner:
            a = a._replace(owner="controller", entry="there" if a.entry == "absent" else a.entry)
        case "cancel":
            a = a._replace(wish=True)
            if a.batch == "queued":
                a = a._replace(batch="over")
            if s.want == "run" and a.owner[:5] == "pilot":
                harm = "cancelled unasked"
        case "remove":
            if a.ending == "completed" and a.ctl != "collected" and mutation != "remove-blindly":
                situation = "a removal refused: a sentinel nobody had collected"
            else:
                if a.ending == "completed" and not s.results:
                    harm = "results discarded"
                elif any(run.pilot in GUEST for run in a.runs):
                    harm = "entry removed under its guest"
                keep = a.submitted and mutation != "remove-the-owner"
                a = a._replace(entry="removed", owner=a.owner if keep else "")
    return Step(f"land-{effect}", e, _set(s, e, a)._replace(harm=harm), situation)


def _pilot(s: State, e: int, r: int, mutation: str) -> Iterator[Step]:
    """A pilot and its watchdog on a node."""
    a = s.allocations[e]
    run = a.runs[r]

    def to(name: str, pilot: Pilot, situation: str = "", ending: Ending = "", **site: object) -> Step:
        b = _run(a, r, run._replace(pilot=pilot, ending=ending or run.ending))
        return Step(name, e, _set(s, e, b._replace(**site)), situation)  # type: ignore[arg-type]

    me: Literal["pilot0", "pilot1"] = "pilot0" if r == 0 else "pilot1"
    free = not run.stopped
    match run.pilot:
        case "started" if free and not run.cut:
            if a.owner:
                why = "a late submission found itself revoked" if a.owner == "controller" else ""
                why = "a requeued run found its owner taken" if a.owner[:5] == "pilot" else why
                b = _over(a, r, run._replace(pilot="yielded"))
                yield Step("yield", e, _set(s, e, b), why)
            elif a.entry != "there":
                b = _over(a, r, run._replace(pilot="yielded"))
                yield Step("no-manifest", e, _set(s, e, b), "a pilot found no manifest")
            elif mutation == "no-owner-link":
                yield to("look", "looked")
            else:
                yield to("take-owner", "owner", owner=me)
        case "looked" if free and not run.cut:
            yield to("write-owner", "owner", owner=me)
        case "owner" if free and run.left and (not s.replace or a.grant > 0):
            yield to("boot", "guest")
        case "guest" if free:
            yield to("complete", "finished", ending="completed")
        case "finished" if free and not run.cut:
            if a.ending:
                yield to("sentinel-is-there", "exited")
            else:
                b = _over(a, r, run._replace(pilot="exited"))
                yield Step("sentinel", e, _set(s, e, b._replace(ending=run.ending, fresh=True)))
    # The watchdog: it is never stopped, and its sentinel waits for the spool to be reached.
    if run.pilot == "orphan":
        yield to("watchdog-kills", "finished", ending="failed")
    elif run.pilot in ("owner", "guest") and not run.left and (free or mutation != "no-walltime-on-stop"):
        why = "" if free else "a stopped pilot's guest was killed at its walltime"
        why = "a partitioned node's guest ended at its walltime" if run.cut else why
        yield Step("walltime", e, _set(s, e, _run(a, r, run._replace(pilot="finished", stopped=False,
                                                                     ending="stopped"))), why)  # fmt: skip
    elif run.pilot == "guest" and s.replace and a.grant <= 0 and mutation != "no-watchdog-grant":
        yield Step("grant-ends", e, _set(s, e, _run(a, r, run._replace(pilot="finished", stopped=False,
                                                    ending="failed"))), "a guest ended with its grant")  # fmt: skip
    if a.wish and not run.cut and run.pilot in ("started", "owner", "guest"):
        if free and run.pilot != "started":
            yield to("obey", "finished", ending="stopped")
        else:
            yield Step("kill", e, _set(s, e, _over(a, r, _killed(run))))


def _batch(s: State, e: int) -> Iterator[Step]:
    a = s.allocations[e]
    if a.batch == "queued":
        r = 0 if a.runs[0].pilot == "none" else 1
        if a.runs[r].pilot == "none":
            b = _run(a, r, Run("started", WALLTIME))
            yield Step("start", e, _set(s, e, b._replace(batch="running")))
    run = a.runs[0]
    if run.cut:
        yield Step("heal", e, _set(s, e, _run(a, 0, run._replace(cut=False))))
    if a.batch == "running" and run.cut:
        situation = "the record says lost and the guest runs" if run.pilot in GUEST else ""
        yield Step("node-lost", e, _set(s, e, a._replace(batch="over")), situation)
    if a.batch == "running" and all(x.pilot in ("dead", "none", "yielded", "exited") for x in a.runs):
        yield Step("node-lost", e, _set(s, e, a._replace(batch="over")))
    if run.stopped:
        yield Step("continue-pilot", e, _set(s, e, _run(a, 0, run._replace(stopped=False))))
    if a.silent:
        yield Step("speaks", e, _set(s, e, a._replace(silent=False)))


def _grants(s: State, e: int, mutation: str) -> Iterator[Step]:
    """`replace`: a heartbeat carries its sending time, so the grant that answers it counts from there.

    Sending and reading the store for it are one step here: a slower heartbeat would only buy a shorter grant.
    """
    a = s.allocations[e]
    told = a.ctl in ("submitting", "submitted", "running", "revoking") or mutation == "grant-from-memory"
    beats = any(run.pilot in ("owner", "guest") and not run.stopped and not run.cut for run in a.runs)
    if beats and told and not a.silent and a.acknowledged < GRANT:
        yield Step("grant", e, _set(s, e, a._replace(acknowledged=GRANT)))
    if a.acknowledged >= 0 and not any(r.cut for r in a.runs):
        value = GRANT if mutation == "grant-from-receipt" else a.acknowledged
        late = "a grant came after the fence began" if a.ctl in ("fencing", "fenced") else ""
        yield Step("granted", e, _set(s, e, a._replace(grant=max(a.grant, value), acknowledged=-1)), late)


def _faults(s: State, e: int, mutation: str) -> Iterator[Step]:
    a = s.allocations[e]

    def hurt(name: str, b: Allocation, situation: str = "") -> Step:
        return Step(name, e, _set(s, e, b)._replace(faults=s.faults - 1), situation)

    for effect in a.sent:
        yield hurt("lose", a._replace(sent=a.sent - {effect}))
        landed = _land(s, e, effect, mutation)  # and a copy of it is still on its way
        b = landed.state.allocations[e]
        copy = _set(landed.state, e, b._replace(sent=b.sent | {effect}))
        yield Step("repeat", e, copy._replace(faults=s.faults - 1), landed.situation)
    if not a.silent and a.ctl not in ("none", "planned"):
        yield hurt("silence", a._replace(silent=True))
    first = a.runs[0]
    for r, run in enumerate(a.runs):
        if run.pilot in ("started", "owner", "guest"):
            yield hurt("kill-pilot", _over(a, r, _killed(run), not run.cut))
            yield hurt("node-dies", _run(a, r, Run("dead")))
    if first.pilot in ("started", "looked", "owner", "guest"):
        if not first.stopped:
            yield hurt("stop-pilot", _run(a, 0, first._replace(stopped=True)))
        if not first.cut:
            yield hurt("partition", _run(a, 0, first._replace(cut=True)))
    if a.runs[1].pilot == "none" and first.pilot != "none" and a.batch in ("over", "running"):
        again = "requeued with no owner taken" if not a.owner else ""
        yield hurt("requeue", a._replace(batch="queued"), again)


def _crash(s: State) -> Iterator[Step]:
    """The controller dies and another starts: rows stay, memory goes, what was not yet sent goes too."""
    forgets = [a._replace(timer=GRANT + 1 if a.ctl == "fencing" else OUTLAST, record_seen=False)
               for a in s.allocations]  # fmt: skip
    after = s._replace(allocations=(forgets[0], forgets[1]), faults=s.faults - 1)
    if after.allocations != s.allocations:
        yield Step("crash-after-effect", 0, after)
    if any(a.sent for a in s.allocations):
        unsent = [a._replace(sent=frozenset()) for a in forgets]
        situation = "crashed between a submission's commit and its effect" if any(
            a.ctl == "submitting" and "submit" in a.sent for a in s.allocations) else ""  # fmt: skip
        yield Step("crash-before-effect", 0, after._replace(allocations=(unsent[0], unsent[1])), situation)


def _tick(s: State, mutation: str) -> Iterator[Step]:
    """Time passes everywhere alike, but not past a watchdog's duty: killing takes less than a tick."""
    aged = []
    for a in s.allocations:
        for run in a.runs:
            due = run.pilot == "orphan" or run.pilot in GUEST and (
                not run.left and (not run.stopped or mutation != "no-walltime-on-stop")
                or s.replace and a.grant <= 0 and mutation != "no-watchdog-grant")  # fmt: skip
            if due:
                return
        runs = tuple(x._replace(left=max(x.left - 1, 0)) if x.pilot in ("started", "looked", "owner", "guest") else x
                     for x in a.runs)  # fmt: skip
        aged.append(a._replace(
            runs=runs, fresh=False, timer=max(a.timer - 1, 0) if a.ctl in ("running", "fencing") else a.timer,
            grant=max(a.grant - 1, 0), acknowledged=a.acknowledged if a.acknowledged < 1 else a.acknowledged - 1,
        ))  # fmt: skip
    after = s._replace(allocations=(aged[0], aged[1]))
    if after != s:
        yield Step("tick", 0, after)


def steps(state: State, mutation: str = "", focus: bool = False) -> Iterator[Step]:
    """Everything that may happen next, in an order in which `settle` may take the first.

    With `focus` the second allocation does only its first possible step, and has no faults: it is there to meet the
    first one, as early as may be. (What it can do alone, the first has done already.)
    """
    s = state
    yield from _own(s, 0, mutation)
    for step in _own(s, 1, mutation):
        yield step
        if focus:
            break
    yield from _tick(s, mutation)
    if s.want == "run" and s.job == "active":
        yield Step("user-cancels", 0, s._replace(want="cancel"))
    if s.faults:
        for e in (0,) if focus else (0, 1):
            if s.allocations[e].ctl != "none":
                yield from _faults(s, e, mutation)
        yield from _crash(s)


def _own(s: State, e: int, mutation: str) -> Iterator[Step]:
    """The steps of one allocation that are no faults."""
    a = s.allocations[e]
    if a.ctl != "none":
        for effect in sorted(a.sent):
            yield _land(s, e, effect, mutation)
        yield from _batch(s, e)
        if s.replace:
            yield from _grants(s, e, mutation)
        for r in (0, 1):
            if a.runs[r].pilot != "none":
                yield from _pilot(s, e, r, mutation)
    yield from _controller_steps(s, e, mutation)
