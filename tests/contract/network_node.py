"""Nodes with the process that carries private networks, and guests that are a socket: frames in, frames out.

Two nodes are two folders of runs; where it is asked for, also two network namespaces with a cable between, which need
no privilege: both are in a user namespace of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gridhypervisor.agent.network.frames import IPV4, address_bytes, mac_bytes
from gridhypervisor.model import wire
from gridhypervisor.model.wire import NetworkTable, Nic, Ticket
from gridhypervisor.planning.network import Attached, Network, nic_of, tables

LAN = Network(7, "10.42.0.0/24", "lab.internal")
OTHER = Network(8, "10.43.0.0/24", "other.internal")

_CODE = """
import json, socket, sys
from pathlib import Path
from gridhypervisor.agent.network.hub import Hub, Setting
from gridhypervisor.model import wire
given = json.loads(sys.argv[1])
ticket = wire.from_plain(wire.Ticket, given["ticket"]) if given["ticket"] else None
nics = tuple(wire.from_plain(wire.Nic, nic) for nic in given["nics"])
setting = Setting(given["entry"], nics, Path(given["runs"]), Path(given["relay"]), ticket, given["listen"])
pilot, *cards = (socket.socket(fileno=number) for number in given["sockets"])
Hub(pilot, cards, setting).serve()
"""


class Guest:
    """A VM with one card: its entry, its hub, and the hypervisor's end of the card."""

    def __init__(
        self, runs: Path, entry: str, nic: Nic, *, ticket: Ticket | None = None, listen: str = "",
        inside: Sequence[str] = (), relay: Path = Path("/nowhere"),
    ) -> None:  # fmt: skip
        """`inside`: the words with which a command runs on its node; `relay`: the socket of its site's relay."""
        self.entry, self.nic = entry, nic
        self._given = {
            "entry": entry, "nics": [wire.to_plain(nic)], "runs": str(runs), "listen": listen,
            "relay": str(relay),
            "ticket": wire.to_plain(ticket) if ticket is not None else None,
        }  # fmt: skip
        self._inside = list(inside)
        (runs / entry).mkdir(parents=True)
        self.card, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.said: list[dict[str, object]] = []
        self._words, self._table = b"", b""
        self.start()

    def start(self) -> None:
        """Start its hub, again on the same card."""
        self._line, theirs = socket.socketpair()
        sockets = [theirs.fileno(), self._theirs.fileno()]
        self.hub = subprocess.Popen(
            [*self._inside, sys.executable, "-c", _CODE, json.dumps({**self._given, "sockets": sockets})],
            pass_fds=sockets,
        )
        theirs.close()
        self._line.setblocking(False)
        if self._table:
            self._line.sendall(self._table)

    def learn(self, table: NetworkTable) -> None:
        self._table = b'{"table":%s}\n' % wire.canonical(table)
        self._line.sendall(self._table)

    def hear(self) -> None:
        """Take in what the hub has said."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self._line.recv(1 << 16):
                *lines, self._words = (self._words + data).split(b"\n")
                self.said += [json.loads(line) for line in lines]

    @property
    def at(self) -> str:
        self.hear()
        return next((str(said["at"]) for said in self.said if "at" in said), "")

    def log(self) -> str:
        self.hear()
        return "\n".join(str(said["say"]) for said in self.said if "say" in said)

    def count(self, what: str) -> int:
        self.hear()
        counts = [said["counts"] for said in self.said if "counts" in said]
        found = counts[-1] if counts else {}
        assert isinstance(found, dict)
        return int(found.get(what, 0))

    def frame(self, to: Guest, data: bytes, *, mac: str = "", address: str = "") -> bytes:
        """An IPv4 packet with this in it; `mac`, `address`: of whom it says that it comes."""
        head = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 0, 0, 64, 253, 0,
            address_bytes(address or self.nic.address), address_bytes(to.nic.address),
        )  # fmt: skip
        return mac_bytes(to.nic.mac) + mac_bytes(mac or self.nic.mac) + IPV4 + head + data

    def send(self, to: Guest, data: bytes, **spoofed: str) -> None:
        self.card.send(self.frame(to, data, **spoofed))

    def received(self, seconds: float = 0.0) -> list[bytes]:
        """What is in the packets that came; waits so long for the first."""
        out: list[bytes] = []
        while select.select([self.card], [], [], 0 if out else seconds)[0]:
            out.append(self.card.recv(1 << 17)[34:])
        return out

    def hears(self, enough: Callable[[list[bytes]], bool]) -> list[bytes]:
        """All that comes until it is enough."""
        out: list[bytes] = []

        def heard() -> bool:
            out.extend(self.received(0.1))
            return enough(out)

        until(heard, 20.0, f"enough to come to {self.entry}")
        return out

    def reaches(self, to: Guest, data: bytes = b"") -> None:
        """Until a packet gets there, this or any: a link may have to be dialled first."""
        word = data or os.urandom(8)

        def there() -> bool:
            self.send(to, word)
            return word in to.received(0.1)

        until(there, 20.0, f"{self.entry} to reach {to.entry}")

    def close(self) -> None:
        self.card.close()
        self._line.close()
        self._theirs.close()
        with contextlib.suppress(ProcessLookupError):
            self.hub.send_signal(signal.SIGCONT)
        try:
            assert self.hub.wait(20) == 0 or self.hub.returncode < 0
        except subprocess.TimeoutExpired:
            self.hub.kill()
            self.hub.wait()
            raise


class World:
    """Guests, and the tables that tell them of each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guests: list[Guest] = []
        self._networks: dict[str, tuple[Network, int]] = {}
        self.version = 0

    def guest(self, node: str, network: Network = LAN, member: int = 0, **more: object) -> Guest:
        """A new one on the node of that name: of the next member of the network, or of one that has another."""
        number = len(self.guests) + 1
        member = member or number
        nic = nic_of(network, member, f"vm-{member}")
        entry = f"inst-{number}-1"
        made = Guest(self.folder / node, entry, nic, **more)  # type: ignore[arg-type]
        self._networks[entry] = (network, member)
        self.guests.append(made)
        return made

    def attached(self) -> list[Attached]:
        return [
            Attached(network.number, member, guest.nic.name, guest.entry, guest.at)
            for guest in self.guests
            for network, member in [self._networks[guest.entry]]
        ]

    def tell(self) -> None:
        """Everybody, of everybody in the same network."""
        self.version += 1
        made = tables([LAN, OTHER], self.attached(), self.version)
        for guest in self.guests:
            guest.learn(made[guest.entry])

    def close(self) -> None:
        for guest in self.guests:
            guest.close()


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds} s for {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces with a cable between, 10.9.0.1 and 10.9.0.2: words before a command that runs there."""
    hold = "echo ready; exec sleep 3600"
    first = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", hold], stdout=subprocess.PIPE
    )
    second = None
    try:
        assert first.stdout is not None and first.stdout.readline()
        inside_first = ["nsenter", "--target", str(first.pid), "--user", "--net", "--preserve-credentials"]
        second = subprocess.Popen([*inside_first, "unshare", "--net", "sh", "-c", hold], stdout=subprocess.PIPE)
        assert second.stdout is not None and second.stdout.readline()
        inside_second = ["nsenter", "--target", str(second.pid), "--user", "--net", "--preserve-credentials"]
        for inside, commands in (
            (inside_first, (f"link add cable type veth peer name cable netns {second.pid}",)),
            (inside_first, ("link set lo up", "address add 10.9.0.1/24 dev cable", "link set cable up")),
            (inside_second, ("link set lo up", "address add 10.9.0.2/24 dev cable", "link set cable up")),
        ):
            for command in commands:
                subprocess.run([*inside, "ip", *command.split()], check=True)
        yield inside_first, inside_second
    finally:
        for each in (second, first):
            if each is not None:
                each.kill()
                each.wait()
                assert each.stdout is not None
                each.stdout.close()
