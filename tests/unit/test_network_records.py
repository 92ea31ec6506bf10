"""What goes over a link between pilots: any cut of the stream, and what is no record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent.network.records import (
    ALIVE,
    HEADER,
    LENGTH,
    MOST,
    Decoder,
    Greeting,
    Outbox,
    Record,
    greeting,
    record,
)
from gridhypervisor.model.wire import WireError

numbers = st.integers(0, 65535)
sent = st.tuples(st.integers(0, 2**32 - 1), numbers, numbers, st.lists(st.binary(min_size=1, max_size=300), min_size=1))


def packed(frames: list[bytes]) -> bytes:
    return b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)


def feed(decoder: Decoder, data: bytes, cuts: list[int]) -> list[tuple[int, int, int, list[bytes]]]:
    out = []
    at = 0
    while at < len(data):
        room = decoder.room()
        size = min(len(room), cuts[at % len(cuts)], len(data) - at)
        room[:size] = data[at : at + size]
        for each in decoder.took(size):
            out.append((each.network, each.destination, each.source, [bytes(frame) for frame in each.split()]))
        at += size
    return out


@given(st.lists(sent, max_size=6), st.lists(st.integers(1, 700), min_size=1, max_size=7))
def test_records_come_out_as_they_went_in_however_they_are_cut(
    records: list[tuple[int, int, int, list[bytes]]], cuts: list[int]
) -> None:
    data = b"".join(ALIVE + record(*each[:3], packed(each[3])) for each in records)
    assert feed(Decoder(), data, cuts) == records


def test_long_records_keep_coming_through_a_bounded_buffer() -> None:
    one = (1, 2, 3, [bytes([n]) * 60_000 for n in range(4)])
    data = record(*one[:3], packed(one[3])) * 20
    assert feed(Decoder(), data, [65_536, 16_384, 100_000]) == [one] * 20


def test_a_record_that_is_too_long_is_none() -> None:
    decoder = Decoder()
    decoder.room()[: HEADER.size] = HEADER.pack(MOST + 1, 1, 1, 1)
    with pytest.raises(WireError):
        list(decoder.took(HEADER.size))


@given(st.binary(max_size=60))
def test_a_record_of_nonsense_is_refused_or_split_whole(data: bytes) -> None:
    try:
        frames = list(Record(1, 1, 1, memoryview(data)).split())
    except WireError:
        return
    assert packed([bytes(frame) for frame in frames]) == data


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400))))
def test_a_queue_is_bounded_and_what_goes_out_is_whole_records_in_order(steps: list[tuple[int, int]]) -> None:
    box, most = Outbox(1000), 1000
    put: list[bytes] = []
    got = b""
    rest = b""
    number = 0
    for what, size in steps:
        if what < 2:
            number += 1
            data = bytes([number % 256]) * size
            if box.put(data):
                put.append(data)
        elif what == 2:
            first = box.first()
            if first is not None:
                taken = min(size, len(first))
                got += bytes(first[:taken])
                box.sent(taken)
        else:
            whole = b"".join(put)
            begun = _within(put, len(got))
            box.rewind()
            if begun is not None:  # the one that was begun is lost with its link
                put.pop(begun)
                got = got[: sum(map(len, put[:begun]))]
            assert whole.startswith(got[:0])
        assert box.size <= most + 400
        assert b"".join(put).startswith(got)
    while (first := box.first()) is not None:
        rest += bytes(first)
        box.sent(len(first))
    assert got + rest == b"".join(put)
    assert box.size == 0


def _within(records: list[bytes], offset: int) -> int | None:
    """The record in the middle of which an offset lies."""
    at = 0
    for number, each in enumerate(records):
        if at < offset < at + len(each):
            return number
        at += len(each)
    return None


@pytest.mark.parametrize("said", [b"x\n", b"[1]\n", b"{}\nmore", b"x" * 2000, b'{"a":' + b"[" * 900 + b"\n"])
def test_what_is_no_greeting_is_refused(said: bytes) -> None:
    with pytest.raises(WireError):
        Greeting().feed(said)


def test_a_greeting_may_come_in_pieces() -> None:
    heard = Greeting()
    data = greeting({"join": "a", "from": "b"})
    assert [heard.feed(data[at : at + 1]) for at in range(len(data))][-1] == {"join": "a", "from": "b"}
