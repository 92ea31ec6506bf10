"""The protocol model is searched: what must never be is nowhere, and every mutation of the protocol is caught.

`docs/never-two-guests.md` says what the model is. The search is exhaustive within its number of faults; the walks go
further with no guarantee; the scenarios are orders that walks miss.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.protocol_model import steps
from tests.properties.protocol_search import search, settle
from tests.properties.protocol_state import FAULTS, MUTATIONS, State, done, guests, violation

pytestmark = pytest.mark.timeout(1800)  # the longest search takes half a minute of a core, where it is fast and free

RARE = FAULTS | {"user-cancels"}

CRITICAL = {
    "a late submission found itself revoked",
    "a submission surfaced after its revocation",
    "revoked while its submission was on its way",
    "a pilot was faster than a revocation",
    "crashed between a submission's commit and its effect",
    "an old controller's commit was refused",
    "requeued with no owner taken",
    "a requeued run found its owner taken",
    "the record says lost and the guest runs",
    "the record is there before the sentinel",
    "lost by outlasting its walltime",
    "the sentinel of an allocation given up came after all",
    "a removal refused: a sentinel nobody had collected",
    "a late preparation after the removal",
    "a stopped pilot's guest was killed at its walltime",
    "a partitioned node's guest ended at its walltime",
    "it completed although it was cancelled",
}
CRITICAL_WITH_GRANTS = {
    "a grant came after the fence began",
    "a guest ended with its grant",
    "fenced while its guest had run",
}


CRITICAL_WITH_MOVES = {
    "it left for another",
    "it completed although it was to leave",
    "a pilot was faster than a revocation",
    "a submission surfaced after its revocation",
}


CRITICAL_WITH_HANDOVER = {
    "taken up from a checkpoint",
    "the successor was ready before it was left",
    "the successor was asked for before its forerunner was lost",
    "it completed although it was to leave",
}


@pytest.mark.parametrize(
    ("start", "critical"),
    [
        (State(faults=2), CRITICAL),
        (State(replace=True, faults=1), CRITICAL_WITH_GRANTS),
        (State(moves=True, faults=1), CRITICAL_WITH_MOVES),
        (State(handover=True), CRITICAL_WITH_HANDOVER),
    ],
    ids=["keep", "replace", "moves", "handover"],
)
def test_no_order_of_events_breaks_a_property(start: State, critical: set[str]) -> None:
    found = search(start)
    assert not found.broken, f"{found.broken}: {' '.join(found.trace)}"
    assert critical <= found.situations, f"never reached: {critical - found.situations}"


EXPECTED = {
    "track-by-job-id": "guest",
    "resubmit-on-lost-reply": "guest",
    "absent-once-is-gone": "guest",
    "no-owner-link": "guest",
    "revoke-on-unknown": "guest",
    "record-is-enough": "guest",
    "record-of-another-run": "guest",
    "no-grace": "guest",
    "lost-without-revoking": "guest",
    "no-walltime-on-stop": "guest",
    "no-watchdog-grant": "guest",
    "grant-from-receipt": "guest",
    "grant-from-memory": "guest",
    "fenced-with-its-grant": "guest",
    "grants-forgotten": "guest",
    "remove-the-owner": "guest",
    "cancel-is-believed": "guest",
    "remove-uncollected": "results",
    "remove-blindly": "results",
    "cancel-discards": "results",
    "no-row-versions": "ended twice",
    "wait-for-the-record": "never ends",
    "move-on-request": "guest",
    "boot-untold": "guest",
    "go-on-request": "guest",
    "go-after-completion": "run again",
    "successor-decides": "guest",
    "evict-when-taken-up": "checkpoint",
}
HANDOVER = ("boot-untold", "go-on-request", "go-after-completion", "successor-decides", "evict-when-taken-up")


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_mutation_of_the_protocol_is_caught(mutation: str) -> None:
    for faults in (0, 1):
        moves, handover = mutation.startswith("move"), mutation in HANDOVER
        found = search(State(replace="grant" in mutation, moves=moves, handover=handover, faults=faults), mutation)
        if found.broken:
            break
    assert EXPECTED[mutation] in found.broken, f"{mutation}: {found.broken or 'nothing'} after {found.states} states"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.booleans(), st.sampled_from(["", "moves", "handover"]), st.integers(0, 8),
    st.lists(st.integers(0, 1 << 16), min_size=60, max_size=150),
)  # fmt: skip
def test_a_random_walk_keeps_the_properties_and_ends(
    replace: bool, elsewhere: str, faults: int, choices: list[int]
) -> None:
    """Both allocations in full, with more faults than the search affords."""
    state = State(replace=replace, moves=elsewhere == "moves", handover=elsewhere == "handover", faults=faults)
    for choice in choices:
        possible = list(steps(state))
        if not possible:
            break
        ordinary = [step for step in possible if step.name not in RARE]
        among = ordinary if choice % 4 and ordinary else possible
        state = among[(choice >> 2) % len(among)].state
        assert not violation(state)
    assert not settle(state, "", set())


LAUNCH = "plan0 land-prepare0 staged0 submit0 land-submit0 start0 "
GUEST = LAUNCH + "take-owner0 boot0 see-owner0 "
AHEAD = "plan-ahead1 start1 "
SECOND = "plan1 land-prepare1 staged1 submit1 land-submit1 start1 take-owner1 "

SCENARIOS = {
    "a submission surfaces when its successor runs": (
        "plan0 land-prepare0 staged0 submit0 revoke0 land-revoke0 revoked0 "
        + SECOND
        + "boot1 land-submit0 start0 yield0",
        1,
    ),
    "a crash after the commit, before the submission": (
        "plan0 land-prepare0 staged0 submit0 crash-before-effect0 revoke0 land-revoke0 revoked0 " + SECOND + "boot1",
        1,
    ),
    "a pilot wins against its revocation": (
        LAUNCH + "revoke0 take-owner0 land-revoke0 boot0 see-owner0 complete0 sentinel0 see-sentinel0 collect0 finish0",
        0,
    ),
    "a requeued run yields; its record says nothing of the partitioned owner, whose walltime is outlasted": (
        GUEST
        + "partition0 node-lost0 requeue0 start0 yield0 tick0 walltime0 tick0 lose0 "
        + SECOND
        + "boot1 heal0 sentinel0",
        1,
    ),
    "requeued before anybody owned it, then revoked": (
        LAUNCH + "kill-pilot0 see-job0 revoke0 requeue0 land-revoke0 revoked0 " + SECOND + "boot1 start0 yield0",
        1,
    ),
    "a pilot stopped beyond its walltime": (
        GUEST + "stop-pilot0 tick0 walltime0 sentinel0 see-sentinel0 collect0 finish0",
        0,
    ),
    "a node dies and leaves no record": (GUEST + "node-dies0 node-lost0 tick0 tick0 lose0 " + SECOND + "boot1", 1),
    "a silent site: nothing ends, whatever the clock says": (GUEST + "silence0 tick0 walltime0 speaks0", 0),
    "a hung preparation and a hung submission land after the removal": (
        "plan0 repeat0 staged0 submit0 user-cancels0 revoke0 land-revoke0 revoked0 finish0 send-remove0 land-remove0 "
        "land-prepare0 land-submit0 start0 yield0",
        0,
    ),
    "results that come after the run was given up": (
        GUEST + "complete0 tick0 tick0 lose0 user-cancels0 finish0 send-remove0 sentinel0 land-remove0 collect-late0 "
        "send-remove0 land-remove0 cleaned0",
        0,
    ),
    "moved while it runs, though the first request to leave is lost": (
        GUEST
        + "depart0 send-cancel0 lose0 send-cancel0 land-cancel0 obey0 sentinel0 see-sentinel0 collect0 "
        + SECOND
        + "boot1",
        1,
    ),
    "moved out of the queue: what is queued there still begins later, and finds itself revoked": (
        LAUNCH.removesuffix("start0 ") + "see-job0 revoke0 land-revoke0 revoked0 " + SECOND + "boot1 start0 yield0",
        1,
    ),
    "handed over: the successor waits in its place until the first has been saved and has ended": (
        GUEST
        + AHEAD
        + "take-owner1 see-owner1 depart0 send-cancel0 land-cancel0 obey0 sentinel0 see-sentinel0 collect0 go1 "
        "crash-before-effect0 send-go1 land-go1 boot1",
        1,
    ),
    "handed over: no successor in time, and the word waits for it": (
        GUEST + "plan-ahead1 depart0 send-cancel0 land-cancel0 obey0 sentinel0 see-sentinel0 collect0 go1 land-go1 "
        "start1 take-owner1 boot1",
        1,
    ),
    "handed over: it completes before it is saved, and the successor is sent away": (
        GUEST
        + AHEAD
        + "take-owner1 see-owner1 depart0 send-cancel0 complete0 land-cancel0 sentinel0 see-sentinel0 collect0 finish0 "
        "send-cancel1 land-cancel1 obey1 sentinel1 see-sentinel1 collect1",
        0,
    ),
    "handed over: the first one's node dies, and the successor that waits is told so": (
        GUEST + "node-dies0 node-lost0 tick0 tick0 " + AHEAD + "take-owner1 lose0 go1 land-go1 boot1",
        1,
    ),
    "handed over: cancelled while both have their places": (
        GUEST
        + AHEAD
        + "take-owner1 see-owner1 user-cancels0 send-cancel0 land-cancel0 obey0 send-cancel1 land-cancel1 "
        "obey1",
        0,
    ),
    "a controller paused over the end of a job": (
        GUEST + "complete0 sentinel0 see-sentinel0 collect0 pause-controller0 user-cancels0 finish0",
        0,
    ),
}


def play(state: State, script: str, mutation: str = "") -> State:
    """Take the named steps, one after the other."""
    for word in script.split():
        possible = {f"{step.name}{step.epoch}": step.state for step in reversed(list(steps(state, mutation)))}
        assert word in possible, f"{word} is not possible here; possible: {' '.join(possible)}"
        assert not violation(state), f"before {word}: {violation(state)}"
        state = possible[word]
    return state


def test_a_lost_nodes_record_is_no_proof() -> None:
    """The batch system gives up a node that it cannot reach; the guest there runs on, and believing it makes two."""
    state = play(State(faults=1), GUEST + "partition0 node-lost0")
    assert "lose" not in {step.name for step in steps(state)}
    assert violation(play(state, "lose0 plan1", "record-is-enough"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_directed_scenario(name: str) -> None:
    script, running = SCENARIOS[name]
    state = play(State(faults=9, moves="moved" in name, handover="handed over" in name), script)
    assert not violation(state)
    assert guests(state) == running
    assert not settle(state, "", set())


def test_a_silent_site_is_left_alone() -> None:
    """From a running guest at a site that stays silent, no step that is no fault ends the job or starts another."""
    state = play(State(faults=1), GUEST + "silence0")
    todo, seen = [state], {state}
    while todo:
        for step in steps(todo.pop()):
            if step.name not in ("speaks", "user-cancels") and step.state not in seen:
                assert not step.state.allocations[0].sent
                assert step.state.allocations[1].ctl == "none"
                assert step.state.job == "active"
                seen.add(step.state)
                todo.append(step.state)
    assert not any(done(s) for s in seen)
