"""Who is in a private network, and where their pilots are at the moment.

A network is IPv4 on Ethernet frames, and each VM in it a *member* with a number of its own. What a guest may send, and
where that goes, is known beforehand: nothing is learnt from frames. The manifest says what never changes, the VM's own
cards (`Nic`); the table says where the other members' pilots are, and a newer one takes the place of an older one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One VM of a network, and where its pilot is."""

    number: int
    name: str
    mac: str
    address: str
    entry: str = ""  # of the allocation that runs it now; empty: nobody does
    at: str = ""  # HOST:PORT at which that pilot listens, for pilots of its own site; empty: it does not


@dataclass(frozen=True)
class Lan:
    """One network as the table knows it."""

    network: int
    members: tuple[Member, ...] = ()


@dataclass(frozen=True)
class NetworkTable:
    """`control/network-N`: who is in the networks of one VM, itself among them. `version` is N, and only grows."""

    version: int
    lans: tuple[Lan, ...] = ()
