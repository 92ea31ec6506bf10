"""Gives gangs their places: each whole or not at all. Pure: the same arguments, the same places.

Best fit first, in the gangs' order: each goes where the least stays free, so that a larger one behind it finds room.
When the grid is nearly full, that strands gangs for which there is room, if those before them lay otherwise. Then
CP-SAT (of OR-tools) rearranges what lies at a few sites, those with most free places and some others, and at the next
few: whoever best fit has placed keeps a place, perhaps another, and as many members more as can be get one. All sites
at once are too many to be rearranged in the time that there is; a few hold all that matters.

CP-SAT counts gangs of a kind at each site, integers, and is never asked of a single VM where it goes. To import it
takes half a second and more: who sees a gang come calls `prepare` where that holds nobody up.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

SITES = 16
"""That are rearranged at once."""

TRIES = 12
"""How often, before those who are stranded then have to wait."""

EFFORT = 0.05
"""Deterministic seconds of each: CP-SAT counts them itself, so that a replay elsewhere gets the same places."""


class Kind(NamedTuple):
    """What gangs have in common that may go to the same sites, and like them alike."""

    size: int
    spread: bool
    scores: tuple[tuple[str, float], ...]  # by site where it may go: the higher the better


@dataclass(frozen=True)
class Wanted:
    """A gang that wants places."""

    id: str
    kind: Kind


Places = dict[str, int]
"""Site → how many members of a gang go there."""


def prepare() -> None:
    """Import CP-SAT, which it takes long to. Where it is not to be had, whoever then needs it says so."""
    with contextlib.suppress(ImportError):
        importlib.import_module("ortools.sat.python.cp_model")


def pack(gangs: Sequence[Wanted], room: Mapping[str, int]) -> dict[str, Places]:
    """Places for gangs, first to last, by id; who gets none is left out. `room`: free places by site."""
    placed = best_fit(gangs, room)
    for number in range(TRIES if placed else 0):  # where none was placed, none lies in another's way
        free = left(room, placed)
        stranded = [gang for gang in gangs if gang.id not in placed and gang.kind.scores]
        if not any(gang.kind.size <= sum(free.values()) for gang in stranded):
            break
        here = {site: room[site] for site in _some(free, number)}
        movable = [gang for gang in gangs if gang.id in placed and placed[gang.id].keys() <= here.keys()]
        fixed = Counter[str]()
        for gang in gangs:
            if gang.id in placed and not placed[gang.id].keys() <= here.keys():
                fixed.update(placed[gang.id])
        there = {site: count - fixed[site] for site, count in here.items()}
        placed |= solve([*movable, *stranded], there, {gang.id: placed[gang.id] for gang in movable})
    return placed


def left(room: Mapping[str, int], placed: Mapping[str, Places]) -> dict[str, int]:
    """What stays free."""
    taken = Counter[str]()
    for places in placed.values():
        taken.update(places)
    return {site: count - taken[site] for site, count in room.items()}


def _some(free: Mapping[str, int], number: int) -> list[str]:
    """Sites to be rearranged together: those with most free places, and each time others of the rest."""
    order = sorted(free, key=lambda site: (-free[site], site))
    rest = order[SITES // 2 :]
    start = number * SITES // 2 % max(1, len(rest))
    return [*order[: SITES // 2], *[*rest[start:], *rest[:start]][: SITES // 2]]


def best_fit(gangs: Sequence[Wanted], room: Mapping[str, int]) -> dict[str, Places]:
    """Each where its score is highest; of equal sites where the least stays free, then the first by name."""
    free, placed = dict(room), dict[str, Places]()
    for gang in gangs:
        size, spread, scores = gang.kind
        whole = [(-score, free[site], site) for site, score in scores if free[site] >= size]
        if whole:
            places = {min(whole)[2]: size}
        elif spread:
            places = _scattered(size, [(-score, -free[site], site) for site, score in scores], free)
        else:
            places = {}
        for site, count in places.items():
            free[site] -= count
        if places:
            placed[gang.id] = places
    return placed


def _scattered(size: int, sites: list[tuple[float, int, str]], free: Mapping[str, int]) -> Places:
    """Over as few sites as can be, of equal score; empty: there is no room."""
    places: Places = {}
    for *_, site in sorted(sites):
        count = min(free[site], size - sum(places.values()))
        if count > 0:
            places[site] = count
    return places if sum(places.values()) == size else {}


def solve(gangs: Sequence[Wanted], room: Mapping[str, int], kept: Mapping[str, Places]) -> dict[str, Places]:
    """Places for all of `kept` and for as many members of the others as can be. Empty: none was found in time."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    groups: dict[Kind, list[Wanted]] = {}
    for gang in gangs:
        groups.setdefault(gang.kind, []).append(gang)
    taken: dict[str, list[cp_model.LinearExprT]] = {site: [] for site in room}
    found: dict[Kind, dict[str, cp_model.IntVar]] = {}
    members: list[cp_model.LinearExprT] = []
    dislike: list[cp_model.LinearExprT] = []
    for kind, alike in groups.items():
        unit = 1 if kind.spread else kind.size  # places that one count stands for
        lying = Counter[str]()
        for gang in alike:
            lying.update(kept.get(gang.id, {}))
        total = model.new_int_var(sum(gang.id in kept for gang in alike), len(alike), "")
        at = found[kind] = {}
        order = sorted({score for _, score in kind.scores}, reverse=True)
        for site, score in kind.scores:
            if most := min(len(alike) * kind.size, room.get(site, 0)) // unit:
                at[site] = model.new_int_var(0, most, "")
                model.add_hint(at[site], lying[site] // unit)
                taken[site].append(at[site] * unit)
                dislike.append(at[site] * (unit * order.index(score)))
        model.add(cp_model.LinearExpr.sum(list(at.values())) * unit == total * kind.size)
        members.append(total * kind.size)
    for site, used in taken.items():
        if used:
            model.add(cp_model.LinearExpr.sum(used) <= room[site])
    weight = 1 + sum(room.values()) * max(len(kind.scores) for kind in groups)  # how many, before how well they like it
    model.maximize(cp_model.LinearExpr.sum(members) * weight - cp_model.LinearExpr.sum(dislike))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.max_deterministic_time = EFFORT
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return {}
    placed: dict[str, Places] = {}
    for kind, alike in groups.items():
        counts = {site: solver.value(here) for site, here in found[kind].items()}
        placed |= _shared_out(kind, alike, kept, counts)
    return placed


def _shared_out(
    kind: Kind, alike: Sequence[Wanted], kept: Mapping[str, Places], counts: Mapping[str, int]
) -> dict[str, Places]:
    """Which of the gangs of a kind get the places that it gets: those that are kept, then the first."""
    in_turn = sorted(alike, key=lambda gang: gang.id not in kept)
    unit = 1 if kind.spread else kind.size
    places = [site for site, count in sorted(counts.items()) for _ in range(count * unit)]
    rows = range(0, len(places), kind.size)
    return {gang.id: dict(Counter(places[row : row + kind.size])) for gang, row in zip(in_turn, rows, strict=False)}
