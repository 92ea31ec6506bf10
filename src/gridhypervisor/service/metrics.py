"""What is measured of the service, in the words of Prometheus. Each scrape is made anew: nothing is kept here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gridhypervisor.model.measures import BOUNDS, Measures, Times
from gridhypervisor.model.states import JobState, SiteHealth

K = TypeVar("K", bound=tuple[str, ...])

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(measures: Measures, requests: dict[tuple[str, str], int]) -> bytes:
    """The text of a scrape. `requests`: that were answered, by method and by the first digit of the status."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(measures, requests))
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, measures: Measures, requests: dict[tuple[str, str], int]) -> None:
        self._measures, self._requests = measures, requests

    def collect(self) -> Iterator[Metric]:
        found = self._measures
        yield _gauges("ghv_jobs", "Jobs that are alive.", ["state"], {
            (str(state),): found.jobs.get(str(state), 0) for state in JobState if not state.final
        })  # fmt: skip
        yield GaugeMetricFamily("ghv_groups", "Arrays, gangs and workflows that are alive.", found.groups)
        yield GaugeMetricFamily("ghv_jobs_seeking", "Jobs that wait for a site.", found.seeking)
        yield _counters("ghv_actions", "Actions at sites that have ended.", ["kind", "result"], found.actions)
        calls = {(name,): count for name, count in found.calls.items()}
        yield _counters("ghv_store_calls", "Calls of the store; commit: transactions of the loop.", ["call"], calls)
        yield _histogram("ghv_store_seconds", "How long calls of the store took.", found.store)
        yield _histogram("ghv_pass_seconds", "How long passes of the loop took.", found.passes)
        yield _histogram("ghv_loop_lag_seconds", "How late the event loop was.", found.lag)
        yield from _sites(found)
        yield _counters("ghv_requests", "Requests that were answered.", ["method", "status"], self._requests)
        yield GaugeMetricFamily("process_start_time_seconds", "When the service began.", found.started)
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of the service.", found.cpu_seconds)
        yield GaugeMetricFamily("process_resident_memory_max_bytes", "Most memory so far.", found.resident)


def _sites(found: Measures) -> Iterator[Metric]:
    health = {(s.name, str(each)): int(s.health is each) for s in found.sites for each in SiteHealth}
    yield _gauges("ghv_site_health", "1 for the health that a site is of.", ["site", "health"], health)
    places = {(s.name, state): count for s in found.sites for state, count in
              (("queued", s.queued), ("running", s.running))}  # fmt: skip
    yield _gauges("ghv_site_places", "Places that jobs hold at a site.", ["site", "state"], places)
    most = {(s.name,): s.max_jobs for s in found.sites}
    yield _gauges("ghv_site_places_max", "Places that there are at most; 0: not known.", ["site"], most)
    draining = {(s.name,): int(s.draining) for s in found.sites}
    yield _gauges("ghv_site_draining", "Whether a site gets no new work.", ["site"], draining)
    yield _counters(
        "ghv_beats", "Beats of pilots that relays told of.", ["site"], {(s.name,): s.beats for s in found.sites}
    )


def _gauges(name: str, help: str, labels: list[str], values: Mapping[K, int]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=labels)
    for names, value in sorted(values.items()):
        family.add_metric(names, value)
    return family


def _counters(name: str, help: str, labels: list[str], values: Mapping[K, int]) -> Metric:
    family = CounterMetricFamily(name, help, labels=labels)
    for names, value in sorted(values.items()):
        family.add_metric(names, value)
    return family


def _histogram(name: str, help: str, times: Times) -> Metric:
    bounds = [*map(str, BOUNDS), "+Inf"]
    family = HistogramMetricFamily(name, help)
    family.add_metric([], list(zip(bounds, accumulate(times.counts), strict=True)), times.sum)
    return family
