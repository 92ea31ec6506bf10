"""Private networks: which address each VM has, and the table that says to each pilot where the others are.

An address follows from a VM's number in its network, which it keeps for its life; so does its hardware address. The
first address of a network is the resolver's. Pure: numbers of networks, and versions of tables, are the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from gridhypervisor.model.wire import MTU, Lan, Member, NetworkTable, Nic

LEAST_PREFIX, MOST_PREFIX = 16, 29
"""Bits of a network's address: from 5 members to 65,533."""

PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
TAKEN = IPv4Network("10.0.2.0/24")
"""What QEMU calls its own network, which a guest has beside the private ones where outbound is allowed."""


@dataclass(frozen=True)
class Network:
    """A private network of a virtual infrastructure."""

    number: int  # of one installation, never used again
    cidr: str  # e.g. 10.42.0.0/24
    domain: str  # e.g. slurm-lab.internal
    mtu: int = MTU
    rate: int = 0  # bytes a second that each member may send; 0: as many as it can


@dataclass(frozen=True)
class Attached:
    """A VM in a network."""

    network: int
    member: int  # from 1 on
    name: str
    entry: str = ""  # of the allocation that runs it now
    at: str = ""  # where that pilot listens, as its status says
    site: str = ""  # at which it is


def fault(cidr: str) -> str:
    """Why no private network can have this range, and what is allowed; empty where it can."""
    allowed = (
        f"give a range of {', '.join(map(str, PRIVATE[:3]))}, with a prefix of {LEAST_PREFIX} to {MOST_PREFIX} bits"
    )
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        return f"{cidr}: {error}; {allowed}"
    if not LEAST_PREFIX <= network.prefixlen <= MOST_PREFIX or not any(network.subnet_of(each) for each in PRIVATE):
        return f"{cidr} is no range for a private network; {allowed}"
    if network.overlaps(TAKEN):
        return f"{cidr} overlaps {TAKEN}, which guests have for outbound connections; {allowed}"
    return ""


def room(cidr: str) -> int:
    """How many members such a network may have: all of its addresses but its own, the resolver's, and the last."""
    return IPv4Network(cidr).num_addresses - 3


def free_member(cidr: str, taken: Collection[int]) -> int | None:
    """The lowest number that no VM has; None: the network is full."""
    return next((number for number in range(1, room(cidr) + 1) if number not in taken), None)


def nic_of(network: Network, member: int, name: str) -> Nic:
    """The card of one member, for the manifest of each of its allocations. Raises ValueError: there is no such member.

    >>> nic_of(Network(7, "10.42.0.0/24", "lab.internal"), 1, "head").address
    '10.42.0.2'
    """
    lan = IPv4Network(network.cidr)
    if not 1 <= member <= room(network.cidr):
        raise ValueError(f"network {network.cidr} has no member {member}")
    return Nic(
        network.number, member, name, _mac(network.number, member), str(lan[member + 1]), lan.prefixlen, str(lan[1]),
        network.domain, network.mtu, network.rate,
    )  # fmt: skip


def tables(networks: Iterable[Network], attached: Iterable[Attached], version: int) -> dict[str, NetworkTable]:
    """For each entry the table that its pilot needs: of the networks in which its VM is, and no others. Where pilots
    listen is said to those of their own site alone: elsewhere the address may be another machine's."""
    known = {network.number: network for network in networks}
    members: dict[int, list[Attached]] = {}
    of_entry: dict[tuple[str, str], set[int]] = {}  # by entry and site
    for each in sorted(attached, key=lambda each: (each.network, each.member)):
        members.setdefault(each.network, []).append(each)
        if each.entry:
            of_entry.setdefault((each.entry, each.site), set()).add(each.network)
    lans = {
        (number, site): Lan(number, tuple(_member(known[number], each, site) for each in found))
        for number, found in members.items()
        for site in {site for (_, site), numbers in of_entry.items() if number in numbers}
    }
    return {
        entry: NetworkTable(version, tuple(lans[number, site] for number in sorted(numbers)))
        for (entry, site), numbers in of_entry.items()
    }


def news(known: Mapping[str, NetworkTable], wanted: Mapping[str, NetworkTable]) -> dict[str, NetworkTable]:
    """The tables that say something else than those that went out before."""
    return {
        entry: table for entry, table in wanted.items() if entry not in known or known[entry].lans != table.lans
    }  # fmt: skip


def _member(network: Network, each: Attached, site: str) -> Member:
    """As those of that site are to know it."""
    nic = nic_of(network, each.member, each.name)
    return Member(each.member, each.name, nic.mac, nic.address, each.entry, each.at if each.site == site else "")


def _mac(network: int, member: int) -> str:
    """Locally administered, and one's own in the network: `02:67`, the network's last two bytes, the member's."""
    return bytes([0x02, 0x67, network >> 8 & 255, network & 255, member >> 8, member & 255]).hex(":")
