"""How long a guest may run after an answer, and who gets one."""

from __future__ import annotations

from gridhypervisor.agent.grant import Grant
from gridhypervisor.model.states import AllocationState
from gridhypervisor.planning.grants import GRANTED


def test_a_grant_counts_from_when_the_beat_was_sent_that_was_answered() -> None:
    grant = Grant(30.0)
    assert grant.until < 0
    for beat in range(1, 5):
        grant.sent(beat, 100.0 + 10.0 * beat)
    assert grant.heard(["cancel", "grant-2"]) and grant.until == 150.0
    assert not grant.heard(["grant-2"]), "it is the same answer"
    assert not grant.heard(["grant-1"]) and grant.until == 150.0, "an answer that comes late takes nothing away"
    assert grant.heard(["grant-2", "grant-4"]) and grant.until == 170.0


def test_what_answers_no_beat_of_this_run_grants_nothing() -> None:
    grant = Grant(30.0)
    grant.sent(1, 100.0)
    grant.sent(2, 200.0)
    assert not grant.heard(["grant-1"]), "it would have run out"
    assert not grant.heard(["grant-3", "grant-", "grant-x", "grant--2", "granted"])
    assert grant.heard(["grant-2"]) and grant.until == 230.0


def test_nobody_is_granted_anything_who_may_have_a_successor_soon() -> None:
    assert not GRANTED & {AllocationState.FENCING, AllocationState.FENCED, AllocationState.REVOKED}
