"""What a switch lets a guest send, and lets it be sent; and what it answers: on frames, without a socket."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent.network import answers
from gridhypervisor.agent.network.frames import (
    ANYBODY,
    ARP,
    BROADCAST,
    EVERYBODY,
    IPV4,
    Datagram,
    address_bytes,
    checksum,
    datagram,
    mac_bytes,
    make_datagram,
)
from gridhypervisor.agent.network.switch import RESOLVER_MAC, Bucket, Count, Switch
from gridhypervisor.agent.network.table import Station, Stations
from gridhypervisor.model.wire import Lan, Member, Nic, WireError

NIC = Nic(7, 1, "head", "02:67:00:07:00:01", "10.42.0.2", 24, "10.42.0.1", "lab.internal")
MAC, ADDRESS, RESOLVER = mac_bytes(NIC.mac), address_bytes(NIC.address), address_bytes(NIC.resolver)
MEMBERS = (
    Member(1, "head", NIC.mac, NIC.address, "inst-1-1"),
    Member(2, "worker-1", "02:67:00:07:00:02", "10.42.0.3", "inst-2-1"),
    Member(3, "worker-2", "02:67:00:07:00:03", "10.42.0.4"),
)
OTHER, OTHER_ADDRESS = mac_bytes(MEMBERS[1].mac), address_bytes(MEMBERS[1].address)


def switch() -> Switch:
    made = Switch(NIC, Counter())
    made.learn(Lan(7, MEMBERS))
    return made


def ip(to: bytes = OTHER, mac: bytes = MAC, source: bytes = ADDRESS, destination: bytes = OTHER_ADDRESS,
       more: bytes = b"x" * 30) -> bytes:  # fmt: skip
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(more), 0, 0, 64, 6, 0, source, destination)
    return to + mac + IPV4 + head + more


def arp(wanted: str, mac: bytes = MAC, source: bytes = ADDRESS, what: int = 1) -> bytes:
    return BROADCAST + MAC + ARP + struct.pack(
        ">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, what, mac, source, bytes(6), address_bytes(wanted)
    )  # fmt: skip


def udp(port: int, data: bytes, *, source: bytes = ADDRESS, to: bytes = RESOLVER_MAC, at: bytes = RESOLVER,
        from_port: int = 4000) -> bytes:  # fmt: skip
    return make_datagram(to, MAC, Datagram(source, at, from_port, port, data))


def counted(made: Switch) -> dict[str, int]:
    return dict(made._counts)


# --- what goes out ----------------------------------------------------------------------------------------------------


def test_a_frame_to_a_member_goes_to_its_pilot() -> None:
    goes = switch().outgoing(ip(), 0.0)
    assert isinstance(goes, Station)
    assert (goes.name, goes.entry) == ("worker-1", "inst-2-1")


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (ip(mac=OTHER), Count.SPOOFED),
        (ip(source=OTHER_ADDRESS), Count.SPOOFED),
        (ip(source=ANYBODY), Count.SPOOFED),
        (ip(to=BROADCAST, source=RESOLVER), Count.SPOOFED),
        (arp("10.42.0.3", mac=OTHER), Count.SPOOFED),
        (arp("10.42.0.3", source=OTHER_ADDRESS), Count.SPOOFED),
        (arp("10.42.0.3", what=2), Count.FOREIGN),
        (arp("10.42.0.99"), Count.FOREIGN),
        (ip(to=BROADCAST), Count.FOREIGN),
        (ip(to=bytes.fromhex("01005e000001")), Count.FOREIGN),
        (ip(to=bytes.fromhex("026700070099")), Count.FOREIGN),
        (ip(to=MAC), Count.FOREIGN),
        (ip(to=RESOLVER_MAC), Count.FOREIGN),
        (OTHER + MAC + b"\x86\xdd" + bytes(60), Count.FOREIGN),
        (OTHER + MAC + b"\x81\x00\x00\x01" + ip()[12:], Count.FOREIGN),
        (b"", Count.FOREIGN),
        (ip()[:13], Count.FOREIGN),
        (ip(more=b"x" * 9000), Count.FOREIGN),
        (ip(to=mac_bytes(MEMBERS[2].mac)), Count.AWAY),
    ],
)
def test_all_else_goes_nowhere_and_is_counted(frame: bytes, why: Count) -> None:
    made = switch()
    assert made.outgoing(frame, 0.0) is None
    assert counted(made) == {why: 1}


def test_a_frame_may_be_as_long_as_the_network_says() -> None:
    assert isinstance(switch().outgoing(ip(more=b"x" * (9000 - 20)), 0.0), Station)
    assert switch().outgoing(ip(more=b"x" * (9000 - 19)), 0.0) is None


def test_a_guest_is_answered_and_heard_at_a_bounded_rate() -> None:
    made = switch()
    replies = [made.outgoing(arp("10.42.0.3"), 0.0) for _ in range(1000)]
    assert 0 < sum(reply is not None for reply in replies) < 1000
    assert counted(made)[Count.FAST] > 0
    assert made.outgoing(arp("10.42.0.3"), 1.0) is not None
    slow = Switch(Nic(**{**NIC.__dict__, "rate": 100_000}), Counter())
    slow.learn(Lan(7, MEMBERS))
    sent = sum(len(ip()) for step in range(5000) if slow.outgoing(ip(), step / 5000) is not None)
    assert 100_000 - len(ip()) <= sent <= 100_000 + 2 * slow.longest


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate(asked: list[tuple[float, float]]) -> None:
    bucket, now, taken = Bucket(10.0, 20.0), 0.0, 0.0
    for later, amount in asked:
        now += later
        taken += amount if bucket.takes(amount, now) else 0.0
        assert taken <= 20.0 + 10.0 * now + 1e-6


# --- what comes in ----------------------------------------------------------------------------------------------------


def test_a_guest_gets_what_is_for_it_from_the_member_that_sent_it() -> None:
    made = switch()
    source = made.stations.by_number[2]
    good = ip(to=MAC, mac=OTHER, source=OTHER_ADDRESS, destination=ADDRESS)
    assert made.incoming(source, good)
    for bad in (
        ip(to=BROADCAST, mac=OTHER, source=OTHER_ADDRESS),
        ip(to=MAC, mac=mac_bytes(MEMBERS[2].mac), source=OTHER_ADDRESS),
        ip(to=MAC, mac=OTHER, source=address_bytes("10.42.0.4")),
        ip(to=MAC, mac=RESOLVER_MAC, source=RESOLVER),
        good[:33],
        good + bytes(9000),
        MAC + OTHER + ARP + bytes(40),
    ):
        assert not made.incoming(source, bad)
    assert counted(made) == {Count.REFUSED: 7}


@given(st.binary(max_size=120), st.sampled_from([b"", MAC + IPV4, MAC + ARP, MAC + IPV4 + b"\x45"]), st.booleans())
def test_whatever_a_guest_sends_only_its_own_reaches_others(noise: bytes, known: bytes, broadcast: bool) -> None:
    frame = (BROADCAST if broadcast else RESOLVER_MAC) + known + noise if known else noise
    goes = switch().outgoing(frame, 0.0)
    if isinstance(goes, Station):
        assert frame[6:12] == MAC and frame[12:14] == IPV4 and frame[26:30] == ADDRESS
        assert goes.mac == frame[:6]
    elif goes is not None:
        assert goes[6:12] == RESOLVER_MAC or goes[12:14] == ARP


@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_guest_asks_an_answer_is_for_itself(data: bytes, dhcp: bool) -> None:
    frame = udp(67, data, from_port=68, to=BROADCAST, at=EVERYBODY) if dhcp else udp(53, data)
    reply = switch().outgoing(frame, 0.0)
    assert reply is None or isinstance(reply, bytes)
    if reply is not None:
        assert reply[:6] in (MAC, BROADCAST)
        assert datagram(reply) is not None


@given(st.binary(max_size=120), st.integers(0, 4))
def test_whatever_another_pilot_sends_a_guest_gets_only_what_is_its_members(noise: bytes, kept: int) -> None:
    made = switch()
    good = ip(to=MAC, mac=OTHER, source=OTHER_ADDRESS, destination=ADDRESS)
    frame = good[: (0, 6, 14, 26, 30)[kept]] + noise
    if made.incoming(made.stations.by_number[2], frame):
        assert frame[:6] == MAC and frame[6:12] == OTHER and frame[12:14] == IPV4 and frame[26:30] == OTHER_ADDRESS


# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "mac"), [("10.42.0.3", OTHER), ("10.42.0.1", RESOLVER_MAC)])
def test_arp_is_answered_from_the_table(wanted: str, mac: bytes) -> None:
    reply = switch().outgoing(arp(wanted), 0.0)
    assert isinstance(reply, bytes)
    assert (reply[:6], reply[6:12], reply[22:28], reply[28:32]) == (MAC, mac, mac, address_bytes(wanted))
    assert reply[20:22] == b"\0\2"


def test_nobody_says_that_a_guest_s_own_address_is_taken() -> None:
    made = switch()
    assert made.outgoing(arp(NIC.address, source=ANYBODY), 0.0) is None
    assert made.outgoing(arp(NIC.address), 0.0) is None
    assert counted(made) == {}


def query(name: str, kind: int = 1, *, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack(">HHHHHH", 99, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def look_up(name: str, kind: int = 1) -> tuple[int, bytes]:
    """The code, and the data of the answer."""
    reply = switch().outgoing(udp(53, query(name, kind)), 0.0)
    assert isinstance(reply, bytes)
    found = datagram(reply)
    assert found is not None
    assert (found.source, found.source_port, found.destination_port) == (RESOLVER, 53, 4000)
    number, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", found.data)
    assert number == 99 and flags & 0x8000
    asked = len(query(name, kind))
    return flags & 15, found.data[asked + 12 :] if count else b""


@pytest.mark.parametrize("name", ["worker-1", "Worker-1.lab.internal", "worker-1.LAB.internal."])
def test_members_are_found_by_name(name: str) -> None:
    assert look_up(name) == (0, OTHER_ADDRESS)


def test_other_names_are_unknown_or_another_server_s() -> None:
    assert look_up("worker-9") == (3, b"")
    assert look_up("worker-9.lab.internal") == (3, b"")
    assert look_up("worker-1", 28) == (0, b"")  # it is there, but has no address of IPv6
    assert look_up("example.org") == (5, b"")
    assert look_up("worker-1.other.internal") == (5, b"")
    assert look_up("3.0.42.10.in-addr.arpa", 12) == (0, b"\x08worker-1\x03lab\x08internal\0")
    assert look_up("8.8.8.8.in-addr.arpa", 12) == (5, b"")


def dhcp(kind: int, *options: tuple[int, bytes], has: bytes = ANYBODY) -> dict[int, bytes] | None:
    """The options of the reply, with the address given under 0; None: there is none."""
    head = struct.pack(">BBBBIHH4s4s4s4s16s64s128s4s", 1, 1, 6, 0, 5, 0, 0, has, ANYBODY, ANYBODY, ANYBODY, MAC, b"",
                       b"", b"\x63\x82\x53\x63")  # fmt: skip
    said = b"".join(bytes([code, len(value)]) + value for code, value in ((53, bytes([kind])), *options)) + b"\xff"
    frame = udp(67, head + said, source=has, to=BROADCAST, at=EVERYBODY, from_port=68)
    reply = switch().outgoing(frame, 0.0)
    if reply is None:
        return None
    assert isinstance(reply, bytes)
    found = datagram(reply)
    assert found is not None
    assert checksum(reply[14:34]) == 0
    return {0: found.data[16:20], **dict(answers._options(found.data[240:]))}


def test_a_guest_gets_its_own_address_for_ever() -> None:
    offered = dhcp(1)
    assert offered is not None
    assert (offered[0], offered[53]) == (ADDRESS, b"\x02")
    given = dhcp(3, (50, ADDRESS), (54, RESOLVER))
    assert given is not None
    assert given == {
        0: ADDRESS, 53: b"\x05", 54: RESOLVER, 1: bytes([255, 255, 255, 0]), 6: RESOLVER, 12: b"head",
        15: b"lab.internal", 26: (9000).to_bytes(2, "big"), 51: b"\xff" * 4,
    }  # fmt: skip
    assert 3 not in given, "there is no way out through a private network"
    again = dhcp(3, has=ADDRESS)
    assert again is not None
    assert again[53] == b"\x05"


def test_another_address_is_refused_and_another_server_s_offer_left_to_it() -> None:
    refused = dhcp(3, (50, OTHER_ADDRESS), (54, RESOLVER))
    assert refused == {0: ANYBODY, 53: b"\x06", 54: RESOLVER}
    assert dhcp(3, (50, ADDRESS), (54, OTHER_ADDRESS)) is None
    assert dhcp(7) is None


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        (*MEMBERS, Member(4, "head", "02:67:00:07:00:04", "10.42.0.5")),
        (*MEMBERS, Member(4, "x", MEMBERS[1].mac, "10.42.0.5")),
        (*MEMBERS, Member(4, "x", "02:67:00:07:00:04", MEMBERS[1].address)),
        (*MEMBERS, Member(3, "x", "02:67:00:07:00:04", "10.42.0.5")),
        (*MEMBERS, Member(4, "x", "03:67:00:07:00:04", "10.42.0.5")),
        (*MEMBERS, Member(4, "x", "nonsense", "10.42.0.5")),
        (*MEMBERS, Member(4, "x", "02:67:00:07:00:04", "10.42.0.256")),
        (*MEMBERS, Member(4, "x", "02:67:00:07:00:04", NIC.resolver)),
        (*MEMBERS, Member(4, "x", RESOLVER_MAC.hex(":"), "10.42.0.5")),
        (Member(1, "head", "02:67:00:07:00:04", NIC.address),),
    ],
)
def test_a_table_that_cannot_be_is_refused_and_the_one_before_holds(members: tuple[Member, ...]) -> None:
    made = switch()
    with pytest.raises(WireError):
        made.learn(Lan(7, members))
    assert isinstance(made.outgoing(ip(), 0.0), Station)


def test_a_table_of_another_network_is_refused() -> None:
    with pytest.raises(WireError):
        switch().learn(Lan(8, MEMBERS))


def test_a_member_that_moved_is_sent_to_where_it_is() -> None:
    made = switch()
    made.learn(Lan(7, (MEMBERS[0], Member(2, "worker-1", MEMBERS[1].mac, MEMBERS[1].address, "inst-2-2"))))
    goes = made.outgoing(ip(), 0.0)
    assert isinstance(goes, Station)
    assert goes.entry == "inst-2-2"
    assert Stations().by_name == {}
