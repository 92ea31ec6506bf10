"""What a courier brings to its node before the pilot starts: the inputs, and the image's layers that are not there.

Nothing is believed that came: the node verifies a layer, the pilot an input, as they do with what lies in a spool.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gridhypervisor.agent.ending import Ending
from gridhypervisor.agent.line import Declined
from gridhypervisor.agent.node import MARGIN, Node
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Layer, Manifest, Reason


class Stopped(Exception):
    """A signal or a wish came: the pilot is to say what it means."""


class Carrier(Protocol):
    """Who asks the relay, and hears what happens meanwhile."""

    def piece(self, path: str, offset: int) -> tuple[int, bytes]:
        """A file's size at the relay, and a piece of it. Raises Declined, Stopped."""

    def keep_line(self) -> None:
        """Find the relay again if it was lost. Raises Declined."""

    def is_stopped(self) -> bool: ...
    def wait(self, seconds: float) -> bool: ...
    def say(self, words: str) -> None: ...


class Bringing:
    """For one run. `folder` is the run's own on the node, and like an account's workdir."""

    def __init__(self, carrier: Carrier, node: Node, folder: Path) -> None:
        self._carrier, self._node, self._folder = carrier, node, folder

    def bring(self, manifest: Manifest) -> Ending | None:
        """Bring it all; why the guest cannot be started, if it cannot. Stopped on the way, it says nothing."""
        what = ""
        try:
            for item in manifest.program.inputs:
                what = f"input {item.path}"
                path = f"{wire.INPUTS}/{item.path}"
                self._fetch(path, self._folder / wire.SPOOL / manifest.entry / path)
            for layer in manifest.image.layers:
                what = f"layer {layer.digest[:12]} ({layer.role})"
                self._bring_layer(layer)
        except Stopped:
            return None
        except Ending as ending:
            return ending
        except Declined as error:
            reason = Reason.INPUT if what.startswith("input") else Reason.IMAGE
            return Ending(reason, f"bring {what} from the relay: {error}", "it is uploaded again at the next try")
        except OSError as error:
            hint = "free space on the node's scratch, or configure another scratch for the site"
            return Ending(Reason.NODE_DISK, f"bring {what}: {error.strerror or error}", hint)
        return None

    def _bring_layer(self, layer: Layer) -> None:
        """One courier of the account on this node brings it; the others wait, and find it."""
        with self._turn(self._node.cache / f".turn-{layer.digest}"):
            if self._node.has(layer):
                return
            self._carrier.say(f"bring layer {layer.digest[:12]} ({layer.role}, {layer.size} bytes)")
            self._node.make_room(layer.size + MARGIN)
            folder = self._folder / wire.CACHE
            for end in (".chunks", ""):
                self._fetch(f"{wire.CACHE}/{layer.digest}{end}", folder / f"{layer.digest}{end}")
            self._node.fetch(layer, folder, self._carrier.is_stopped, take=True)

    @contextlib.contextmanager
    def _turn(self, path: Path) -> Iterator[None]:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(descriptor):
                if self._carrier.is_stopped():
                    raise Stopped
                self._carrier.keep_line()
                self._carrier.wait(0.2)
            yield
        finally:
            os.close(descriptor)

    def _fetch(self, path: str, local: Path) -> None:
        local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with local.open("wb") as file:
            size = -1
            while file.tell() != size:
                if self._carrier.is_stopped():
                    raise Stopped
                size, data = self._carrier.piece(path, file.tell())
                if not data and file.tell() != size:
                    raise Declined("missing", f"{path} became shorter at the site", "")
                file.write(data)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
