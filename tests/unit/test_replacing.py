"""`replace` of `model.replacing` does what the one of `dataclasses` does."""

from __future__ import annotations

import dataclasses

import pytest

from gridhypervisor.model.records import Allocation, Times
from gridhypervisor.model.replacing import replace
from gridhypervisor.planning.world import SiteFacts


def test_it_gives_what_dataclasses_gives_and_leaves_the_old_one_alone() -> None:
    old = Allocation("v1.1", "me", "default", "j1", "v1", 1, "g-j1-1", "here", Times(1.0), version=1)
    new = replace(old, note="why", version=2)
    assert new == dataclasses.replace(old, note="why", version=2)
    assert (old.note, old.version) == ("", 1)
    assert hash(new) != hash(old)
    with pytest.raises(dataclasses.FrozenInstanceError):
        new.note = "other"  # type: ignore[misc]


def test_what_was_worked_out_from_the_old_values_is_worked_out_anew() -> None:
    old = SiteFacts("here", up=True, alive=1)
    assert old.recorded.alive == 1  # remembered from now on
    assert replace(old, alive=2).recorded.alive == 2


def test_a_field_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TypeError, match="Times has no field begun"):
        replace(Times(1.0), begun=2.0)  # type: ignore[call-arg]
