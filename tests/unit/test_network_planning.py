"""Addresses that follow from a member's number, and who is told of whom."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.agent.network.switch import RESOLVER_MAC, Switch
from gridhypervisor.model.wire import NetworkTable
from gridhypervisor.planning.network import Attached, Network, fault, free_member, news, nic_of, room, tables

LAN = Network(7, "10.42.0.0/24", "lab.internal")


@given(st.integers(16, 29), st.integers(0, 2**16), st.data())
def test_members_have_addresses_of_their_own_that_are_nobody_else_s(
    prefix: int, number: int, data: st.DataObject
) -> None:
    cidr = f"10.64.0.0/{prefix}"
    assert fault(cidr) == ""
    network = Network(number, cidr, "lab.internal")
    a, b = data.draw(st.integers(1, room(cidr))), data.draw(st.integers(1, room(cidr)))
    one, other = nic_of(network, a, "a"), nic_of(network, b, "b")
    whole = IPv4Network(cidr)
    address = IPv4Address(one.address)
    assert address in whole
    assert address not in (whole.network_address, whole.broadcast_address, IPv4Address(one.resolver))
    assert (one.address == other.address) == (one.mac == other.mac) == (a == b)
    assert bytes.fromhex(one.mac.replace(":", "")) != RESOLVER_MAC
    assert nic_of(network, a, "a") == one


@pytest.mark.parametrize(
    "cidr", ["10.0.0.0/8", "10.42.0.0/30", "8.8.8.0/24", "10.42.0.5/24", "x", "10.0.2.0/24", "::/64"]
)
def test_a_range_that_cannot_be_is_told_with_what_can(cidr: str) -> None:
    assert cidr in fault(cidr)
    assert "give" in fault(cidr)


def test_the_lowest_free_number_is_given_until_there_is_none() -> None:
    small = "10.42.0.0/29"
    assert free_member(small, ()) == 1
    assert free_member(small, {1, 2, 4}) == 3
    assert free_member(small, set(range(1, room(small) + 1))) is None
    with pytest.raises(ValueError, match="no member"):
        nic_of(Network(1, small, "x"), room(small) + 1, "x")


def test_a_pilot_is_told_of_its_vm_s_networks_and_no_others() -> None:
    other = Network(8, "10.43.0.0/24", "other.internal")
    attached = [
        Attached(7, 1, "head", "e1", "10.0.0.9:7800"),
        Attached(7, 2, "worker", "e2"),
        Attached(7, 3, "waiting"),
        Attached(8, 1, "head", "e1"),
        Attached(8, 2, "far", "e3"),
    ]
    made = tables([LAN, other], attached, 5)
    assert set(made) == {"e1", "e2", "e3"}
    assert {entry: [lan.network for lan in table.lans] for entry, table in made.items()} == {
        "e1": [7, 8], "e2": [7], "e3": [8],
    }  # fmt: skip
    [lan] = made["e2"].lans
    assert [(each.name, each.entry, each.at) for each in lan.members] == [
        ("head", "e1", "10.0.0.9:7800"),
        ("worker", "e2", ""),
        ("waiting", "", ""),
    ]
    elsewhere = [Attached(7, 1, "head", "e1", "10.0.0.9:7800", "a"), Attached(7, 2, "worker", "e2", site="b")]
    told = tables([LAN], elsewhere, 5)
    assert [told[entry].lans[0].members[0].at for entry in ("e1", "e2")] == ["10.0.0.9:7800", ""]
    assert all(table.version == 5 for table in made.values())
    Switch(nic_of(LAN, 2, "worker"), Counter()).learn(lan)


def test_only_what_has_changed_goes_out_again() -> None:
    before = tables([LAN], [Attached(7, 1, "head", "e1"), Attached(7, 2, "worker", "e2")], 1)
    same = tables([LAN], [Attached(7, 2, "worker", "e2"), Attached(7, 1, "head", "e1")], 2)
    assert news(before, same) == {}
    moved = tables([LAN], [Attached(7, 1, "head", "e1"), Attached(7, 2, "worker", "e3")], 3)
    assert set(news(before, moved)) == {"e1", "e3"}
    assert news({}, {"e9": NetworkTable(1)}) == {"e9": NetworkTable(1)}
