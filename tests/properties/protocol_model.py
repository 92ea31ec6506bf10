"""The protocol "never two guests" as a small executable model: the controller's rules, and the whole relation `steps`.

The model decides nothing for the product: it is the text of `docs/never-two-guests.md` in a form that can be searched
(`protocol_search`). What is not modelled: bytes, images, clocks that run at different rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from tests.properties.protocol_site import batch, faults, grants, land, pilot
from tests.properties.protocol_state import (
    GRACE,
    GRANT,
    GUEST,
    MAY_BE_GRANTED,
    OUTLAST,
    SETTLED,
    Allocation,
    Ctl,
    State,
    Step,
    put,
    recorded,
    rows_of,
)


def controller(s: State, e: int, mutation: str) -> Iterator[tuple[str, State, str, str]]:
    """What the planner may commit about allocation `e`: name, state, effect to send, situation."""
    a = s.allocations[e]
    wanted, seen = s.want == "run" and s.job == "active", not a.silent
    sentinel, hidden = bool(a.ending), a.ending == "" or a.fresh

    def to(ctl: Ctl, **more: object) -> State:
        return put(s, e, a._replace(ctl=ctl, **more))  # type: ignore[arg-type]

    match a.ctl:
        case "none":
            former = s.allocations[:e]
            over = ("completed",) if any(f.leave for f in former) else ("completed", "stopped")
            free = all(f.ctl in SETTLED and f.ending not in over or f.ctl in ("lost", "fenced")
                       or f.wish and mutation == "move-on-request" for f in former)  # fmt: skip
            if wanted and s.handover and e and former[0].ctl == "running" and mutation != "move-on-request":
                # It is in the queue at once here: its way there is no other than the first one's.
                queued = to("submitted", ahead=True, submitted=True, entry="there", batch="queued")
                yield "plan-ahead", queued, "", ""
            elif wanted and free:
                moved = "it left for another" if any(f.leave and f.ending == "stopped" for f in former) else ""
                yield "plan", to("planned"), "prepare", moved
        case "planned" if seen and a.entry == "there":
            yield "staged", to("staged"), "", ""
        case "staged" if wanted:
            yield "submit", to("submitting", submitted=True), "submit", ""
        case "submitting" if seen and a.batch != "unknown":
            yield "see-job", to("submitted"), "", ""
        case "revoking" if seen and a.owner == "controller":
            yield "revoked", to("revoked"), "", ""
        case "fencing" if a.word == 0 or mutation == "fenced-with-its-grant":
            yield "fenced", to("fenced"), "", "fenced while its guest had run" if a.owner[:5] == "pilot" else ""
        case "ended" if seen:
            yield "collect", to("collected")._replace(results=s.results or a.ending == "completed"), "", ""
            if mutation == "remove-uncollected":
                yield "skip-collecting", to("collected"), "", ""
    if seen and a.ctl in ("submitted", "submitting", "revoking") and a.owner[:5] == "pilot":
        lost_race = "a pilot was faster than a revocation" if a.ctl == "revoking" else ""
        yield "see-owner", to("running", timer=OUTLAST[s.replace]), "", lost_race
    if seen and sentinel and a.ctl in ("submitting", "submitted", "running", "revoking", "fencing"):
        why = "was cancelled" if s.want != "run" else "was to leave" if a.leave else ""
        completed = f"it completed although it {why}" if why and a.ending == "completed" else ""
        yield "see-sentinel", to("ended"), "", completed
    if seen and a.ctl in ("lost", "fenced") and a.ending == "completed":
        rescued = to("collected")._replace(results=True)
        yield "collect-late", rescued, "", "the sentinel of an allocation given up came after all"

    # Asked for ahead: its word, when nothing of the one before can run any more.
    surplus = a.ahead and not a.go and (s.job != "active" or s.want != "run")
    if a.ahead and not a.go and wanted and a.ctl not in SETTLED and a.ctl not in ("ended", "revoking", "fencing"):
        before = s.allocations[0]
        can = before.ctl in SETTLED and before.ending != "completed" or before.ctl in ("lost", "fenced")
        wrong = before.leave and mutation == "go-on-request"
        wrong = wrong or before.ctl in SETTLED and mutation == "go-after-completion"
        if can or wrong:
            waited = "the successor was ready before it was left" if a.ctl == "running" and before.leave else ""
            lost = "the successor was asked for before its forerunner was lost" if before.ctl == "lost" else waited
            again = before.ctl == "collected" and before.ending == "completed"
            yield "go", to(a.ctl, go=True)._replace(harm="run again although it completed" * again), "go", lost

    # Not known to be owned: whatever the reason to stop waiting, `owner` decides.
    if a.ctl in ("planned", "staged", "submitting", "submitted"):
        give_up = a.ctl == "submitting" and seen or a.ctl == "submitted" and a.batch == "over" and seen
        if s.want != "run" or give_up or surplus or (s.moves and e == 0):
            on_the_way = "revoked while its submission was on its way" if "submit" in a.sent else ""
            yield "revoke", to("revoking"), "revoke", on_the_way
            if give_up and mutation == "lost-without-revoking" and a.batch == "over":
                yield "lose", to("lost"), "", ""
            if a.ctl == "submitting" and (mutation == "resubmit-on-lost-reply" or mutation == "track-by-job-id"):
                yield "forget", to("lost" if mutation[0] == "r" else "revoked"), "", ""
    # Owned by a pilot: its sentinel, a record that its node confirmed, or its walltime outlasted.
    if a.ctl == "running" and seen:
        if recorded(a, mutation) and not a.record_seen:
            unseen = "the record is there before the sentinel" if hidden and sentinel else ""
            yield "see-record", put(s, e, a._replace(record_seen=True, timer=min(a.timer, GRACE))), "", unseen
        if hidden and a.timer == 0 and (mutation != "wait-for-the-record" or a.record_seen):
            yield "lose", to("lost"), "", "" if a.record_seen else "lost by outlasting its walltime"
        if hidden and (
            mutation == "record-is-enough" and a.batch == "over" or mutation == "no-grace" and recorded(a, mutation)
        ):
            yield "lose", to("lost"), "", ""
    if mutation == "absent-once-is-gone" and a.ctl in ("submitted", "running") and seen:
        yield "lose", to("lost"), "", ""
    if mutation == "revoke-on-unknown" and a.silent and a.ctl in MAY_BE_GRANTED:
        yield "revoked", to("revoked"), "", ""
    if a.ctl == "running" and wanted and (s.moves or s.handover) and e == 0 and not a.leave:
        yield "depart", put(s, e, a._replace(leave=True)), "", ""
    if a.ctl == "running" and s.replace:  # for want of news: whatever the reason, and however long ago
        yield "fence", to("fencing"), "", ""
    yield from _ending(s, e, a, mutation)


def _ending(s: State, e: int, a: Allocation, mutation: str) -> Iterator[tuple[str, State, str, str]]:
    """Commits that end the job; made once for the job, so only under its latest allocation."""
    # A successor that has not got its word decides nothing, and only one that may still get it is waited for.
    second = s.allocations[1]
    untold = second.ahead and not second.go
    if e and untold and mutation != "successor-decides":
        return
    if s.job != "active" or a.ctl == "none" or (e == 0 and second.ctl != "none" and not untold):
        if s.job == "active" and e == 0 and a.ctl == "none" and s.want != "run":
            yield "finish", s._replace(job="cancelled", events=s.events + 1), "", ""
        return
    last = e == 1 or s.want != "run" or (untold and second.ctl in SETTLED)
    verdict: Literal["", "completed", "failed", "cancelled"] = ""
    goes_on = a.ending == "failed" or (a.ending == "stopped" and a.leave)
    if a.ctl == "collected" and (last or not goes_on):
        verdict = "completed" if a.ending == "completed" else "cancelled" if s.want != "run" else "failed"
    elif a.ctl in SETTLED and last:
        verdict = "cancelled" if s.want != "run" else "failed"
    elif mutation == "cancel-is-believed" and s.want != "run" and a.wish:
        verdict = "cancelled"
    elif mutation == "cancel-discards" and s.want != "run" and a.ctl == "ended":
        done_ = put(s, e, a._replace(ctl="collected"))
        yield "finish", done_._replace(job="cancelled", events=s.events + 1), "", ""
    if verdict:
        yield "finish", s._replace(job=verdict, events=s.events + 1), "", ""


def _controller_steps(s: State, e: int, mutation: str) -> Iterator[Step]:
    for name, planned, effect, situation in controller(s, e, mutation):
        state = planned
        if effect:
            b = state.allocations[e]
            state = put(state, e, b._replace(sent=b.sent | {effect}))
        yield Step(name, e, *_outdated(state, mutation, situation))
        if s.faults and s.late is None and name in ("plan", "plan-ahead", "go", "submit", "finish"):
            late = (rows_of(s), rows_of(planned), e, effect)
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
    unneeded = a.ahead and not a.go and s.job != "active"
    if e == 0 and s.checkpoint == "kept" and "evict" not in a.sent:
        taken_up = any(run.pilot in GUEST for run in s.allocations[1].runs)
        if s.job != "active" or (taken_up and mutation == "evict-when-taken-up"):
            yield Step("send-evict", e, put(s, e, a._replace(sent=a.sent | {"evict"})))
    if a.ctl == "planned" and a.entry == "absent":
        need = "prepare"
    elif a.ctl == "revoking" and not a.owner:
        need = "revoke"
    elif a.ctl == "running" and a.go and not a.told:
        need = "go"
    elif a.ctl == "running" and (s.want != "run" or a.leave or unneeded) and not a.wish and not a.ending:
        need = "cancel"
    elif a.ctl in SETTLED and s.job != "active":
        if a.ctl == "revoked" and a.batch == "queued" and not a.wish:
            need = "cancel"
        elif a.entry == "there":
            need = "remove"
        elif not a.clean:
            yield Step("cleaned", e, put(s, e, a._replace(clean=True)))
    if need and need not in a.sent:
        yield Step(f"send-{need}", e, put(s, e, a._replace(sent=a.sent | {need})))


def _outdated(s: State, mutation: str, situation: str = "") -> tuple[State, str]:
    """Rows have changed: what a paused controller had planned from the old ones will be refused, so forget it."""
    if s.late is None or mutation == "no-row-versions":
        return s, situation
    return s._replace(late=None), situation or "an old controller's commit was refused"


def _wake(s: State, e: int, mutation: str) -> Step:
    """A controller that was paused between plan and commit goes on; the store compares its rows' versions."""
    assert s.late is not None
    read, write, _, effect = s.late
    s = s._replace(late=None)
    if read != rows_of(s) and mutation != "no-row-versions":
        return Step("late-commit", e, s)
    _want, job, events, rows = write
    pairs = zip(s.allocations, rows, strict=True)
    allocations = [
        a._replace(ctl=ctl, submitted=sub, leave=leave, ahead=ahead, go=go) for a, (ctl, sub, leave, ahead, go) in pairs
    ]
    if effect:
        allocations[e] = allocations[e]._replace(sent=allocations[e].sent | {effect})
    events = s.events + events - read[2]
    both = (allocations[0], allocations[1])
    return Step("late-commit", e, s._replace(job=job, events=events, allocations=both))  # type: ignore[arg-type]


def _crash(s: State, mutation: str) -> Iterator[Step]:
    """The controller dies and another starts: rows stay, memory goes, what was not yet sent goes too."""
    anew = {"running": OUTLAST[s.replace]}
    # The one that died may have answered a heartbeat in its last moment.
    last = GRANT + 1 if s.replace and mutation != "grants-forgotten" else 0
    forgets = [a._replace(timer=anew.get(a.ctl, 0), record_seen=False, word=last) for a in s.allocations]
    after = s._replace(allocations=(forgets[0], forgets[1]), faults=s.faults - 1)
    for e, a in enumerate(after.allocations):
        after = put(after, e, a)
    forgets = list(after.allocations)
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
        first, second = (x._replace(left=x.left - 1) if x.left else x for x in a.runs)
        aged.append(
            a._replace(
                runs=(first, second),
                fresh=False,
                timer=max(a.timer - 1, 0),
                word=max(a.word - 1, 0),
                grant=max(a.grant - 1, 0),
                acknowledged=max(a.acknowledged - 1, 0) if a.acknowledged >= 0 else -1,
            )
        )
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
        yield Step("user-cancels", 0, *_outdated(s._replace(want="cancel"), mutation))
    if s.faults:
        for e in (0,) if focus else (0, 1):
            if s.allocations[e].ctl != "none":
                yield from faults(s, e, mutation)
        yield from _crash(s, mutation)


def _own(s: State, e: int, mutation: str) -> Iterator[Step]:
    """The steps of one allocation that are no faults."""
    a = s.allocations[e]
    if a.ctl != "none":
        for effect in sorted(a.sent):
            yield land(s, e, effect, mutation)
        yield from batch(s, e)
        if s.replace:
            yield from grants(s, e, mutation)
        for r in (0, 1):
            if a.runs[r].pilot != "none":
                yield from pilot(s, e, r, mutation)
    yield from _controller_steps(s, e, mutation)
