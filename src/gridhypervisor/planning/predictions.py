"""How long operations on guests take, learnt of those that were done: pure.

Of each kind of operation, at each site and under each hypervisor:

    seconds = load · (fixed + per_byte · bytes)

where `load` is how many tasks wanted each processor of the node just before: what shares a processor takes as many
times longer. It is known when an operation begins; before that, what it was lately at that site is counted on.

`fit` finds the two numbers that err least in proportion, Σ w·((predicted − real) / real)²: least squares percentage
regression (C. Tofallis, J. Modern Applied Statistical Methods 7, 2008), as errors are judged. Three things are added:

- the newest count most, w = 2^(−age / HALF), age in operations: discounted least squares (R. G. Brown, Smoothing,
  Forecasting and Prediction of Discrete Time Series, 1963). So today's file server is in it;
- one that is far off counts the less: in proportion to whichever is more, predicted or real, and by Huber's weights,
  min(1, 1.345·σ / |error|), σ = 1.4826 · the median |error| (P. J. Huber, Annals of Mathematical Statistics 35, 1964),
  reweighting a few times from what is usual;
- little is known at first. So what holds in general pulls with the weight of `PULL` operations, in proportion to how
  fast the site has been: what was seen at one size speaks of others too. A site's own is pulled by what holds at all
  sites, that by what is usual (`USUAL`), and what is known of an image at the site by the site's own.

Neither number is ever negative. `spread` is how far the logarithm of real / predicted lies from 0, taken as normal:
from it come the quantiles.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from gridhypervisor.model.prediction import GUEST, Expected, Rate, named
from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import parse_size
from gridhypervisor.model.wire import CAPABILITIES, HypervisorKind, Needs, OperationKind, Timing

K, H = OperationKind, HypervisorKind

HALF = 8.0
"""Operations after which one counts half."""

SMOOTH = 0.2
"""Part of a site's load that is what the newest operation met."""

LATEST = 32
"""Operations of one sort that are remembered."""

PULL = 0.5
"""Operations that what holds in general counts as."""

TURNS = 3
"""Times that the weights of what is far off are found anew."""

FAR = 256 << 20
"""Bytes, at least, of what is much."""

LEAST_ERROR = 0.03
"""An error (a part of 1) below which nothing is far off: so much varies anyway."""

DOUBT = 0.5
"""Spread of what nobody has seen yet: two of three within a factor of 1.65. It counts as one operation."""

AT_ONCE = 16
"""Operations of one sort after which what holds at all sites is worked out anew: all sites' predictions rest on it."""

SHORTEST = 0.001
"""Seconds that an operation takes at least: of what is shorter nothing is learnt."""

MB = 1e6
USUAL: dict[str, Rate] = {
    named(K.UPLOAD, None): Rate(0.1, 1 / (50 * MB)),
    named(K.PREPARE, None): Rate(0.5, 1 / (100 * MB)),
    named(K.COPY, None): Rate(0.02, 1 / (400 * MB)),
    named(K.BOOT, H.KVM): Rate(1.0, 0.0),
    named(K.BOOT, H.UML): Rate(0.8, 0.0),
    named(K.BOOT, H.TCG): Rate(3.0, 1 / (1000 * MB)),
    named(K.RESTORE, H.KVM): Rate(0.3, 1 / (1000 * MB)),
    named(K.RESTORE, H.UML): Rate(0.3, 1 / (1000 * MB)),
    named(K.RESTORE, H.TCG): Rate(0.5, 1 / (500 * MB)),
    **{named(K.SAVE, kind): Rate(0.3, 1 / (150 * MB)) for kind in H},
    **{named(K.RESUME, kind): Rate(0.5, 1 / (200 * MB)) for kind in H},
}
"""Where nobody has seen it yet: docs/measurements.md, on two cores."""


class Sample(NamedTuple):
    size: int
    seconds: float


def fit(samples: Sequence[Sample], general: Rate) -> Rate:
    """What is learnt of operations, oldest first, where `general` holds in general."""
    if not samples:
        return Rate(general.fixed, general.per_byte, 0, max(DOUBT, general.spread))
    weights = [2.0 ** (-age / HALF) for age in range(len(samples) - 1, -1, -1)]
    ratios = [s.seconds / max(general.seconds(s.size), SHORTEST) for s in samples]
    level = _middle([*ratios, 1.0], [*weights, PULL])
    # What is usual, at the site's speed, with nothing and with much: so a size that nobody saw is not a wild guess.
    far = max(2 * max(s.size for s in samples), FAR)
    usual = [Sample(size, level * general.seconds(size) or SHORTEST) for size in (0, far)]
    fixed, per_byte = level * general.fixed, level * general.per_byte
    for _ in range(TURNS):
        whole = [max(fixed + per_byte * s.size, s.seconds) for s in samples]
        errors = [abs(fixed + per_byte * s.size - s.seconds) / w for s, w in zip(samples, whole, strict=True)]
        bound = 1.345 * max(LEAST_ERROR, 1.4826 * _middle(errors, weights))
        pulls = [w * min(1.0, bound / error) if error else w for w, error in zip(weights, errors, strict=True)]
        pulls = [p * (s.seconds / w) ** 2 for p, s, w in zip(pulls, samples, whole, strict=True)]
        fixed, per_byte = _least([*samples, *usual], [*pulls, PULL / 2, PULL / 2], far)
    squares = [math.log(max(fixed + per_byte * s.size, SHORTEST) / s.seconds) ** 2 for s in samples]
    spread = math.sqrt((sum(w * q for w, q in zip(weights, squares, strict=True)) + DOUBT**2) / (sum(weights) + 1))
    return Rate(fixed, per_byte, len(samples), spread)


def _least(points: Sequence[Sample], weights: Sequence[float], scale: float) -> tuple[float, float]:
    """The a, b ≥ 0 of which Σ w·((a + b·size) / seconds − 1)² is least."""
    xx = xy = yy = x = y = 0.0
    for (size, seconds), w in zip(points, weights, strict=True):
        u, v = 1 / seconds, size / scale / seconds
        xx, xy, yy, x, y = xx + w * u * u, xy + w * u * v, yy + w * v * v, x + w * u, y + w * v
    found = xx * yy - xy * xy
    if found > 1e-9 * xx * yy:
        a, b = (x * yy - y * xy) / found, (y * xx - x * xy) / found
        if a >= 0 and b >= 0:
            return a, b / scale
    # The least is where one of them is 0: there the sum is Σw − x²/xx, or Σw − y²/yy.
    return (x / xx, 0.0) if yy == 0 or x * x * yy >= y * y * xx else (0.0, y / yy / scale)


def _middle(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted median."""
    half, below = sum(weights) / 2, 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        below += weight
        if below >= half:
            return value
    return max(values)


class Predictions:
    """All that was learnt, as it grows. The same operations in the same order give the same predictions."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[tuple[str, str], deque[Sample]]] = {}  # by sort of operation; by site and image
        self._count: Counter[str] = Counter()  # operations of each sort
        self._everywhere: dict[str, tuple[Sample, ...]] = {}  # the newest of each sort, as they were a while ago
        self._fits: dict[str, dict[tuple[str, str], Rate]] = {}
        self._loads: dict[str, float] = {}  # by site

    def add(
        self,
        site: str,
        hypervisor: HypervisorKind | None,
        image: str,
        timings: Iterable[Timing],
        *,
        instant: bool = False,
    ) -> None:
        """What was done there for a guest of that image, that began from a snapshot or left one if
        `instant`; later ones come later."""
        for timing in timings:
            if timing.seconds < SHORTEST or timing.bytes < 0 or (timing.kind in GUEST and hypervisor is None):
                continue
            load = max(1.0, timing.load)
            if timing.kind is not K.UPLOAD:
                self._loads[site] = self.load(site) + (load - self.load(site)) * SMOOTH
            sort = named(timing.kind, hypervisor)
            seen, fits = self._seen.setdefault(sort, {}), self._fits.setdefault(sort, {})
            own = saved_as(image, instant=instant) if timing.kind is K.SAVE else image
            for key in {("", ""), (site, ""), (site, own)}:
                seen.setdefault(key, deque(maxlen=LATEST)).append(Sample(timing.bytes, timing.seconds / load))
            self._count[sort] = count = self._count[sort] + 1
            if count % AT_ONCE == 0 or count in (1, 2, 4, 8):
                self._everywhere[sort] = tuple(seen["", ""])
                fits.clear()
            for key in [key for key in fits if key[0] == site]:
                del fits[key]

    def rate(self, kind: OperationKind, site: str, hypervisor: HypervisorKind | None = None, image: str = "") -> Rate:
        """How long it takes there; `image`: the digest of the guest's, where that is known."""
        return self._rate(named(kind, hypervisor), site, image)

    def load(self, site: str) -> float:
        """What it was lately on its nodes; 1 where nobody has been."""
        return self._loads.get(site, 1.0)

    def predict(
        self,
        kind: OperationKind,
        site: str,
        hypervisor: HypervisorKind | None,
        size: int,
        quantile: float = 0.5,
        image: str = "",
        load: float | None = None,
    ) -> float:
        """Seconds that such an operation with `size` bytes takes at most, in a part `quantile` (0 to 1) of all cases.

        `hypervisor` None: of a copy, which has none. `load`: of the node, where it is known; None: as it was lately.
        """
        rate = self.rate(kind, site, hypervisor, image)
        busy = 1.0 if kind is K.UPLOAD else self.load(site) if load is None else load
        return busy * rate.seconds(size) * math.exp(NormalDist().inv_cdf(quantile) * rate.spread)

    def last(self, kind: OperationKind, site: str, hypervisor: HypervisorKind, image: str) -> int | None:
        """Bytes of the newest operation of that kind with a guest of that image; None: there was none."""
        seen = self._seen.get(named(kind, hypervisor), {}).get((site, image))
        return seen[-1].size if seen else None

    def _rate(self, sort: str, site: str, image: str) -> Rate:
        fits = self._fits.setdefault(sort, {})
        found = fits.get((site, image))
        if found is None:
            seen = self._seen.get(sort, {}).get((site, image), ())
            if image:
                general = self._rate(sort, site, "")
                found = fit(tuple(seen), general) if seen else general
            elif site:
                found = fit(tuple(seen), self._rate(sort, "", ""))
            else:
                found = fit(self._everywhere.get(sort, ()), USUAL[sort])
            fits[site, image] = found
        return found


def saved_as(image: str, *, instant: bool) -> str:
    """What saves of such guests are known by: where a guest begins from a snapshot, or leaves one, its memory is that
    of a file, and its first save takes half as long again."""
    return f"{image}, instant" if instant else image


def expected(
    job: Job, site: str, layers: Iterable[str], able: Iterable[HypervisorKind], known: Predictions
) -> Expected:
    """What is predicted of an attempt of the job at a site whose cache has these `layers` (digests).

    `able`: what is known to run guests there; the fastest that suits the job is taken to run this one. It is taken to
    start from a snapshot where its image has done so before, and to find on its node what its site has.
    """
    there, image = frozenset(layers), job.image_digest
    missing = sum(layer.size for layer in job.image.layers if layer.digest not in there)
    spec, memory = job.spec, parse_size(job.spec.resources.memory)
    needs = Needs(cpus=spec.resources.cpus, network=spec.network).with_image(job.image.layers)
    suit = [kind for kind in H if spec.hypervisor in ("auto", kind) and not needs.unmet(kind)]
    may = [kind for kind in suit if kind in frozenset(able)] or suit  # the fastest first
    savers = [kind for kind in may if CAPABILITIES[kind].snapshots]
    rates: dict[str, tuple[float, float]] = {}
    for kind in K:
        for hypervisor in (None,) if kind not in GUEST else may if kind is K.BOOT else savers:
            own = saved_as(image, instant=kind is K.SAVE and spec.instant != "never") if kind in GUEST else ""
            rate = known.rate(kind, site, hypervisor, own)
            rates[named(kind, hypervisor)] = float(f"{rate.fixed:.4g}"), float(f"{rate.per_byte:.4g}")

    load = known.load(site)

    def seconds(kind: OperationKind, size: int, hypervisor: HypervisorKind | None = None) -> float:
        fixed, per_byte = rates[named(kind, hypervisor)]
        return (fixed + per_byte * size) * (1.0 if kind is K.UPLOAD else load)

    ready = seconds(K.UPLOAD, missing) + seconds(K.PREPARE, 0) + (seconds(K.COPY, missing) if missing else 0.0)
    if may:
        likely = may[0]
        held = known.last(K.RESTORE, site, likely, image) if spec.instant != "never" else None
        ready += seconds(K.RESTORE, held, likely) if held is not None else seconds(K.BOOT, memory, likely)
    return Expected(missing, ready, rates)
