"""Gangs for nearly full sites: 100 sites whose free places they fill to 96 to 100 percent, as they would fit exactly.

They come in any order, and best fit, in that order, strands some: there is room for them, but not at one site. What
CP-SAT then places is given as the part of all members, with the time of the whole of it.
"""

from __future__ import annotations

import time
from random import Random

from benchmarks.report import Report, figure
from gridhypervisor.planning.packing import Kind, Wanted, best_fit, pack

SITES, LEAST, MOST, RUNS = 100, 24, 96, 15
SIZES = (8, 12, 16, 20, 24, 32)


def fitting(random: Random, full: float) -> tuple[list[Wanted], dict[str, int]]:
    """Gangs that fit into the sites, in any order, and the sites' free places; `full`: the part of these they take."""
    room, sizes = dict[str, int](), list[int]()
    likes = tuple((f"s{number:03}", 1.0) for number in range(SITES))
    for site, _ in likes:
        taken = random.randrange(LEAST, MOST + 1, 4)
        room[site] = round(taken / full)
        while taken:
            fits = [size for size in SIZES if size == taken or size <= taken - SIZES[0]]
            sizes.append(random.choice(fits))
            taken -= sizes[-1]
    random.shuffle(sizes)
    return [Wanted(f"g{number}", Kind(size, False, likes)) for number, size in enumerate(sizes)], room


def measure(runs: int | None = None) -> Report:
    pack(*fitting(Random(0), 1.0))  # CP-SAT is imported here, once in a service's life
    figures = []
    for full in (0.96, 0.98, 1.0):
        stranded, placed, seconds = [], [], []
        for run in range(runs or RUNS):
            gangs, room = fitting(Random(run), full)
            simple = best_fit(gangs, room)
            begun = time.perf_counter()
            found = pack(gangs, room)
            seconds.append(time.perf_counter() - begun)
            members = sum(gang.kind.size for gang in gangs)
            stranded.append(float(sum(gang.kind.size for gang in gangs if gang.id not in simple)))
            placed.append(100 * sum(gang.kind.size for gang in gangs if gang.id in found) / members)
        words = f"at {full:.0%} full"
        figures.append(figure(f"{words}: members that best fit strands", "VMs", stranded, "what CP-SAT is for"))
        figures.append(figure(f"{words}: members that are placed", "%", placed, "100"))
        figures.append(figure(f"{words}: time, best fit and CP-SAT", "s", seconds, "under 1 s"))
    return Report(f"Gangs: some {SITES * (LEAST + MOST) // 2:,} places at {SITES} sites", tuple(figures))
