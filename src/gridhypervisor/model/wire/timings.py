"""How long what is done with a guest takes: the pilot's own measurements, from which the planner predicts."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class OperationKind(enum.StrEnum):
    """What takes the longer the more bytes there are. Which bytes count, each says."""

    UPLOAD = "upload"  # to the site, before the submission: what it lacks of the image, and the inputs
    PREPARE = "prepare"  # all else that a node needs before a guest begins: the inputs, which go on its disk
    COPY = "copy"  # from the account's cache to the node, verified: the layers that it lacked
    BOOT = "boot"  # to guest-ready: the guest's memory
    RESTORE = "restore"  # a snapshot taken up, to guest-ready: what the snapshot holds
    SAVE = "save"  # of a running guest: what in its memory is not zero, and what its own disks have
    RESUME = "resume"  # brought to the node and taken up, until its program goes on: what the checkpoint takes


@dataclass(frozen=True)
class Timing:
    """One operation that was done."""

    kind: OperationKind
    bytes: int
    seconds: float
    load: float = 1.0  # of the node just before: tasks that wanted to run, for each processor; at least 1
