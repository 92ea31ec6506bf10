"""Two real guests in a private network, under each hypervisor and another: by name, over TCP, through the death of what
carries it; and what root in a guest cannot do there."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.agent import entries
from gridhypervisor.agent.network.switch import Count
from gridhypervisor.model import wire
from gridhypervisor.planning.network import Attached, Network, nic_of, tables
from tests.e2e import guestkit
from tests.e2e.guestkit import Site

LAN = Network(7, "10.42.0.0/24", "lab.internal")

HEAD = r"""
printf '#!/bin/sh\n[ "$1" != bound ] || echo "$ip/$mask $mtu $dns $domain"\n' >heard; chmod +x heard
udhcpc -i eth0 -n -q -f -t 5 -s ./heard 2>/dev/null
echo ready
mkfifo open; nc -l -p 5000 <>open
"""

WORKER = r"""
until ping -c 1 -W 1 head >/dev/null 2>&1; do :; done
ping -c 1 -W 5 -s 8000 head.lab.internal >/dev/null && echo reached
lines() { i=0; while [ $i -lt 30 ]; do echo "line $i"; i=$((i + 1)); usleep 100000; done; }
until lines | nc head 5000; do :; done # it may not listen yet
echo sent
ifconfig eth0:1 10.42.0.9 netmask 255.255.255.0
ping -c 1 -W 1 -I 10.42.0.9 10.42.0.2 >/dev/null || echo as nobody else
ifconfig eth0 down; ifconfig eth0 hw ether 02:67:00:07:00:09 up
ping -c 1 -W 1 10.42.0.2 >/dev/null || echo from nowhere else
"""


@pytest.fixture(params=guestkit.HYPERVISORS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from guestkit.sites(tmp_path, request.param)


def hub(entry: Path) -> int:
    """The process that carries an entry's frames, the last one that its pilot has started."""
    log = (entry / wire.PILOT_LOG).read_text()
    return int(re.findall(r"carried by process (\d+)", log)[-1])


def test_guests_reach_each_other_by_name_and_tcp_outlives_a_cut(site: Site) -> None:
    head = site.prepare(HEAD, nics=(nic_of(LAN, 1, "head"),), hostname="head")
    worker = site.prepare(WORKER, nics=(nic_of(LAN, 2, "worker"),), hypervisor="tcg", hostname="worker")
    attached = [Attached(7, 1, "head", head.name), Attached(7, 2, "worker", worker.name)]
    pilots = [site.start(head), site.start(worker)]
    for name, table in tables([LAN], attached, 1).items():
        control = site.workdir / wire.SPOOL / name / wire.CONTROL
        control.mkdir(exist_ok=True)
        entries.leave_table(control, 1, wire.canonical(table).decode())
    site.wait_for_stdout(worker, "reached\n")
    stdout = head / wire.STDOUT
    guestkit.wait_for(lambda: "line 3\n" in stdout.read_text(), 60, "the first lines to arrive")
    before = hub(head)
    os.kill(before, signal.SIGKILL)
    guestkit.wait_for(lambda: hub(head) != before, 30, "another to carry the frames")
    assert [pilot.wait(120) for pilot in pilots] == [0, 0], (head / wire.STDERR).read_text()
    assert (worker / wire.STDOUT).read_text() == "reached\nsent\nas nobody else\nfrom nowhere else\n"
    given, ready, *lines = stdout.read_text().splitlines()
    assert (given, ready) == ("10.42.0.2/24 9000 10.42.0.1 lab.internal", "ready")
    assert lines == [f"line {number}" for number in range(30)]
    record = site.sentinel(worker)
    assert record.frames[Count.SPOOFED] > 0
    assert min(record.frames[Count.SENT], record.frames[Count.RECEIVED]) > 10
    for entry in (head, worker):
        site.is_clean(entry)
