"""Whether this node reaches the relay by TCP, and how soon it answers: for a probe's report.

The probe's entry holds a ticket where the site's relay listens, which lets in as that of a courier does. Nothing is
asked of the relay but an answer.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from pathlib import Path

from gridhypervisor.agent import spool
from gridhypervisor.agent.line import Away, Declined, Gate, Line
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Carry, Reached, Ticket, WireError

PATIENCE = 20.0
"""Seconds that an answer may take; connecting has its own."""

ROUNDS = 5
"""The least of so many is the way there and back; the others waited for something else as well."""


def reach(entry: Path) -> Reached | None:
    """Try it. None: the entry has no ticket, for the relay does not listen."""
    try:
        given = spool.read_json(entry / wire.TICKET, Ticket)
    except (OSError, WireError) as error:
        return Reached("", why=f"read {entry / wire.TICKET}: {error}")
    if given is None:
        return None
    try:
        line = Line(Gate.parse(given.gate), given.ticket, lambda _: None, answer=PATIENCE)
    except (ValueError, ssl.SSLError) as error:
        return Reached(given.gate, why=f"the ticket cannot be used: {error}")
    with contextlib.closing(line):
        try:
            line.connect()
            soonest = min(_round(line) for _ in range(ROUNDS))
        except Away as error:
            return Reached(given.gate, why=str(error))
        except Declined as error:
            return Reached(given.gate, why=f"{line.at} declined: {error}")
        return Reached(given.gate, line.at, round(1000 * soonest, 2))


def _round(line: Line) -> float:
    began = time.perf_counter()
    line.call(Carry.PING)
    return time.perf_counter() - began
