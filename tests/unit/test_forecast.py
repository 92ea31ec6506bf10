"""Where waiting jobs would go, and when: by places, walltimes, waits, limits and bans."""

from __future__ import annotations

from dataclasses import replace

from gridhypervisor.model.policy import Limits, SchedulingPolicy
from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import GangSpec, ResourcesSpec
from gridhypervisor.planning.forecast import Forecast, Held, forecast
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.policies.usage import Ban, Usage
from gridhypervisor.planning.suiting import Grid
from tests.unit.test_placing import BIG, LAYER, NOW, SMALL, grid, job

HOUR = ResourcesSpec(walltime="1h")
ONE = replace(BIG, max_jobs=1)


def ahead(found: list[Forecast]) -> list[tuple[str, str, float | None]]:
    return [(each.job, each.site, None if each.at is None else each.at - NOW) for each in found]


def waiting(count: int, owner: str = "me") -> list[object]:
    return [job(f"{owner}{i}", owner, NOW - 100 + i, resources=HOUR) for i in range(count)]


def told(jobs: list[object], held: list[Held], where: Grid) -> list[tuple[str, str, float | None]]:
    return ahead(forecast(jobs, held, where))  # type: ignore[arg-type]


def test_one_after_another_where_there_is_one_place() -> None:
    held = [Held("you", "default", "big", NOW + 600)]
    assert told(waiting(3), held, grid(ONE)) == [("me0", "big", 600), ("me1", "big", 4200), ("me2", "big", 7800)]
    assert told(waiting(1), [], grid(ONE)) == [("me0", "big", 0)]
    overdue = [Held("you", "default", "big", NOW - 5)]
    assert told(waiting(1), overdue, grid(ONE)) == [("me0", "big", 0)], "it should be free any moment"


def test_the_site_that_is_free_first_is_taken() -> None:
    held = [Held("you", "default", "big", NOW + 600), Held("you", "default", "small", NOW + 60)]
    where = grid(ONE, replace(SMALL, max_jobs=1))
    assert told(waiting(3), held, where) == [("me0", "small", 60), ("me1", "big", 600), ("me2", "small", 3660)]
    big_only = [job("me0", resources=replace_memory("2Gi"))]
    assert told(list(big_only), held, where) == [("me0", "big", 600)], "the other is too small for it"


def replace_memory(memory: str) -> ResourcesSpec:
    return ResourcesSpec(walltime="1h", memory=memory)


def test_what_no_site_can_take_is_told_why() -> None:
    [none] = forecast([job("j", requirements="Cpus > 99")], [], grid(ONE, SMALL))
    assert (none.site, none.at) == ("", None)
    assert "big: Cpus > 99 does not hold" in none.why and "small:" in none.why
    [nowhere] = forecast([job("j", site="gone")], [], grid(ONE))
    assert nowhere.why == "there is no such site"


def test_waits_in_the_queue_come_on_top() -> None:
    past = SitePast()
    past.waits.append(30.0)
    [first, second] = forecast(waiting(2), [], grid(ONE, past={"big": past}))  # type: ignore[arg-type]
    assert (first.at, first.starts) == (NOW, NOW + 30)
    assert (second.at, second.starts) == (NOW + 3630, NOW + 3660)
    assert forecast(waiting(1), [], grid(ONE))[0].starts is None  # type: ignore[arg-type]
    there = {"big": SitePast(layers={LAYER.digest: LAYER.size})}
    [sent], [not_sent] = (forecast(waiting(1), [], grid(ONE, past=p)) for p in ({}, there))  # type: ignore[arg-type]
    assert sent.ready is not None and not_sent.ready is not None and sent.ready > not_sent.ready > 0


def test_limits_and_bans_put_off() -> None:
    limited = SchedulingPolicy(limits=Limits(user=1))
    held = [Held("me", "default", "small", NOW + 50)]
    places = grid(replace(BIG, max_jobs=9), policy=limited)
    assert told(waiting(2), held, places) == [("me0", "big", 50), ("me1", "big", 3650)]
    banned = Usage(bans={"me": {"big": Ban(NOW, NOW + 70)}})
    assert told(waiting(1), [], grid(ONE, usage=banned)) == [("me0", "big", 70)]
    lowered = SchedulingPolicy(limits=Limits(sites={"big": 1}))
    many = [Held("you", "default", "big", NOW + n) for n in (10, 20, 30)]
    assert told(waiting(1), many, grid(replace(BIG, max_jobs=9), policy=lowered)) == [("me0", "big", 30)]


def gang(name: str, count: int, spread: bool = False, at: float = NOW) -> Job:
    return job(name, created=at, resources=HOUR, gang=GangSpec(count, spread))


def test_a_gang_goes_when_there_are_places_for_all_of_it() -> None:
    held = [Held("you", "default", "big", NOW + n) for n in (100, 200, 300)]
    where = grid(replace(BIG, max_jobs=4), replace(SMALL, max_jobs=2))
    [together, later] = forecast([gang("g", 3, at=NOW - 9), job("j", resources=HOUR)], held, where)
    assert (together.site, together.at, together.places) == ("big", NOW + 200, {"big": 3})
    assert (later.site, later.at, later.places) == ("small", NOW, {}), "the other site is free meanwhile"
    [apart] = forecast([gang("g", 3, spread=True)], held, where)
    assert (apart.at, apart.places) == (NOW, {"small": 2, "big": 1}), "sooner, over two sites"
    [whole] = forecast([gang("g", 2, spread=True)], held, where)
    assert (whole.at, whole.places) == (NOW, {"small": 2}), "at one, where that is no later"
    [first, second] = forecast([gang("g", 4, at=NOW - 9), gang("h", 2, at=NOW - 5)], [], grid(replace(BIG, max_jobs=4)))
    assert (first.at, second.at) == (NOW, NOW + 3600), "all four places are taken"


def test_a_gang_that_never_fits_or_is_held_up_by_a_limit_is_told_so() -> None:
    [never] = forecast([gang("g", 5)], [], grid(replace(BIG, max_jobs=4)))
    assert never.at is None and "its gang of 5 exceeds the 4 jobs" in never.why
    [nowhere] = forecast([gang("g", 7, spread=True)], [], grid(replace(BIG, max_jobs=4), replace(SMALL, max_jobs=2)))
    assert nowhere.at is None and "no room for all of its gang" in nowhere.why
    limited = SchedulingPolicy(limits=Limits(user=4))
    held = [Held("me", "default", "small", NOW + n) for n in (50, 60)]
    [put_off] = forecast([gang("g", 3)], held, grid(replace(BIG, max_jobs=9), policy=limited))
    assert put_off.at == NOW + 50, "with one of the two gone there is room for three"


def test_a_gang_runs_when_the_last_of_it_does() -> None:
    past = {"big": SitePast(), "small": SitePast()}
    past["big"].waits.append(30.0)
    where = grid(replace(BIG, max_jobs=1), replace(SMALL, max_jobs=1), past=past)
    assert forecast([gang("g", 2, spread=True)], [], where)[0].starts is None, "of one site nobody knows"
    past["small"].waits.append(5.0)
    assert forecast([gang("g", 2, spread=True)], [], where)[0].starts == NOW + 30


def test_users_take_turns() -> None:
    found = told([*waiting(3, "ada"), *waiting(1, "bob")], [], grid(ONE))
    assert [name for name, *_ in found].index("bob0") <= 1
