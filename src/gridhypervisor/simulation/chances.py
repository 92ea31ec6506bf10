"""What befalls a simulated site at random: other people's jobs, waits, nodes that die, outages, lost submissions.

Each kind has random numbers of its own, so that the same befalls the same site whatever the controller does, and two
policies meet the same world. (What a submission meets is drawn as submissions come.)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from random import Random

from gridhypervisor.model.simulation import FaultsSpec, RecurringSpec, SimulatedSiteSpec
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.simulation.batch import Rules
from gridhypervisor.simulation.dialect import Dialect
from gridhypervisor.simulation.pilot import Tempo
from gridhypervisor.simulation.site import Census, SimulatedSite

REMEMBERED = 30
"""Of the interval between listings: so long the batch system remembers jobs that ended, so that none is missed."""


def make_site(
    name: str, spec: SimulatedSiteSpec, seed: int, loop: asyncio.AbstractEventLoop, census: Census
) -> SimulatedSite:
    """The site, and all that is to befall it."""
    listing = float(parse_duration(spec.listing))
    site = SimulatedSite(
        name,
        loop,
        nodes=spec.nodes,
        slots=spec.cores,
        census=census,
        tempo=Tempo(boot=parse_duration(spec.boot), talks=False),
        memory=REMEMBERED * listing,
        rules=Rules(by_cpus=True, backfill=spec.backfill),
    )
    site.driver = Dialect(listing_interval=listing, max_cpus=spec.cores)

    def random(kind: str) -> Random:
        return Random(f"{seed} {name} {kind}")

    if wait := parse_duration(spec.wait):
        draw, middle = random("wait"), math.log(wait)
        site.batch.weather.wait = lambda: draw.lognormvariate(middle, spec.spread)
    if spec.others is not None and spec.others.share:
        _others(site, spec, random("others"), loop)
    faults = spec.faults
    if faults.lost or faults.mute or faults.refused:
        site.batch.weather.chance = _fates(faults, random("submissions"))
    if faults.nodes is not None:
        _nodes(site, faults.nodes, random("nodes"), loop)
    if faults.outages is not None:
        lasts = parse_duration(faults.outages.lasts)
        rate = 1 / parse_duration(faults.outages.every)
        _again_and_again(lambda: site.way.cut(lasts), rate, random("outages"), loop)
    return site


def _again_and_again(act: Callable[[], None], rate: float, random: Random, loop: asyncio.AbstractEventLoop) -> None:
    """A Poisson process of so many a second."""

    def happen() -> None:
        act()
        loop.call_later(random.expovariate(rate), happen)

    loop.call_later(random.expovariate(rate), happen)


def _others(site: SimulatedSite, spec: SimulatedSiteSpec, random: Random, loop: asyncio.AbstractEventLoop) -> None:
    """From the first moment on there are as many as there are on the mean."""
    assert spec.others is not None
    cpus, mean = spec.others.cpus, parse_duration(spec.others.run)
    present = spec.others.share * spec.nodes * spec.cores / cpus

    def come() -> None:
        seconds = random.expovariate(1 / mean)
        site.batch.occupy(cpus, 2 * seconds, seconds)

    for _ in range(round(present)):
        come()
    _again_and_again(come, present / mean, random, loop)


def _nodes(site: SimulatedSite, faults: RecurringSpec, random: Random, loop: asyncio.AbstractEventLoop) -> None:
    lasts = parse_duration(faults.lasts)

    def die() -> None:
        node = random.choice(site.batch.nodes)
        if not node.lost:
            site.batch.lose_node(node, alive=False)
            loop.call_later(lasts, site.batch.mend, node)

    _again_and_again(die, len(site.batch.nodes) / parse_duration(faults.every), random, loop)


def _fates(faults: FaultsSpec, random: Random) -> Callable[[], str]:
    def draw() -> str:
        chance = random.random()
        for fate, share in (("lost", faults.lost), ("mute", faults.mute), ("refused", faults.refused)):
            if chance < share:
                return fate
            chance -= share
        return ""

    return draw
