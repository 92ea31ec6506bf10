"""What a courier on a node asks of the relay's gate, where nodes do not see the account's workdir.

By its certificate the courier says which entry it is for, not in a message. After CLAIM it may do with that entry what
a pilot does in a spool, and nothing else; before it, or where somebody else owns the entry, nothing at all
but to hear whether somebody answers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Carry(enum.StrEnum):
    """Requests of a courier. Each is idempotent: sent twice, it has the effect of once.

    Error kinds as in `Op`; `owner`: the entry is not this courier's; `gone`: the entry was removed.
    """

    PING = "ping"  # {} -> {}; whether the relay answers: it and JOIN are not for the entry's owner alone
    # `owner` as it stands: this courier's if the claim is the same; another's is not told. The rest only if it is ours.
    # `cancel`: why the job is wished to end, or null; `begin`: the lines of its gang, or null; `grant`: the beat that
    # was answered last, or null; `save`: the wish of its note, or null; `forbidden`: why the lender does not let it
    # start, and whom to ask, or null; `network`: the table of its note, or null.
    CLAIM = "claim"  # {owner: OwnerRecord} -> {owner, manifest, cancel, begin, grant, save, network, forbidden}
    GET = "get"  # {path, offset, length} -> {size} + payload; the entry's inputs, and its image's files in the cache
    # {} + payload: the status file -> {cancel, begin, grant, save, network}, as in CLAIM: another relay may know.
    # A table that was told on this line is not told again.
    STATUS = "status"
    APPEND = "append"  # {name, offset} + payload -> {}; what comes next in stdout, stderr or one of the logs
    HAVE = "have"  # {path} -> {size}: bytes of an output that are here of an upload that was cut short
    PUT = "put"  # {path, offset, last, size, sha256, mode} + payload -> {size}; an output, or `exit.json` as a file
    # {} -> {}; no owner is asked for either. From then on the connection carries records of private networks both ways:
    # `agent/network/records.py`. What may be sent to whom says the table in the entry.
    JOIN = "join"
    LEAVE = "leave"  # {} -> {}; what was put as `exit.json` becomes the sentinel, durably. Refused: incomplete


CANCEL_NOTE, BEGIN_NOTE, GRANT_NOTE, SAVE_NOTE, NETWORK_NOTE = "cancel", "begin", "grant", "save", "network"
NOTES = {
    CANCEL_NOTE: "why", BEGIN_NOTE: "members", GRANT_NOTE: "beat", SAVE_NOTE: "wish", NETWORK_NOTE: "table",
}  # fmt: skip
"""What the gate says unasked, and what it says with it: {note: 'cancel', why} and so on; `wish`: N, a space, and what
stands in `save-N`; `table` likewise of `network-N`."""

GATE_PORTS = (7750, 7765)
"""Where a relay listens, unless the site's configuration says otherwise: the first of these that is free."""

RELAY_NAME = "relay.ghv"
"""The name in every relay's certificate, which couriers ask for. No entry's certificate has it."""


@dataclass(frozen=True)
class Ticket:
    """What lets a probe try the gate, in its entry's file of this name."""

    gate: str  # HOST:FIRST-LAST
    ticket: str = field(repr=False)  # certificate, key, and the authority's certificate: see a courier's


PIECE = 1 << 20
"""Bytes of a file in one message."""
