"""What must be alike where a guest is saved and where it is taken up: pure decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gridhypervisor.model.wire import Checkpoint, HypervisorUsed, Manifest

if TYPE_CHECKING:
    from gridhypervisor.agent.hypervisor import Machine, Saver
    from gridhypervisor.agent.world import World

_WORDS = {
    "image": "its image is {theirs:.12}, the job's {ours:.12}",
    "kind": "it was made under {theirs}, and here guests run under {ours}",
    "program": "it was made by {theirs}, and here is {ours}",
    "bundle": "it was made by bundle {theirs}, and here is {ours}",
    "memory": "its guest has {theirs} bytes of memory, the job asks for {ours}",
    "layout": "its machine has other devices: {changed}",
    "processor": "it was made on another processor model: {changed}",
}


def likeness(
    manifest: Manifest, machine: Machine, used: HypervisorUsed, world: World, saver: Saver
) -> dict[str, Any]:  # fmt: skip
    """Of a checkpoint that is made here, or can be taken up here: the fields that say of what kind it is. `machine`: as
    one that boots."""
    return {
        "image": manifest.image_digest,
        "kind": str(used.kind),
        "program": used.program,
        "bundle": world.root.name if world.root is not None else "",
        "layout": saver.layout(machine),
        "processor": saver.processor(machine),
        "memory": machine.memory,
    }


def difference(checkpoint: Checkpoint, here: dict[str, Any]) -> str:
    """Why a checkpoint cannot be taken up where these fields hold, or empty."""
    for name, words in _WORDS.items():
        theirs, ours = getattr(checkpoint, name), here[name]
        if theirs != ours:
            return words.format(theirs=theirs, ours=ours, changed=_changed(theirs, ours))
    return ""


def _changed(theirs: Any, ours: Any) -> str:
    """The first words that differ, of two lists or two texts."""
    a, b = (list(side) if isinstance(side, tuple) else str(side).split() for side in (theirs, ours))
    for one, other in zip([*a, ""], [*b, ""], strict=False):
        if one != other:
            return f"{one or 'nothing'!r}, here {other or 'nothing'!r}"
    return ""
