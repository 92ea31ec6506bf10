"""The site in the protocol model: effects that land, the batch system, pilots with their watchdogs, faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from tests.properties.protocol_state import (
    GRANT,
    GUEST,
    MAY_BE_GRANTED,
    SETTLED,
    WALLTIME,
    Allocation,
    Ending,
    Pilot,
    Run,
    State,
    Step,
    killed,
    over,
    put,
    put_run,
)


def land(s: State, e: int, effect: str, mutation: str) -> Step:
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
            if a.batch == "unknown" or (a.runs[1].pilot == "none" and a.batch == "over"):
                a = a._replace(batch="queued")
            if a.ctl in SETTLED:
                situation = "a submission surfaced after its revocation"
        case "revoke" if not a.owner:
            a = a._replace(owner="controller", entry="there" if a.entry == "absent" else a.entry)
        case "cancel":
            a = a._replace(wish=True)
            if a.batch == "queued":
                a = a._replace(batch="over")
            if s.want == "run" and a.owner[:5] == "pilot" and not a.leave and (a.go or not a.ahead):
                harm = "cancelled unasked"
        case "go":
            a = a._replace(told=True)
        case "evict":
            s = s._replace(checkpoint="removed")
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
        case _:  # a preparation or revocation sent again changes nothing
            pass
    return Step(f"land-{effect}", e, put(s, e, a)._replace(harm=harm), situation)


def pilot(s: State, e: int, r: int, mutation: str) -> Iterator[Step]:
    """A pilot and its watchdog on a node."""
    a = s.allocations[e]
    run = a.runs[r]

    def to(name: str, pilot: Pilot, situation: str = "", ending: Ending = "", **site: object) -> Step:
        b = put_run(a, r, run._replace(pilot=pilot, ending=ending or run.ending))
        return Step(name, e, put(s, e, b._replace(**site)), situation)  # type: ignore[arg-type]

    me: Literal["pilot0", "pilot1"] = "pilot0" if r == 0 else "pilot1"
    free = not run.stopped
    match run.pilot:
        case "started" if free and not run.cut:
            if a.owner:
                why = "a late submission found itself revoked" if a.owner == "controller" else ""
                why = "a requeued run found its owner taken" if a.owner[:5] == "pilot" else why
                b = over(a, r, run._replace(pilot="yielded"))
                yield Step("yield", e, put(s, e, b), why)
            elif a.entry != "there":
                b = over(a, r, run._replace(pilot="yielded"))
                yield Step("no-manifest", e, put(s, e, b), "a pilot found no manifest")
            elif mutation == "no-owner-link":
                yield to("look", "looked")
            else:
                yield to("take-owner", "owner", owner=me)
        case "looked" if free and not run.cut:
            yield to("write-owner", "owner", owner=me)
        case "owner" if free and run.left and (not s.replace or a.grant > 0):
            if not a.ahead or a.told or mutation == "boot-untold":
                yield to("boot", "guest", "taken up from a checkpoint" if e and s.checkpoint else "")
        case "guest" if free:
            yield to("complete", "finished", ending="completed")
        case "finished" if free and not run.cut:
            if a.ending:
                yield to("sentinel-is-there", "exited")
            else:
                b = over(a, r, run._replace(pilot="exited"))
                yield Step("sentinel", e, put(s, e, b._replace(ending=run.ending, fresh=True)))
    # The watchdog: it is never stopped, and its sentinel waits for the spool to be reached.
    if run.pilot == "orphan":
        yield to("watchdog-kills", "finished", ending="failed")
    elif run.pilot in ("owner", "guest") and not run.left and (free or mutation != "no-walltime-on-stop"):
        why = "" if free else "a stopped pilot's guest was killed at its walltime"
        why = "a partitioned node's guest ended at its walltime" if run.cut else why
        yield Step("walltime", e, put(s, e, put_run(a, r, run._replace(pilot="finished", stopped=False,
                                                                     ending="stopped"))), why)  # fmt: skip
    elif run.pilot == "guest" and s.replace and a.grant <= 0 and mutation != "no-watchdog-grant":
        yield Step("grant-ends", e, put(s, e, put_run(a, r, run._replace(pilot="finished", stopped=False,
                                                    ending="failed"))), "a guest ended with its grant")  # fmt: skip
    if a.wish and not run.cut and run.pilot in ("started", "owner", "guest"):
        if free and run.pilot != "started":
            step = to("obey", "finished", ending="stopped")
            if s.handover and a.leave and run.pilot == "guest":  # it is saved before it ends
                step = step._replace(state=step.state._replace(checkpoint="kept"))
            yield step
        else:
            yield Step("kill", e, put(s, e, over(a, r, killed(run))))


def batch(s: State, e: int) -> Iterator[Step]:
    a = s.allocations[e]
    if a.batch == "queued":
        r = 0 if a.runs[0].pilot == "none" else 1
        if a.runs[r].pilot == "none":
            b = put_run(a, r, Run("started", WALLTIME[s.replace]))
            yield Step("start", e, put(s, e, b._replace(batch="running")))
    run = a.runs[0]
    if run.cut:
        yield Step("heal", e, put(s, e, put_run(a, 0, run._replace(cut=False))))
    if a.batch == "running" and run.cut:
        situation = "the record says lost and the guest runs" if run.pilot in GUEST else ""
        yield Step("node-lost", e, put(s, e, a._replace(batch="over")), situation)
    if a.batch == "running" and all(x.pilot in ("dead", "none", "yielded", "exited") for x in a.runs):
        yield Step("node-lost", e, put(s, e, a._replace(batch="over")))
    if run.stopped:
        yield Step("continue-pilot", e, put(s, e, put_run(a, 0, run._replace(stopped=False))))
    if a.silent:
        yield Step("speaks", e, put(s, e, a._replace(silent=False)))


def grants(s: State, e: int, mutation: str) -> Iterator[Step]:
    """`replace`: a heartbeat carries its sending time, so the grant that answers it counts from there.

    Sending and reading the store for it are one step here: a slower heartbeat would only buy a shorter grant.
    """
    a = s.allocations[e]
    told = a.ctl in MAY_BE_GRANTED or mutation == "grant-from-memory"
    beats = any(run.pilot in ("owner", "guest") and not run.stopped and not run.cut for run in a.runs)
    if beats and told and not a.silent and (a.acknowledged < GRANT or a.word <= GRANT):
        yield Step("grant", e, put(s, e, a._replace(acknowledged=GRANT, word=GRANT + 1)))
    if a.acknowledged >= 0 and not any(r.cut for r in a.runs):
        value = GRANT if mutation == "grant-from-receipt" else a.acknowledged
        late = "a grant came after the fence began" if a.ctl in ("fencing", "fenced") else ""
        yield Step("granted", e, put(s, e, a._replace(grant=max(a.grant, value), acknowledged=-1)), late)


def faults(s: State, e: int, mutation: str) -> Iterator[Step]:
    a = s.allocations[e]

    def hurt(name: str, b: Allocation, situation: str = "") -> Step:
        return Step(name, e, put(s, e, b)._replace(faults=s.faults - 1), situation)

    for effect in a.sent:
        yield hurt("lose", a._replace(sent=a.sent - {effect}))
        landed = land(s, e, effect, mutation)  # and a copy of it is still on its way
        b = landed.state.allocations[e]
        copy = put(landed.state, e, b._replace(sent=b.sent | {effect}))
        yield Step("repeat", e, copy._replace(faults=s.faults - 1), landed.situation)
    if not a.silent and a.ctl not in ("none", "planned"):
        yield hurt("silence", a._replace(silent=True))
    first = a.runs[0]
    for r, run in enumerate(a.runs):
        if run.pilot in ("started", "owner", "guest"):
            yield hurt("kill-pilot", over(a, r, killed(run), not run.cut))
        if run.pilot in ("started", "owner", "guest", "finished"):
            yield hurt("node-dies", put_run(a, r, Run("dead")))
    if first.pilot in ("started", "looked", "owner", "guest"):
        if not first.stopped:
            yield hurt("stop-pilot", put_run(a, 0, first._replace(stopped=True)))
        if not first.cut:
            yield hurt("partition", put_run(a, 0, first._replace(cut=True)))
    if a.runs[1].pilot == "none" and first.pilot != "none" and a.batch in ("over", "running"):
        again = "requeued with no owner taken" if not a.owner else ""
        yield hurt("requeue", a._replace(batch="queued"), again)
