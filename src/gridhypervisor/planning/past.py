"""What is remembered of the attempts that are over: who used how much, how each site served whom, and what is there.

An attempt becomes a `Tenure` when it is over; `Past` folds tenures, one after another, into what `policies.usage` and
`published` ask for. The same tenures in the same order give the same past: after a restart it is folded again from the
store, and so it is when the policy changes, which says how long anything is remembered. Nothing is decided here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import TypeVar

from gridhypervisor.model.commit import JobRecords
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.records import Allocation, AllocationState, Job
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.wire import (
    MOVES,
    RETRYABLE,
    Checkpoint,
    HypervisorKind,
    Layer,
    OperationKind,
    Outcome,
    Reason,
    Timing,
)
from gridhypervisor.planning.policies.usage import Ban, Record, Usage, Windows, banned, charge
from gridhypervisor.planning.predictions import Predictions

T = TypeVar("T")

DAY = 86_400.0

LATEST = 20
"""Waits in a site's queue of which the one in the middle is told."""

MOST_SAVES = 100
"""Guests that were saved at one site of which it is remembered how fast."""

MOST_ATTEMPTS = 500
"""Attempts of one user at one site that are remembered."""

MOST_NODES = 20_000
"""Nodes of one site that are remembered: those that were used last."""

MOST_LAYERS = 2_000
"""Layers of images in one account's cache that are remembered: those that were used last."""

SETTLING = frozenset({AllocationState.COLLECTED, AllocationState.REVOKED, AllocationState.FENCED})
"""An attempt comes to one of these states, and only once: then everything is known of it."""

SETTLED = SETTLING | {AllocationState.CLEANED}

NOBODYS = frozenset({Reason.LENDER, Reason.BUSY})
"""Why a site did not take an attempt, though nothing is wrong with it."""


SITES = frozenset({Reason.WAITED, Reason.SLOW})
"""Why an attempt left a site that is to blame for it, though nothing failed there."""


@dataclass(frozen=True)
class Tenure:
    """What one attempt says for the future. Times in seconds since the epoch, on the controller's clock."""

    owner: str
    project: str
    site: str
    ended: float
    seconds: float  # from dispatch to results
    core_seconds: float  # that it had of the site
    well: bool | None  # True: it did what it was to; False: site or node failed it; None: neither
    waited: float | None = None  # seconds from its submission until its pilot was seen to run, or its patience ended
    node: str = ""
    hypervisor: HypervisorKind | None = None
    rates: Mapping[HypervisorKind, float] = field(default_factory=dict)  # of its node's, as measured
    layers: tuple[Layer, ...] = ()  # of its image, which are at the site since
    save_rate: float | None = None  # bytes a second at which its guest was saved at its end, if it was
    image: str = ""  # its digest
    instant: bool = False  # its guest began from a snapshot, or left one
    timings: tuple[Timing, ...] = ()  # of what was done for it


def tenure(job: Job, a: Allocation) -> Tenure:
    """Of an attempt in one of the states of `SETTLED`."""
    t = a.times
    ended = t.ended if t.ended is not None else t.collected if t.collected is not None else t.since
    reason = a.exit.reason if a.exit is not None and a.why not in MOVES else a.why
    well: bool | None = None
    if a.exit is not None and a.exit.outcome is Outcome.COMPLETED:
        well = True
    elif reason in SITES or (reason in RETRYABLE and reason not in NOBODYS):
        well = False
    waited = t.running if t.running is not None else ended if a.why is Reason.WAITED else None
    used = a.exit.hypervisor if a.exit is not None else None
    return Tenure(
        owner=a.owner,
        project=a.project,
        site=a.site,
        ended=ended,
        seconds=ended - t.planned,
        core_seconds=(ended - t.running) * job.spec.resources.cpus if t.running is not None else 0.0,
        well=well,
        waited=waited - t.submitting if waited is not None and t.submitting is not None else None,
        node=a.exit.node if a.exit is not None else "",
        hypervisor=used.kind if used is not None else None,
        rates={kind: used.rates[kind] for kind in HypervisorKind if kind in used.rates} if used is not None else {},
        layers=job.image.layers if t.submitting is not None else (),
        save_rate=_save_rate(a.exit.checkpoint if a.exit is not None else None),
        image=job.image_digest,
        instant=used is not None and bool(used.snapshot),
        timings=timings(a),
    )


def _save_rate(saved: Checkpoint | None) -> float | None:
    seconds = sum(saved.took.values()) if saved is not None else 0.0
    return saved.guest / seconds if saved is not None and saved.guest and seconds else None


def timings(a: Allocation) -> tuple[Timing, ...]:
    """How long what was done for an attempt took: its pilot's word, and how long it took to bring everything to the
    site, with as many bytes as the site was believed to lack and the inputs have."""
    done = a.exit.timings if a.exit is not None else ()
    t, there = a.times, a.expected
    if t.submitting is None or there is None:
        return done
    inputs = sum(each.bytes for each in done if each.kind is OperationKind.PREPARE)
    return (Timing(OperationKind.UPLOAD, there.missing + inputs, t.submitting - t.planned), *done)


def tenures(found: Iterable[JobRecords]) -> list[Tenure]:
    """Of all attempts of these jobs that are over, in the order in which they ended; not of probes."""
    each = (tenure(r.job, a) for r in found if not r.job.probe for a in r.allocations if a.state in SETTLED)
    return sorted(each, key=lambda t: t.ended)


def memory_of(policy: SchedulingPolicy) -> float:
    """Seconds for which tenures matter under a policy."""
    share, usage, failure = policy.jobs.share, policy.resources.usage, policy.resources.failure
    ban = parse_duration(failure.ban) + parse_duration(failure.growth)  # it is as long as the failures go back
    return max(DAY, parse_duration(share.window) * share.windows, parse_duration(usage.history), ban)


@dataclass
class SitePast:
    """How a site has served all users."""

    waits: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_ATTEMPTS))  # when
    saves: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_SAVES))  # bytes a second
    nodes: dict[str, frozenset[HypervisorKind]] = field(default_factory=dict)  # what has run guests on each
    rates: dict[str, dict[HypervisorKind, float]] = field(default_factory=dict)  # of their speed, what guests get
    layers: dict[str, int] = field(default_factory=dict)  # in the account's cache, as far as we know: digest → bytes
    news: int = 0  # how often something was learnt of a node

    @property
    def wait(self) -> float | None:
        """Seconds that the latest jobs waited in the queue, in the middle; None: there was none."""
        return median(self.waits) if self.waits else None

    def failed(self, now: float) -> int:
        """How often it has failed in the past day."""
        return sum(at > now - DAY for at in self.failures)


@dataclass(frozen=True)
class _Attempt:
    ended: float
    seconds: float
    well: bool


class Past:
    """All that is remembered, as it grows."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        share, resources = policy.jobs.share, policy.resources
        self._window, self._windows = parse_duration(share.window), share.windows
        self._ban, self._growth = parse_duration(resources.failure.ban), parse_duration(resources.failure.growth)
        self._history = parse_duration(resources.usage.history)
        self._counts = resources.usage.weight > 0 or resources.failure.weight > 0
        self._users: dict[str, Windows] = {}
        self._projects: dict[str, Windows] = {}
        self._bans: dict[str, dict[str, Ban]] = {}
        self._attempts: dict[tuple[str, str], deque[_Attempt]] = {}  # by owner and site
        self._expiring: list[tuple[float, tuple[str, str]]] = []  # a heap: for each when its oldest ended, or before
        self._stale: set[tuple[str, str]] = set()  # whose records are to be made anew
        self._records: dict[str, dict[str, Record]] = {}
        self.sites: dict[str, SitePast] = {}
        self.predictions = Predictions()

    def add(self, t: Tenure) -> bool:
        """One more is over. Later ones come later. Whether a ban is lifted by it."""
        for kept, name in ((self._users, t.owner), (self._projects, t.project)):
            if t.core_seconds > 0:
                kept[name] = charge(kept.get(name, Windows()), t.ended, t.core_seconds, self._window, self._windows)
        site = self.sites.setdefault(t.site, SitePast())
        if t.waited is not None:
            site.waits.append(t.waited)
        if t.node and t.hypervisor is not None:
            ran = site.nodes.pop(t.node, frozenset())
            site.nodes[t.node] = ran | {t.hypervisor}
            rates = site.rates.pop(t.node, {})
            site.rates[t.node] = {**rates, **t.rates}
            if t.hypervisor not in ran or site.rates[t.node] != rates:
                site.news += 1
                _forget(site.nodes, MOST_NODES)
                _forget(site.rates, MOST_NODES)
        if t.save_rate is not None:
            site.saves.append(t.save_rate)
        for layer in t.layers:
            site.layers.pop(layer.digest, None)
            site.layers[layer.digest] = layer.size
        _forget(site.layers, MOST_LAYERS)
        self.predictions.add(t.site, t.hypervisor, t.image, t.timings, instant=t.instant)
        if t.well is None:
            return False
        if self._counts:  # else nobody asks
            key = t.owner, t.site
            attempts = self._attempts.setdefault(key, deque(maxlen=MOST_ATTEMPTS))
            if not attempts:
                heapq.heappush(self._expiring, (t.ended, key))
            attempts.append(_Attempt(t.ended, t.seconds, t.well))
            self._stale.add(key)
        bans = self._bans.setdefault(t.owner, {})
        if t.well:
            return bans.pop(t.site, None) is not None
        site.failures.append(t.ended)
        if self._ban > 0:
            bans[t.site] = banned(bans.get(t.site), t.ended, self._ban, self._growth)
        return False

    def usage(
        self,
        now: float,
        users: Mapping[str, int] | None = None,
        projects: Mapping[str, int] | None = None,
        sites: Mapping[str, int] | None = None,
    ) -> Usage:
        """What a cycle needs to know; the other arguments: jobs that have a place, by user, by project, by site.

        Good until the next `add`.
        """
        self._renew(now - self._history)
        counts = users or {}, projects or {}, sites or {}
        return Usage(self._users, self._projects, self._records, self._bans, *counts)

    def _renew(self, horizon: float) -> None:
        """Bring the records up to date, where something is new, or too long ago now."""
        while self._expiring and self._expiring[0][0] <= horizon:
            key = heapq.heappop(self._expiring)[1]
            attempts = self._attempts[key]
            while attempts and attempts[0].ended <= horizon:
                attempts.popleft()
            if attempts:
                heapq.heappush(self._expiring, (attempts[0].ended, key))
            self._stale.add(key)
        for owner, site in self._stale:
            if attempts := self._attempts[owner, site]:
                self._records.setdefault(owner, {})[site] = _record(attempts)
            else:
                self._records.get(owner, {}).pop(site, None)
        self._stale.clear()


def _forget(known: dict[str, T], most: int) -> None:
    """Leave the newest, so many."""
    for name in list(islice(known, max(0, len(known) - most))):
        del known[name]


def _record(attempts: Iterable[_Attempt]) -> Record:
    found = list(attempts)
    times = [each.seconds for each in found if each.well]
    mean = sum(times) / len(times) if times else None
    return Record(len(times), len(found) - len(times), mean, times[-1] if times else None)
