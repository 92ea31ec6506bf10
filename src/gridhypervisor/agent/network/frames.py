"""Ethernet frames and what is in them, as bytes: read where it matters, and made. Pure, and never surprised."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = 14
"""Bytes of an Ethernet header: destination, source, type."""

IPV4, ARP = b"\x08\x00", b"\x08\x06"
"""The types of what a private network knows."""

BROADCAST = b"\xff" * 6
ANYBODY = bytes(4)
"""The address of who has none yet."""

EVERYBODY = b"\xff" * 4
"""The address of all in the network."""

_UDP = 17
_FRAGMENT = 0x3FFF  # more fragments follow, or this is not the first
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2


def mac_bytes(text: str) -> bytes:
    """`02:67:00:01:00:05` as six bytes. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError(f"{text!r} is no hardware address")
    return bytes(int(part, 16) for part in parts)


def address_bytes(text: str) -> bytes:
    """`10.42.0.5` as four bytes. Raises ValueError."""
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and part.isascii() and len(part) <= 3 for part in parts):
        raise ValueError(f"{text!r} is no IPv4 address")
    return bytes(int(part) for part in parts)  # above 255: ValueError


def address_text(address: bytes) -> str:
    return ".".join(map(str, address))


def mask_of(prefix: int) -> bytes:
    """Of so many bits."""
    return ((0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF).to_bytes(4, "big")


@dataclass(frozen=True)
class ArpRequest:
    """Who asks whom for a hardware address."""

    mac: bytes
    address: bytes  # ANYBODY: it asks whether somebody has the address that it is about to take
    wanted: bytes


def arp_request(frame: bytes) -> ArpRequest | None:
    """None: it is another thing."""
    if len(frame) < HEADER + _ARP.size:
        return None
    kind, over, long, short, what, mac, address, _, wanted = _ARP.unpack_from(frame, HEADER)
    if (kind, over, long, short, what) != (1, 0x0800, 6, 4, _REQUEST):
        return None
    return ArpRequest(mac, address, wanted)


def arp_reply(mac: bytes, address: bytes, asker: ArpRequest) -> bytes:
    """`address` is at `mac`."""
    said = _ARP.pack(1, 0x0800, 6, 4, _REPLY, mac, address, asker.mac, asker.address)
    return asker.mac + mac + ARP + said


@dataclass(frozen=True)
class Datagram:
    """A whole UDP datagram."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    data: bytes


def datagram(frame: bytes) -> Datagram | None:
    """What an IPv4 frame carries; None: it is another thing, a fragment, or it is cut off. Checksums are not looked at:
    what is wrong in here harms who sent it."""
    if len(frame) < HEADER + 20 or frame[12:14] != IPV4 or frame[14] >> 4 != 4:
        return None
    head = 4 * (frame[14] & 15)
    length, _, fragment = struct.unpack_from(">HHH", frame, HEADER + 2)
    if head < 20 or frame[23] != _UDP or fragment & _FRAGMENT or not head + 8 <= length <= len(frame) - HEADER:
        return None
    source_port, destination_port, size, _ = struct.unpack_from(">HHHH", frame, HEADER + head)
    if not 8 <= size <= length - head:
        return None
    data = frame[HEADER + head + 8 : HEADER + head + size]
    return Datagram(frame[26:30], frame[30:34], source_port, destination_port, data)


def make_datagram(to: bytes, mac: bytes, sent: Datagram) -> bytes:
    """The frame that carries it, from one hardware address to another. UDP's own checksum is left out, as IPv4 allows:
    the frame does not leave this machine."""
    udp = struct.pack(">HHHH", sent.source_port, sent.destination_port, 8 + len(sent.data), 0) + sent.data
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, _UDP, 0, sent.source, sent.destination)
    return to + mac + IPV4 + ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:] + udp


def checksum(data: bytes) -> int:
    """The Internet's, RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
