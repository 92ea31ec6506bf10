"""What a network answers by itself, from its table: DHCP, and names. Pure; bytes of a datagram in, bytes out.

DHCP (RFC 2131) gives a guest the address that it has anyway, for ever. Names (RFC 1035) are those of the members, with
and without the network's domain, and the other way round; what is outside of it is refused, so that a resolver asks
the next server, where there is one. Truncated, odd or hostile requests get no answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from gridhypervisor.agent.network.frames import ANYBODY, address_bytes, mac_bytes, mask_of
from gridhypervisor.agent.network.table import Stations
from gridhypervisor.model.wire import Nic

# --- DHCP -----------------------------------------------------------------------------------------------------------

SERVER_PORT, CLIENT_PORT = 67, 68

_BOOTP = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_FOR_EVER = b"\xff" * 4
_PAD, _MASK, _NAME_SERVER, _HOST, _DOMAIN, _MTU, _WANTED, _LEASE, _KIND, _SERVER, _END = (
    0, 1, 6, 12, 15, 26, 50, 51, 53, 54, 255,
)  # fmt: skip
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8


def dhcp(nic: Nic, request: bytes) -> bytes | None:
    """The reply to a guest's request, in which it stands what its card is called and has; None: there is none."""
    if len(request) < _BOOTP.size:
        return None
    kind, _, _, _, number, _, flags, has, _, _, _, hardware, _, _, cookie = _BOOTP.unpack_from(request)
    if kind != 1 or cookie != _COOKIE or hardware[:6] != mac_bytes(nic.mac):
        return None
    given = dict(_options(request[_BOOTP.size :]))
    address, server = address_bytes(nic.address), address_bytes(nic.resolver)
    wants = given.get(_WANTED, has if has != ANYBODY else address)
    match given.get(_KIND):
        case b"\x01":
            answer = _OFFER
        case b"\x03" if given.get(_SERVER, server) != server:
            return None  # it has taken another's offer
        case b"\x03":
            answer = _ACK if wants == address else _NAK
        case b"\x08":
            answer = _ACK
        case _:
            return None
    options: list[tuple[int, bytes]] = [(_KIND, bytes([answer])), (_SERVER, server)]
    if answer != _NAK:
        options += [
            (_MASK, mask_of(nic.prefix)), (_NAME_SERVER, server), (_HOST, nic.name.encode()[:255]),
            (_DOMAIN, nic.domain.encode()[:255]), (_MTU, nic.mtu.to_bytes(2, "big")),
        ]  # fmt: skip
        options += [(_LEASE, _FOR_EVER)] if answer != _ACK or given[_KIND] != bytes([_INFORM]) else []
    yours = ANYBODY if answer == _NAK or given[_KIND] == bytes([_INFORM]) else address
    said = b"".join(bytes([code, len(value)]) + value for code, value in options if value) + bytes([_END])
    head = _BOOTP.pack(2, 1, 6, 0, number, 0, flags, has, yours, server, ANYBODY, hardware, b"", b"", _COOKIE)
    return (head + said).ljust(300, b"\0")


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
        elif at + 1 < len(data):
            yield data[at], data[at + 2 : at + 2 + data[at + 1]]
            at += 2 + data[at + 1]
        else:
            return


# --- names ----------------------------------------------------------------------------------------------------------

NAME_PORT = 53
_TTL = 5
"""Seconds that a resolver may remember an answer: members come and go."""

_A, _PTR, _ANY, _IN = 1, 12, 255, 1
_NO_ERROR, _NO_SUCH_NAME, _NOT_DONE, _REFUSED = 0, 3, 4, 5
_REVERSE = "in-addr.arpa"


def names(stations: Stations, resolver: bytes, query: bytes) -> bytes | None:
    """The reply to a query for one name; None: it is no query. `resolver`: the address at which it was asked."""
    if len(query) < 12:
        return None
    number, flags, questions, *_ = struct.unpack_from(">HHHHHH", query)
    if flags & 0x8000 or questions != 1:
        return None
    read = _name(query, 12)
    if read is None or len(query) < read[1] + 4:
        return None
    labels, at = read
    kind, category = struct.unpack_from(">HH", query, at)
    found: tuple[int, bytes] | None = None
    if flags & 0x7800:
        code = _NOT_DONE
    elif category != _IN:
        code = _REFUSED
    else:
        code, found = _look_up(stations, resolver, labels, kind)
    answer = b""
    if found is not None:
        answer = struct.pack(">HHHIH", 0xC00C, found[0], _IN, _TTL, len(found[1])) + found[1]
    said = 0x8400 | flags & 0x0100 | code  # a reply, with authority; recursion was desired, and is not available
    head = struct.pack(">HHHHHH", number, said, 1, 1 if answer else 0, 0, 0)
    return head + query[12 : at + 4] + answer


def _look_up(
    stations: Stations, resolver: bytes, labels: Sequence[str], kind: int
) -> tuple[int, tuple[int, bytes] | None]:
    name = ".".join(labels)
    if name.endswith(f".{_REVERSE}"):
        return _look_up_address(stations, labels[:-2], kind)
    if stations.domain and name.endswith(f".{stations.domain}"):
        name = name.removesuffix(f".{stations.domain}")
    elif "." in name or not name:
        return _REFUSED, None
    station = stations.by_name.get(name)
    if station is None:
        return _NO_SUCH_NAME, None
    return _NO_ERROR, (_A, station.address) if kind in (_A, _ANY) else None


def _look_up_address(
    stations: Stations, labels: Sequence[str], kind: int
) -> tuple[int, tuple[int, bytes] | None]:  # fmt: skip
    try:
        station = stations.by_address.get(address_bytes(".".join(reversed(labels))))
    except ValueError:
        station = None
    if station is None:
        return _REFUSED, None  # it may be another server's
    full = [station.name, *filter(None, stations.domain.split("."))]
    written = b"".join(bytes([len(label)]) + label.encode() for label in full) + b"\0"
    return _NO_ERROR, (_PTR, written) if kind in (_PTR, _ANY) else None


def _name(data: bytes, at: int) -> tuple[list[str], int] | None:
    """The labels of a name, in lower case, and where it ends; None: it is none, or uses what no question needs."""
    labels: list[str] = []
    begin = at
    while at < len(data):
        size = data[at]
        at += 1
        if size == 0:
            return labels, at
        if size > 63 or at + size > len(data) or at + size - begin > 255:
            return None
        labels.append(data[at : at + size].decode("ascii", "replace").lower())
        at += size
    return None
