"""How the client's streams go on after a break, whatever the break."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.client.calls import EventFeed, JobFeed, OperationFeed
from gridhypervisor.model.views import (
    EventView,
    FollowItem,
    FollowKind,
    Operation,
    OperationItem,
    Problem,
    ServiceError,
)


def line(item: object) -> bytes:
    return msgspec.json.encode(item)


def output(offset: int, data: bytes) -> bytes:
    return line(FollowItem(FollowKind.OUTPUT, None, "stdout", offset, data))


@given(st.binary(min_size=1, max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=20))
def test_output_comes_once_however_the_pieces_overlap(text: bytes, pieces: list[tuple[int, int]]) -> None:
    feed, got = JobFeed("j1", True), b""
    for back, length in [*pieces, (60, 60)]:
        start = max(0, len(got) - back)
        item = feed.take(output(start, text[start : start + length]))
        got += item.data if item else b""
        assert feed.offsets["stdout"] == len(got)
    item = feed.take(output(0, text))
    assert got + (item.data if item else b"") == text


def test_a_gap_is_an_error_and_never_silent() -> None:
    with pytest.raises(ServiceError, match="jumps from byte 0 to byte 5"):
        JobFeed("j1", True).take(output(5, b"x"))


def test_the_path_asks_for_what_is_missing() -> None:
    feed = JobFeed("j1", True)
    feed.take(output(0, b"hello"))
    assert feed.path == "/v1/jobs/j1/follow?output=true&stdout=5&stderr=0"


def test_events_come_once_and_in_order() -> None:
    feed = EventFeed(3, "")
    events = [EventView(n, 0.0, "me", "p", "j1", "job", "j1", "", "pending") for n in (3, 4, 4, 5)]
    assert [e.sequence for e in map(feed.take, map(line, events)) if e] == [4, 5]
    assert "after=5" in feed.path


def test_a_problem_in_the_middle_of_a_stream_is_raised() -> None:
    problem = Problem("follow job j1", 404, "not-found", "it was deleted")
    with pytest.raises(ServiceError, match="it was deleted"):
        JobFeed("j1", True).take(line({"problem": problem}))


def test_a_failed_operation_is_raised_and_a_done_one_ends() -> None:
    feed = OperationFeed(Operation("o1"))
    feed.take(line(OperationItem("progress", "half")))
    assert not feed.ended
    feed.take(line(OperationItem("done", result=1)))
    assert feed.ended
    with pytest.raises(ServiceError, match="a bit is flipped"):
        feed.take(line(OperationItem("error", problem=Problem("verify", 500, "invalid", "a bit is flipped"))))


def test_what_cannot_be_read_names_the_mend() -> None:
    with pytest.raises(ServiceError) as error:
        EventFeed(0, "").take(b'{"sequence": "x"}')
    assert "another version" in error.value.problem.hint
