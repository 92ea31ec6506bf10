"""Searching the protocol model: every order of events within a number of faults, and the fair run to an end."""

from __future__ import annotations

from typing import NamedTuple

from tests.properties.protocol_model import steps
from tests.properties.protocol_state import State, Step, done, violation


def settle(state: State, mutation: str, settled: set[int]) -> list[Step]:
    """Run without further faults or wishes, fairly: any step that leads somewhere new. Empty if all ends well.

    Otherwise the steps to where it got stuck. `settled` remembers (by hash) states from which it ended well.
    """
    state = state._replace(faults=0)
    seen, story = {hash(state)}, list[Step]()
    while hash(state) not in settled and not done(state):
        for step in steps(state, mutation):
            if step.name != "user-cancels" and hash(step.state) not in seen:
                break
        else:
            return story or [Step("stuck", 0, state)]
        state = step.state
        seen.add(hash(state))
        story.append(step)
    settled |= seen
    return []


class Found(NamedTuple):
    """What a search came to: `broken` names the property, `trace` the steps to it; both empty if all held."""

    broken: str
    trace: list[str]
    states: int
    situations: frozenset[str]


def search(start: State, mutation: str = "", limit: int = 2_000_000) -> Found:
    """Every state reachable from `start`, breadth first, so that a counterexample is a shortest one.

    What must never be is reported before what never ends.

    States are remembered by their 64-bit hashes: with a million of them, one in forty million searches overlooks one.

    Raises:
        RuntimeError: more than `limit` states, so that nothing would be known.
    """
    came_from: dict[int, tuple[int, str]] = {hash(start): (0, "")}
    frontier, settled, situations, endless = [start], set[int](), set[str](), list[str]()

    def trace(key: int) -> list[str]:
        names: list[str] = []
        while came_from[key][1]:
            key, name = came_from[key]
            names.append(name)
        return names[::-1]

    while frontier:
        following: list[State] = []
        for state in frontier:
            here = hash(state)
            for step in steps(state, mutation, focus=True):
                if step.situation:
                    situations.add(step.situation)
                there = hash(step.state)
                if there in came_from:
                    continue
                came_from[there] = (here, f"{step.name}{step.epoch}")
                if broken := violation(step.state):
                    return Found(broken, trace(there), len(came_from), frozenset(situations))
                if not endless and (stuck := settle(step.state, mutation, settled)):
                    endless = trace(there) + [f"{x.name}{x.epoch}" for x in stuck]
                following.append(step.state)
        if len(came_from) > limit:
            raise RuntimeError(f"search {start}: more than {limit} states; allow fewer faults")
        frontier = following
    return Found("never ends" if endless else "", endless, len(came_from), frozenset(situations))
