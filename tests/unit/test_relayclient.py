"""The controller's end of the wire against a peer that says whatever the test lets it say."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gridhypervisor.agent.relay import Relay
from gridhypervisor.model import wire
from gridhypervisor.model.errors import LinkError, LinkLost
from gridhypervisor.model.wire import Command, Op
from gridhypervisor.sites.relayclient import PIECE, RelayLink, part_of

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def with_peer(scenario: Callable[[RelayLink, Peer, list[dict[str, Any]]], Awaitable[None]]) -> None:
    """Run a scenario with a link, the streams at its other end, and the notes that came."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        notes: list[dict[str, Any]] = []
        reader, writer = await asyncio.open_connection(sock=ours)
        peer = await asyncio.open_connection(sock=theirs)
        link = RelayLink("site-x", reader, writer, lambda note, _: notes.append(note), epitaph=lambda: "last words")
        try:
            await scenario(link, peer, notes)
        finally:
            await link.close()
            for stream in (writer, peer[1]):
                stream.close()

    asyncio.run(run())


async def requests(peer: Peer, count: int) -> list[dict[str, Any]]:
    decoder, found = wire.Decoder(), list[dict[str, Any]]()
    while len(found) < count:
        found += [message for message, _ in decoder.feed(await peer[0].read(PIECE))]
    return found


def test_replies_find_their_requests_in_whatever_order_they_come() -> None:
    async def scenario(link: RelayLink, peer: Peer, notes: list[dict[str, Any]]) -> None:
        calls = [asyncio.create_task(link.call(Op.GET, {"path": str(i)}, timeout=60)) for i in range(3)]
        for request in reversed(await requests(peer, 3)):
            peer[1].write(wire.encode({"note": "entry"}))
            peer[1].write(wire.encode({"id": request["id"], "ok": {"size": 1}}, request["path"].encode()))
        assert [payload for _, payload in await asyncio.gather(*calls)] == [b"0", b"1", b"2"]
        assert len(notes) == 3

    with_peer(scenario)


def test_an_error_reply_names_operation_object_and_site_and_keeps_its_kind() -> None:
    async def scenario(link: RelayLink, peer: Peer, _: list[dict[str, Any]]) -> None:
        call = asyncio.create_task(link.call(Op.REMOVE, {"entry": "a1-j1-1"}, timeout=60))
        [request] = await requests(peer, 1)
        error = {"kind": "busy", "message": "a pilot has it", "hint": "wait"}
        peer[1].write(wire.encode({"id": request["id"], "error": error}))
        with pytest.raises(LinkError, match="remove a1-j1-1 at site-x: a pilot has it") as refusal:
            await call
        assert (refusal.value.kind, refusal.value.hint) == ("busy", "wait")

    with_peer(scenario)


def test_no_answer_in_time_is_unknown_a_late_one_is_dropped_and_the_link_lives() -> None:
    async def scenario(link: RelayLink, peer: Peer, _: list[dict[str, Any]]) -> None:
        with pytest.raises(LinkLost, match="scan at site-x: no answer"):
            await link.call(Op.SCAN, {}, timeout=0.01)
        [late] = await requests(peer, 1)
        call = asyncio.create_task(link.call(Op.USAGE, {}, timeout=60))
        [request] = await requests(peer, 1)
        for message in (late, request):
            peer[1].write(wire.encode({"id": message["id"], "ok": {"op": message["op"]}}))
        assert (await call)[0] == {"op": "usage"}

    with_peer(scenario)


@pytest.mark.parametrize("said", [b"", b"Segmentation fault\n", b'{"id": 1, "payl'])
def test_when_the_relay_ends_or_talks_nonsense_all_requests_are_unknown_and_the_reason_is_told(said: bytes) -> None:
    async def scenario(link: RelayLink, peer: Peer, _: list[dict[str, Any]]) -> None:
        calls = [asyncio.create_task(link.call(Op.SCAN, {}, timeout=60)) for _ in range(3)]
        await requests(peer, 3)
        peer[1].write(said)
        peer[1].close()
        for call in calls:
            with pytest.raises(LinkLost, match=r"scan at site-x: .*last words"):
                await call
        with pytest.raises(LinkLost, match="site-x"):
            await link.lost()
        with pytest.raises(LinkLost):
            await link.call(Op.SCAN, {}, timeout=60)

    with_peer(scenario)


def test_against_the_real_relay_commands_run_and_files_resume(tmp_path: Path) -> None:
    async def scenario(link: RelayLink, peer: Peer, _: list[dict[str, Any]]) -> None:
        relay = asyncio.create_task(Relay(tmp_path / "work", *peer).run())
        [result] = await link.commands([Command(("/bin/sh", "-c", "echo $A"), environment={"A": "site"})])
        assert result.stdout == "site\n"

        data = bytes(range(256)) * (3 * PIECE // 256) + b"end"
        (tmp_path / "file").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        part = tmp_path / "work" / "cache" / "x.part"
        for left in (data[: PIECE + 1], data, b"of another file" * PIECE):  # by an upload that was cut
            part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(left)
            await link.upload(tmp_path / "file", "cache/x", {"sha256": digest}, timeout=120)
            assert (tmp_path / "work" / "cache" / "x").read_bytes() == data
            part_of(tmp_path / "got", "cache/x", digest).write_bytes(left)
            await link.download("cache/x", tmp_path / "got", sha256=digest, timeout=120)
            assert (tmp_path / "got").read_bytes() == data and not list(tmp_path.glob(".ghv-*"))
        relay.cancel()

    (tmp_path / "work").mkdir()
    with_peer(scenario)
