"""What a site has, and what of it is free, as its batch system tells: nodes, cores, memory, who waits, maintenance.

A claim, not a fact: what is free may be kept for others, or be gone when we come.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

MOST_NODES = 1000
"""Nodes of a site that are told one by one; the sums are of all."""


class NodeState(enum.StrEnum):
    IDLE = "idle"  # nothing is on it
    MIXED = "mixed"  # some of it is free
    ALLOCATED = "allocated"  # nothing of it is free
    DOWN = "down"  # the batch system does not reach it
    DRAINED = "drained"  # it takes no new work, of us at least: drained, in maintenance, reserved

    @property
    def takes(self) -> bool:
        """Whether jobs may begin there, now or when there is room."""
        return self not in (NodeState.DOWN, NodeState.DRAINED)


@dataclass(frozen=True)
class NodeRow:
    """One node. None: the batch system does not tell."""

    name: str
    state: NodeState | None
    cpus: int | None = None  # cores, or what the batch system gives out as such
    free_cpus: int | None = None
    memory: int | None = None  # bytes
    free_memory: int | None = None  # that no job has been promised, or is in use: as the batch system counts


@dataclass(frozen=True)
class Capacity:
    """A whole site. None: the batch system does not tell."""

    rows: tuple[NodeRow, ...]  # at most `MOST_NODES`
    nodes: int
    idle: int
    cpus: int | None  # of nodes that take work or are busy
    free_cpus: int | None
    waiting: int | None = None  # jobs of anybody that wait in the queue
    maintenance: float | None = None  # seconds from `as_of` until one begins; negative: it has. None: none is told
    as_of: float = 0.0  # when it was asked for, on the controller's clock


def capacity(rows: Iterable[NodeRow], waiting: int | None = None, maintenance: float | None = None) -> Capacity:
    """Add up the nodes."""
    found = sorted(rows, key=lambda row: row.name)
    able = [row for row in found if row.state is None or row.state.takes]
    cpus = [row.cpus for row in able if row.cpus is not None]
    free = [row.free_cpus for row in able if row.free_cpus is not None]
    return Capacity(
        tuple(found[:MOST_NODES]),
        len(found),
        sum(row.state is NodeState.IDLE for row in found),
        sum(cpus) if cpus or not able else None,
        sum(free) if free or not able else None,
        waiting,
        maintenance,
    )


def state_of(cpus: int, free: int) -> NodeState:
    """Of a node that takes work."""
    return NodeState.IDLE if free >= cpus else NodeState.MIXED if free > 0 else NodeState.ALLOCATED
