"""The switch of one card: what its guest may send and where that goes, and what it may be sent. Pure decisions.

Addresses never change and everybody is known, so it is a look into a table. What is not IPv4 from the card's own
hardware and network address to another member goes nowhere, and is counted; so are broadcasts, multicasts and IPv6,
which these networks have not. What a guest needs of such is answered here: ARP from the table, DHCP and names at the
resolver's address, at a bounded rate. What other pilots send must come from the member that it says it comes from.

Root in the guest may send anything at all; other pilots are of the same account, and not believed more than needed.
"""

from __future__ import annotations

import enum
from collections import Counter

from gridhypervisor.agent.network import answers
from gridhypervisor.agent.network.frames import (
    ANYBODY,
    ARP,
    BROADCAST,
    EVERYBODY,
    HEADER,
    IPV4,
    Datagram,
    address_bytes,
    arp_reply,
    arp_request,
    datagram,
    make_datagram,
)
from gridhypervisor.agent.network.table import Station, Stations, station_of
from gridhypervisor.model.wire import MAX_MTU, Lan, Member, Nic, WireError

RESOLVER_MAC = bytes.fromhex("066768760001")
"""Of the resolver of every network; no member's begins so."""

LEAST = HEADER + 20
"""Bytes of the shortest frame that goes anywhere: IPv4's header with nothing in it."""

ANSWERS = (200.0, 400.0)
"""Requests of a guest that are answered in a second, and at once."""


class Count(enum.StrEnum):
    """What is counted, in frames where it does not say bytes."""

    SENT = "sent"  # to other members
    SENT_BYTES = "sent-bytes"
    RECEIVED = "received"  # handed to the guest
    RECEIVED_BYTES = "received-bytes"
    ANSWERED = "answered"  # requests, here
    SPOOFED = "spoofed"  # of the guest: not from its own addresses
    FOREIGN = "foreign"  # of the guest: to nobody who is here, or nothing that is known here
    AWAY = "away"  # of the guest: to a member that is nowhere at the moment
    FAST = "fast"  # of the guest: beyond its rate, or that at which is answered
    FULL = "full"  # a queue was
    REFUSED = "refused"  # of another pilot: not what may come from there


class Bucket:
    """So much a second, and so much at once; by a clock that its user reads."""

    def __init__(self, rate: float, burst: float) -> None:
        """`rate` 0: without bound."""
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, float("-inf")

    def takes(self, amount: float, now: float) -> bool:
        """Whether there is room for so much; then it is taken."""
        if not self._rate:
            return True
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < amount:
            return False
        self._left -= amount
        return True


class Switch:
    """Of one card. `counts` is added to."""

    def __init__(self, nic: Nic, counts: Counter[str]) -> None:
        """Raises WireError: the card has what no card has."""
        self.nic = nic
        me = Member(nic.member, nic.name, nic.mac, nic.address)
        self.own = station_of(me)
        self.longest = nic.mtu + HEADER  # bytes of a frame
        self.stations = Stations([me], nic.domain)  # until there is a table
        self._counts = counts
        self._mac, self._address, self._stamp = self.own.mac, self.own.address, self.own.stamp
        try:
            self._resolver = address_bytes(nic.resolver)
        except ValueError as error:
            raise WireError(f"the resolver of network {nic.network}: {error}") from error
        if not 576 <= nic.mtu <= MAX_MTU or not 0 <= nic.prefix <= 30 or self.own.mac == RESOLVER_MAC:
            raise WireError(f"the card in network {nic.network}: mtu {nic.mtu}, prefix {nic.prefix}, {nic.mac}")
        self._answers = Bucket(*ANSWERS)
        self._bytes = Bucket(float(nic.rate), max(nic.rate / 10, 2.0 * self.longest))

    def learn(self, lan: Lan) -> None:
        """From now on these are the members.

        Raises:
            WireError: they are not those of this network, and nothing has changed.
        """
        if lan.network != self.nic.network:
            raise WireError(f"the table is that of network {lan.network}, not of {self.nic.network}")
        stations = Stations(lan.members, self.nic.domain)
        if RESOLVER_MAC in stations.by_mac or self._resolver in stations.by_address:
            raise WireError(f"a member of network {lan.network} has the resolver's address")
        me = stations.by_number.get(self.own.number)
        if me is not None and (me.mac, me.address) != (self._mac, self._address):
            raise WireError(f"the table gives this card of network {lan.network} other addresses")
        self.stations = stations

    def outgoing(self, frame: bytes | memoryview, now: float) -> Station | bytes | None:
        """Of a frame that the guest sends: to whom it goes; or what the guest gets for it; or it goes nowhere."""
        size = len(frame)
        head = bytes(frame[:34])
        if head[6:14] != self._stamp or size < LEAST or size > self.longest:
            return self._other(frame, head, now)
        # IPv4 from our own hardware address: the one that has to be fast
        if head[26:30] != self._address or head[14] >> 4 != 4:
            return self._other(frame, head, now)
        station = self.stations.by_mac.get(head[:6])
        if station is None or station.number == self.own.number:
            return self._other(frame, head, now)
        if not station.entry:
            self._counts[Count.AWAY] += 1
            return None
        if not self._bytes.takes(size, now):
            self._counts[Count.FAST] += 1
            return None
        return station

    def incoming(self, source: Station, frame: bytes | memoryview) -> bool:
        """Whether the guest may have a frame that the pilot of `source` has sent."""
        head = bytes(frame[:34])
        if (
            len(frame) < LEAST
            or len(frame) > self.longest
            or head[:6] != self._mac
            or head[6:14] != source.stamp
            or head[26:30] != source.address
            or head[14] >> 4 != 4
        ):
            self._counts[Count.REFUSED] += 1
            return False
        return True

    def _other(self, frame: bytes | memoryview, head: bytes, now: float) -> bytes | None:
        """What is not for another member: a request, or nothing."""
        size, kind = len(frame), head[12:14]
        if size < HEADER or size > self.longest or kind not in (IPV4, ARP):
            self._counts[Count.FOREIGN] += 1
            return None
        if head[6:12] != self._mac:
            self._counts[Count.SPOOFED] += 1
            return None
        if not self._answers.takes(1, now):
            self._counts[Count.FAST] += 1
            return None
        return self._arp(bytes(frame)) if kind == ARP else self._ip(bytes(frame))

    def _arp(self, frame: bytes) -> bytes | None:
        request = arp_request(frame)
        if request is None:  # a reply that nobody asked for is how others are deceived
            self._counts[Count.FOREIGN] += 1
            return None
        if request.mac != self._mac or request.address not in (self._address, ANYBODY):
            self._counts[Count.SPOOFED] += 1
            return None
        wanted = request.wanted
        if wanted == self._address:  # it announces itself, or asks whether another has its address
            return None
        if wanted == self._resolver:
            mac = RESOLVER_MAC
        elif wanted in self.stations.by_address:
            mac = self.stations.by_address[wanted].mac
        else:
            self._counts[Count.FOREIGN] += 1
            return None
        self._counts[Count.ANSWERED] += 1
        return arp_reply(mac, wanted, request)

    def _ip(self, frame: bytes) -> bytes | None:
        asked = datagram(frame)
        source = frame[26:30]
        dhcp = (
            asked is not None
            and (asked.source_port, asked.destination_port) == (answers.CLIENT_PORT, answers.SERVER_PORT)
            and frame[:6] in (BROADCAST, RESOLVER_MAC)
            and asked.destination in (EVERYBODY, self._resolver)
        )
        if source != self._address and not (dhcp and source == ANYBODY):
            self._counts[Count.SPOOFED] += 1
            return None
        said: bytes | None = None
        if dhcp:
            assert asked is not None
            said = answers.dhcp(self.nic, asked.data)
        elif (
            asked is not None
            and frame[:6] == RESOLVER_MAC
            and asked.destination == self._resolver
            and asked.destination_port == answers.NAME_PORT
        ):
            said = answers.names(self.stations, self._resolver, asked.data)
        if asked is None or said is None:
            self._counts[Count.FOREIGN] += 1
            return None
        self._counts[Count.ANSWERED] += 1
        # A guest without an address hears only what is for everybody, or for the address that it is about to have.
        to = self._address if source != ANYBODY else EVERYBODY
        reply = Datagram(self._resolver, to, asked.destination_port, asked.source_port, said)
        return make_datagram(self._mac if source != ANYBODY else BROADCAST, RESOLVER_MAC, reply)
