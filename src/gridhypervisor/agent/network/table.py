"""Who is in a network, as its switch looks for them: by hardware address, by address, by name, by number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gridhypervisor.agent.network.frames import IPV4, address_bytes, mac_bytes
from gridhypervisor.model.wire import Member, WireError


@dataclass(frozen=True)
class Station:
    """A member, in bytes."""

    number: int
    name: str
    mac: bytes
    address: bytes
    entry: str  # whose pilot has it; empty: nobody's
    at: str
    stamp: bytes  # the bytes 6 to 14 of each IPv4 frame that it sends: its hardware address, and the type


class Stations:
    """All of one network."""

    def __init__(self, members: Iterable[Member] = (), domain: str = "") -> None:
        """Raises WireError: two have one number, name, hardware or other address, or one of these is none."""
        self.by_mac: dict[bytes, Station] = {}
        self.by_address: dict[bytes, Station] = {}
        self.by_name: dict[str, Station] = {}
        self.by_number: dict[int, Station] = {}
        self.domain = domain.lower()
        for member in members:
            station = station_of(member)
            where = ((self.by_mac, station.mac), (self.by_address, station.address), (self.by_name, station.name),
                     (self.by_number, station.number))  # fmt: skip
            for known, key in where:
                if key in known:
                    raise WireError(f"the network's member {member.name!r} is not the only one with {key!r}")
                known[key] = station  # type: ignore[index]


def station_of(member: Member) -> Station:
    """In bytes. Raises WireError: an address is none."""
    number = member.number
    try:
        mac, address = mac_bytes(member.mac), address_bytes(member.address)
    except ValueError as error:
        raise WireError(f"the network's member {member.name!r}: {error}") from error
    if mac[0] & 1 or not 0 < number < 1 << 16:
        raise WireError(f"the network's member {member.name!r}: number {number}, hardware address {member.mac}")
    return Station(number, member.name.lower(), mac, address, member.entry, member.at, mac + IPV4)
