"""What sites and their nodes publish: the facts of the planner in the words of `requirements` and `rank`.

Rows for `matching`: of each site, and of each of its nodes that anybody has seen. Nodes are seen by the batch system's
own listing, by probes, which tell much, and by jobs that ran there, which tell what ran their guests. What is not known
is left out, never guessed; what a site says is free counts as far as it is believed (`credit`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from gridhypervisor.model.capacity import Capacity, NodeRow
from gridhypervisor.model.expressions.vocabulary import Nothing, Type
from gridhypervisor.model.records import Job, Site
from gridhypervisor.model.wire import HypervisorKind, NodeReport
from gridhypervisor.planning.matching import Catalogue, Place, Scalar
from gridhypervisor.planning.matching.columns import Column, column_of
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.world import SiteFacts

MIB = 20
"""Bits by which bytes are shifted to be MiB."""

NOTHING = SitePast()

NOW_AND_THEN = ("NodeState", "FreeCpus", "FreeMemory")
"""What of a node changes from hour to hour."""

Values = dict[str, Scalar]


def site_values(facts: SiteFacts, past: SitePast, now: float) -> Values:
    """A site's own, which its nodes' rows repeat."""
    values: Values = {
        "Up": facts.up,
        "Draining": facts.draining,
        "Health": _health(facts),
        "Jobs": facts.alive,
        "CachedImages": sum(past.layers.values()) >> MIB,
        "Failures": past.failed(now),
    }
    if facts.max_jobs:
        values |= {"MaxJobs": facts.max_jobs, "FreePlaces": max(0, facts.max_jobs - facts.alive)}
    if facts.max_walltime is not None:
        values["MaxWalltime"] = facts.max_walltime
    if (wait := past.wait) is not None:
        values |= {"QueueWait": predicted_wait(facts, past, wait), "QueueWaitMeasured": wait}
    if facts.capacity is not None:
        values |= _capacity(facts.capacity, facts.credit, now)
    if facts.site is not None:
        values |= _configured(facts.site)
    return values


def predicted_wait(facts: SiteFacts, past: SitePast, measured: float) -> float:
    """Seconds that a job submitted now would wait: as the luckiest of the latest, where cores are free and nobody waits
    for them; else as the one in the middle, as `measured`."""
    c = facts.capacity
    free = c is not None and c.waiting == 0 and int((c.free_cpus or 0) * facts.credit) > 0
    return min(past.waits) if free else measured


def _capacity(c: Capacity, credit: float, now: float) -> Values:
    """What the site's batch system says of it as a whole."""
    values: Values = {"Nodes": c.nodes, "FreeNodes": int(c.idle * credit)}
    if c.cpus is not None:
        values["SiteCpus"] = c.cpus
    if c.free_cpus is not None:
        values["SiteFreeCpus"] = int(c.free_cpus * credit)
    if c.waiting is not None:
        values["QueueLength"] = c.waiting
    if c.maintenance is not None:
        values["MaintenanceIn"] = int(c.maintenance - (now - c.as_of))
    return values


def listed_node(row: NodeRow, credit: float) -> Values:
    """What the batch system says of a node. Of one that takes no work only that: nobody gets what it has."""
    values: Values = {"NodeState": str(row.state)} if row.state is not None else {}
    if row.state is not None and not row.state.takes:
        return values
    if row.cpus is not None:
        values["Cpus"] = row.cpus
    if row.memory is not None:
        values["Memory"] = row.memory >> MIB
    return values | _free(row.free_cpus, row.free_memory, credit)


def _free(cpus: int | None, memory: int | None, credit: float) -> Values:
    return {
        **({"FreeCpus": int(cpus * credit)} if cpus is not None else {}),
        **({"FreeMemory": int(memory * credit) >> MIB} if memory is not None else {}),
    }


def _best_listed(c: Capacity, credit: float) -> Values:
    """The most that one of the nodes has."""
    able = [row for row in c.rows if row.state is None or row.state.takes]
    cpus = [row.cpus for row in able if row.cpus is not None]
    memory = [row.memory for row in able if row.memory is not None]
    free = [row.free_cpus for row in able if row.free_cpus is not None]
    room = [row.free_memory for row in able if row.free_memory is not None]
    return {
        **({"Cpus": max(cpus)} if cpus else {}),
        **({"Memory": max(memory) >> MIB} if memory else {}),
        **_free(max(free, default=None), max(room, default=None), credit),
    }


def _configured(site: Site) -> Values:
    queue = site.options.get("partition") or site.options.get("queue")
    return {
        "BatchSystem": str(site.kind),
        **({"Host": site.host} if site.host else {}),
        **({"Queue": queue} if queue else {}),
    }


def _health(facts: SiteFacts) -> str:
    if not facts.up:
        return "login" if facts.login else "silent"
    return "draining" if facts.draining else "busy" if facts.busy else "up"


def best_node(facts: SiteFacts, past: SitePast) -> Values:
    """What a site says of the best node that one job may get there: its limits, the node that was probed, what is free
    of those that are listed, and the best rates that were measured."""
    probed = facts.site.probed if facts.site is not None else None
    values = {**(node_values(probed) if probed is not None else {}), **_rates(best_rates(probed, past))}
    if facts.capacity is not None:
        listed = _best_listed(facts.capacity, facts.credit)
        fixed = values.keys() & {"Cpus", "Memory"}  # of the node of which all else is told
        values |= {name: value for name, value in listed.items() if name not in fixed}
    if facts.max_cpus is not None:
        values["Cpus"] = facts.max_cpus
    if facts.max_memory is not None:
        values["Memory"] = facts.max_memory >> MIB
    return values


def node_values(report: NodeReport) -> Values:
    """What a probe found. What was free then is no more than a hint now, and is told all the same."""
    return {
        "Cpus": report.cores,
        "Memory": report.memory >> MIB,
        "FreeMemory": report.memory_free >> MIB,
        "FreeDisk": report.scratch_free >> MIB,
        "OpSys": "Linux",
        **({"Arch": report.arch} if report.arch else {}),
        **({"CpuMHz": report.mhz} if report.mhz else {}),
        **({"Disk": report.scratch_size >> MIB} if report.scratch_size else {}),
        "Kernel": report.kernel,
        "CpuModel": report.processor,
        **_hypervisors({each.kind for each in report.hypervisors if each.works}),
        **_rates(_measured(report)),
    }


def _hypervisors(able: Collection[HypervisorKind]) -> Values:
    kinds = [kind for kind in HypervisorKind if kind in able]  # the fastest first
    return {"Hypervisors": tuple(str(kind) for kind in kinds), **({"Acceleration": str(kinds[0])} if kinds else {})}


def kinds(facts: SiteFacts, past: SitePast) -> set[HypervisorKind]:
    """What is known to run guests at a site: by its probe, and by what ran there."""
    found = {kind for each in past.nodes.values() for kind in each}
    if facts.site is not None and facts.site.probed is not None:
        found |= {each.kind for each in facts.site.probed.hypervisors if each.works}
    return found


def best_rates(probed: NodeReport | None, past: SitePast) -> dict[HypervisorKind, float]:
    """Of each hypervisor whose speed is known of any node of a site, the highest: of the node's own."""
    best: dict[HypervisorKind, float] = {}
    for rates in (_measured(probed) if probed is not None else {}, *past.rates.values()):
        for kind, rate in rates.items():
            best[kind] = max(rate, best.get(kind, 0.0))
    return best


def _measured(report: NodeReport) -> dict[HypervisorKind, float]:
    return {each.kind: each.rate for each in report.hypervisors if each.rate is not None}


def _rates(known: Mapping[HypervisorKind, float]) -> Values:
    """`KvmRate` and its like."""
    return {f"{kind.capitalize()}Rate": rate for kind, rate in known.items()}


class _Known(NamedTuple):
    """What a site's nodes are made of: the same while these are."""

    site: Site | None
    max_cpus: int | None
    max_memory: int | None
    past: SitePast
    news: int
    capacity: Capacity | None
    credit: float

    def same(self, other: _Known) -> bool:
        """Cheap: records are not looked into, only whether they are others."""
        return (
            self.site is other.site
            and self.past is other.past
            and self.capacity is other.capacity
            and self[1:3] == other[1:3]
            and (self.news, self.credit) == (other.news, other.credit)
        )


class Published:
    """The catalogue, kept up by what has changed since it was asked for last."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.sites: dict[str, Values] = {}
        """What each site publishes of itself, and repeats of its nodes."""
        self.nodes: dict[str, dict[str, Values]] = {}
        """By site what is its nodes' own; under "" of the best node that one job may get there."""
        self.version = 0
        """Of `nodes`: grows with each change."""
        self._known: dict[str, _Known] = {}

    def update(self, sites: Mapping[str, SiteFacts], past: Mapping[str, SitePast], now: float) -> Catalogue:
        """Take in what is known now. The catalogue is good until the next call."""
        for gone in self.sites.keys() - sites.keys():
            self.catalogue.remove_site(gone)
            self.version += 1
            del self.sites[gone], self.nodes[gone], self._known[gone]
        for name, facts in sites.items():
            self._site(name, facts, past.get(name, NOTHING), now)
        return self.catalogue

    def _site(self, name: str, facts: SiteFacts, past: SitePast, now: float) -> None:
        values = site_values(facts, past, now)
        before, standing = self.sites.get(name), self.nodes.get(name)
        limits = facts.max_cpus, facts.max_memory
        known = _Known(facts.site, *limits, past, past.news, facts.capacity, facts.credit)
        if standing is not None and known.same(self._known[name]):
            nodes = standing
        else:
            nodes = {"": best_node(facts, past), **_nodes(facts, past)}
        self._known[name] = known
        changed = _differences(before, values) if before is not None else None
        if changed:
            self.catalogue.patch(name, changed)  # all of its rows
        self.sites[name] = values
        if nodes is standing and changed is not None:
            return
        for gone in (standing or {}).keys() - nodes.keys():
            self.catalogue.remove(Place(name, gone))
        for node, own in nodes.items():
            if changed is None or standing is None or standing.get(node) != own:
                self.catalogue.set(Place(name, node), {**values, **own})
        self.version += 0 if nodes == standing else 1
        self.nodes[name] = nodes


def _differences(before: Values, after: Values) -> Values | None:
    """What has another value; None: something has none any more, which cannot be patched."""
    if before.keys() - after.keys():
        return None
    return {name: value for name, value in after.items() if before.get(name) != value or name not in before}


def _nodes(facts: SiteFacts, past: SitePast) -> dict[str, Values]:
    """The nodes that anybody has seen."""
    listed = facts.capacity.rows if facts.capacity is not None else ()
    nodes = {row.name: listed_node(row, facts.credit) for row in listed}
    closed = {row.name for row in listed if row.state is not None and not row.state.takes}
    # A node may call itself by its whole name, and its batch system by the first part of it, or the other way round.
    short: dict[str, str] = {}
    for name in nodes:
        short[name.partition(".")[0]] = name if name.partition(".")[0] not in short else ""

    def known_as(name: str) -> str:
        return name if name in nodes else short.get(name.partition(".")[0]) or name

    seen = {name: _hypervisors(kinds) | _rates(past.rates.get(name, {})) for name, kinds in past.nodes.items()}
    probed = facts.site.probed if facts.site is not None else None
    if probed is not None:
        seen[probed.node] = {**_rates(past.rates.get(probed.node, {})), **node_values(probed)}
    names = {name: known_as(name) for name in seen}
    for name, own in seen.items():
        if names[name] not in closed:
            said = nodes.get(names[name], {})
            # How large it is, a job has seen; how it is now, the batch system knows.
            nodes[names[name]] = {**said, **own, **{key: said[key] for key in NOW_AND_THEN if key in said}}
    return nodes


def own_values(
    job: Job, catalogue: Catalogue, past: Mapping[str, SitePast], ready: Mapping[str, float]
) -> dict[str, Column]:
    """A job's own attributes at all places: what of its image is at the site already, and how soon its guest would be
    `ready` there, in seconds by site."""
    sizes = {layer.digest: layer.size for layer in job.image.layers}
    missing: dict[str, int] = {}
    for place in catalogue:
        if place.site not in missing:
            there = past.get(place.site, NOTHING).layers
            missing[place.site] = sum(size for digest, size in sizes.items() if digest not in there)
    each = [missing[place.site] for place in catalogue]
    return {
        "ImageCached": column_of(Type.BOOL, [not bytes_ for bytes_ in each]),
        "ImageMissing": column_of(Type.INT, [-(-bytes_ >> MIB) for bytes_ in each]),
        "ReadyTime": column_of(Type.REAL, [ready.get(place.site, Nothing.UNDEFINED) for place in catalogue]),
    }
