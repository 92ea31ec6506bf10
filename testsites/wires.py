"""A network of a test site's own: a cable from the front-end to each node, which can be pulled, and a door for SSH.

Every node is a network name space, on one bridge with the front-end, all of them private to the site. The one thing
outside is the socket on a loopback address that SSH clients connect to. It knows no batch system.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from testsites import sshd
from testsites.site import random_address
from testsites.spaces import Spaces

NETWORK = "10.9.0"
DOORMAN = Path(__file__).with_name("doorman.py")
PROGRAM = Path("/usr/sbin/ip")


class Wires:
    """Of the front-end `name` and its nodes; they are laid in name spaces that have a network."""

    def __init__(self, name: str, nodes: Sequence[str]) -> None:
        self._nodes = list(nodes)
        self._addresses = {host: f"{NETWORK}.{at}" for at, host in enumerate((name, *nodes), 1)}

    def address(self, host: str) -> str:
        return self._addresses[host]

    @property
    def hosts(self) -> str:
        """Lines for etc/hosts."""
        return "\n".join(f"{address} {host}" for host, address in self._addresses.items())

    def lay(self, spaces: Spaces) -> None:
        # The named name spaces are mounts, which are as private as everything else once /run is.
        lines = ["mount -t tmpfs none /run", "ip link add wires type bridge", f"ip addr add {NETWORK}.1/24 dev wires",
                 "ip link set wires up"]  # fmt: skip
        for node in self._nodes:
            wire = self._wire(node)
            lines += [f"ip netns add {node}", f"ip link add {wire} type veth peer name eth0 netns {node}",
                      f"ip link set {wire} master wires up", f"ip -n {node} addr add {self.address(node)}/24 dev eth0",
                      f"ip -n {node} link set eth0 up", f"ip -n {node} link set lo up"]  # fmt: skip
        spaces.run("sh", "-e", "-c", "\n".join(lines))

    def connect(self, spaces: Spaces, node: str, there: bool) -> None:
        """Pull a node's cable, or put it back: packets are lost, and nothing but the network is touched."""
        spaces.run("ip", "link", "set", self._wire(node), "up" if there else "down")

    def on_node(self, node: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs this in the node's network."""
        return ["/usr/bin/nsenter", f"--net=/run/netns/{node}", *argv]

    def _wire(self, node: str) -> str:
        """The front-end's end of a node's cable: a name of its own, for such names are short."""
        return f"wire{self._nodes.index(node) + 1}"


def door(descriptor: int, root: Path) -> list[str]:
    """The command line that lets SSH in where this socket listens."""
    return [sys.executable, "-I", str(DOORMAN), str(descriptor), str(root)]


def listener(known: str) -> socket.socket:
    """A listening socket on an address in 127.0.0.0/8 that is nobody else's; or on the known one, if any.

    Raises:
        OSError: somebody listens at the known address.
    """
    while True:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last one's connections may linger there
        try:
            made.bind((known or random_address(), sshd.PORT))
            made.listen(100)
            return made
        except OSError:
            made.close()
            if known:
                raise
