"""Whatever gangs want places, wherever there are some: each gets all of its own or none, and never more."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import GangSpec, JobSpec
from gridhypervisor.model.wire import ImageManifest, Lending, Share, Terms
from gridhypervisor.planning.packing import Kind, Places, Wanted, best_fit, pack, solve
from gridhypervisor.planning.placement import place_all
from gridhypervisor.planning.suiting import Grid, Seeker
from gridhypervisor.planning.world import SiteFacts

NAMES = ("a", "b", "c", "d")

rooms = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9), min_size=1)


@st.composite
def gangs(draw: st.DrawFn, room: dict[str, int]) -> list[Wanted]:
    made = []
    for number in range(draw(st.integers(1, 7))):
        may = draw(st.lists(st.sampled_from(sorted(room)), unique=True))
        likes = tuple((site, draw(st.sampled_from([0.0, 0.5, 1.0]))) for site in sorted(may))
        made.append(Wanted(f"g{number}", Kind(draw(st.integers(2, 6)), draw(st.booleans()), likes)))
    return made


packings = rooms.flatmap(lambda room: st.tuples(st.just(room), gangs(room)))


def judge(wanted: list[Wanted], room: dict[str, int], placed: dict[str, Places]) -> int:
    """What must hold of any packing; how many members it places."""
    used: Counter[str] = Counter()
    for gang in wanted:
        places = placed.get(gang.id)
        if places is None:
            continue
        assert sum(places.values()) == gang.kind.size and all(count > 0 for count in places.values()), "whole, or not"
        assert gang.kind.spread or len(places) == 1
        assert set(places) <= {site for site, _ in gang.kind.scores}, "only where it may go"
        used.update(places)
    assert all(count <= room[site] for site, count in used.items()), "never more than there is room"
    return used.total()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(packings)
def test_gangs_are_packed_whole_and_into_the_room_that_there_is(given: tuple[dict[str, int], list[Wanted]]) -> None:
    room, wanted = given
    simple, found = best_fit(wanted, room), pack(wanted, room)
    asked = solve(wanted, room, simple)
    least = judge(wanted, room, simple)
    assert judge(wanted, room, found) >= least and judge(wanted, room, asked) >= least
    assert set(simple) <= set(found) and set(simple) <= set(asked), "who came first keeps a place"
    assert pack(wanted, room) == found


@st.composite
def seekers(draw: st.DrawFn) -> list[Seeker]:
    made: list[Seeker] = []
    for number in range(draw(st.integers(1, 5))):
        owner, created = draw(st.sampled_from(["ada", "bob"])), float(draw(st.integers(0, 9)))
        count = draw(st.sampled_from([1, 2, 3, 4]))
        gang = GangSpec(count, draw(st.booleans())) if count > 1 else None
        spec = JobSpec("image", ("true",), gang=gang, site=draw(st.sampled_from(["", "", "a"])))
        missing = draw(st.sampled_from([0, 0, 0, 1])) if gang is not None else 0
        for member in range(count - missing):
            job = Job(f"j{number}.{member}", owner, "p", "x", spec, "/", "/", ImageManifest(()), "", created,
                      group=f"g{number}" if gang is not None else "", member=str(member))  # fmt: skip
            made.append(Seeker(job))
    return made


@st.composite
def sites(draw: st.DrawFn) -> dict[str, SiteFacts]:
    made = {}
    for name in NAMES[: draw(st.integers(1, 3))]:
        most = draw(st.integers(1, 6))
        cores = draw(st.none() | st.integers(0, 5))
        lending = Lending(Terms("file", cores=cores), Share(), Share()) if cores is not None else None
        made[name] = SiteFacts(name, up=draw(st.booleans()), max_jobs=most, alive=draw(st.integers(0, most)),
                               lending=lending, slots=draw(st.none() | st.just(4)))  # fmt: skip
    return made


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seekers(), sites())
def test_among_other_jobs_a_gang_gets_all_its_places_or_none(wanted: list[Seeker], facts: dict[str, SiteFacts]) -> None:
    found = place_all(wanted, Grid(facts))
    assert found.keys() == {each.job.id for each in wanted}
    assert found == place_all(wanted, Grid(facts)), "the same facts, the same choices"
    at: Counter[str] = Counter(site for choice in found.values() if (site := choice.site) is not None)
    for name, count in at.items():
        each = facts[name]
        assert each.up and each.alive + count <= each.max_jobs
        gang = [s.job for s in wanted if s.job.group and found[s.job.id].site == name]
        assert not gang or each.slots is None or len(gang) <= each.slots
        assert each.lending is None or count <= (each.lending.terms.cores or 0)
    members: dict[str, list[Job]] = {}
    for seeker in wanted:
        if seeker.job.group:
            members.setdefault(seeker.job.group, []).append(seeker.job)
    for gang in members.values():
        spec = gang[0].spec.gang
        assert spec is not None
        where = {found[job.id].site for job in gang}
        assert where == {None} or (None not in where and len(gang) == spec.count)
        assert spec.spread or len(where) == 1
    assert all(choice.summary for choice in found.values())
