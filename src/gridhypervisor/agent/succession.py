"""What a pilot does that was asked for before the attempt before it is over: be ready, and heed the word."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from gridhypervisor.agent.ending import Ending
from gridhypervisor.agent.node import Node
from gridhypervisor.model.wire import Checkpoint, Manifest, Reason, WireError, from_plain


def fetch(manifest: Manifest, node: Node, cache: Path, stop: Callable[[], bool], log: Callable[[str], None]) -> None:
    """Bring the image's layers to the node, which stay there.

    Raises:
        Ending: one is damaged, or there is no room.
    """
    for layer in manifest.image.layers:
        if node.has(layer) is None:
            log(f"verify and copy layer {layer.digest[:12]} ({layer.role}, {layer.size} bytes)")
            node.fetch(layer, cache, stop)


def told(manifest: Manifest, word: str) -> Manifest:
    """The manifest of a successor that has got its word.

    Raises:
        Ending: it makes no sense (manifest).
    """
    try:
        return dataclasses.replace(manifest, restore=from_plain(Checkpoint, json.loads(word)))
    except (ValueError, WireError) as error:
        raise Ending(Reason.MANIFEST, f"read the word to go on: {error}", "report this as a bug") from error
