"""Whatever happens in whatever order: what is published is what is known, and what is placed fits."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gridhypervisor.model.policy import FailureSetting, Limits, ResourcePolicies, SchedulingPolicy, UsageSetting
from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import ResourcesSpec
from gridhypervisor.model.wire import HypervisorKind, Lending, Terms
from gridhypervisor.planning.past import Past, SitePast, Tenure
from gridhypervisor.planning.placement import place_all
from gridhypervisor.planning.policies.usage import Usage
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.replay import Recorded, Snapshot, as_it_is, replay, snapshot_of
from gridhypervisor.planning.suiting import Seeker, beyond, share
from gridhypervisor.planning.world import SiteFacts
from tests.unit.test_placing import NOW, grid, job, report, site

NAMES = ("a", "b", "c")


@st.composite
def facts(draw: st.DrawFn, name: str) -> SiteFacts:
    probed = draw(st.none() | st.sampled_from(["n1", "n2"]).map(report))
    made = site(name, probed=probed, max_walltime=draw(st.none() | st.just(3600)))
    limit = draw(st.integers(1, 6))
    lent = draw(st.none() | st.integers(0, 6).map(lambda cores: Lending(Terms("file", "root", cores=cores))))
    return replace(made, up=draw(st.booleans()), max_jobs=limit, alive=draw(st.integers(0, limit)), lending=lent)


worlds = st.lists(st.sampled_from(NAMES), unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: facts(name) for name in names})
)
pasts = st.dictionaries(
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(["n1", "n3"]), st.frozensets(st.sampled_from(list(HypervisorKind)), min_size=1)),
).map(lambda found: {name: SitePast(nodes=dict(nodes)) for name, nodes in found.items()})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(worlds, pasts), min_size=1, max_size=4))
def test_a_catalogue_kept_up_is_one_made_anew(history: list[tuple[dict[str, SiteFacts], dict[str, SitePast]]]) -> None:
    kept = Published()
    for sites, past in history:
        now, anew = kept.update(sites, past, NOW), Published().update(sites, past, NOW)
        assert list(now) == list(anew)
        assert [now.values(place) for place in now] == [anew.values(place) for place in anew]


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    return [
        job(
            f"j{number}",
            draw(st.sampled_from(["ada", "bob"])),
            NOW - draw(st.integers(0, 100)),
            resources=ResourcesSpec(cpus=draw(st.integers(1, 3)), walltime=draw(st.sampled_from(["10m", "2h"]))),
            requirements=draw(st.sampled_from(["", "Up", "Cpus > 4", 'member("uml", Hypervisors)', "FreePlaces > 1"])),
            rank=draw(st.sampled_from(["", "FreePlaces", "1 / (Jobs - 1)", "-Memory"])),
            priority=draw(st.none() | st.integers(0, 20)),
        )
        for number in range(draw(st.integers(1, 8)))
    ]


@settings(max_examples=200, deadline=None)
@given(worlds, pasts, jobs(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_what_is_placed_fits_is_reproducible_and_leaves_nobody_without_a_word(
    sites: dict[str, SiteFacts], past: dict[str, SitePast], wanted: list[Job], user: int, at_site: int, cycle: int
) -> None:
    policy = SchedulingPolicy(limits=Limits(user=user, site=at_site, cycle=cycle))
    busy = {name: each.alive for name, each in sites.items()}
    where = grid(*sites.values(), past=past, policy=policy, usage=Usage(running_sites=busy))
    found = place_all([Seeker(each) for each in wanted], where)
    assert found.keys() == {each.id for each in wanted}
    assert found == place_all([Seeker(each) for each in wanted], where), "the same facts, the same choices"
    published = Published()
    where = replace(where, catalogue=published.update(where.sites, past, NOW))
    seekers = [Seeker(each) for each in wanted]
    record = msgspec.json.encode(as_it_is(seekers, where, 3, found, published))
    nodes = msgspec.json.decode(msgspec.json.encode(snapshot_of(published)), type=Snapshot).nodes
    read = msgspec.json.decode(record, type=Recorded)
    assert replay(read, nodes, wanted, policy) == read.chosen == {n: c.site for n, c in found.items() if c.site}
    for name, each in sites.items():
        here = [one for one in wanted if found[one.id].site == name]
        if not here:
            continue
        assert each.up and each.alive + len(here) <= each.max_jobs
        assert not at_site or each.alive + len(here) <= max(at_site, each.alive)
        assert not any(beyond(one.spec, each) for one in here)
        if each.lending is not None:
            cores = each.lending.terms.cores
            assert cores is not None and sum(share(one).cores for one in here) <= cores
    for owner in ("ada", "bob"):
        placed = [one for one in wanted if one.owner == owner and found[one.id].site]
        assert not user or len(placed) <= user
    assert all(choice.summary for choice in found.values())


tenures = st.builds(
    Tenure,
    owner=st.sampled_from(["ada", "bob"]),
    project=st.just("default"),
    site=st.sampled_from(NAMES),
    ended=st.floats(NOW - 5000, NOW),
    seconds=st.floats(1, 1000),
    core_seconds=st.floats(0, 1000),
    well=st.sampled_from([True, False, None]),
    waited=st.none() | st.floats(0, 100),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(tenures, max_size=30))
def test_what_is_remembered_adds_up(found: list[Tenure]) -> None:
    found.sort(key=lambda each: each.ended)
    policy = SchedulingPolicy(
        resources=ResourcePolicies(usage=UsageSetting(1.0, history="1h"), failure=FailureSetting(1.0, "1h"))
    )
    past = Past(policy)
    for each in found:
        past.add(each)
    usage = past.usage(NOW)
    recent = [each for each in found if each.ended > NOW - 3600]
    for owner in ("ada", "bob"):
        for name in NAMES:
            own = [each for each in recent if (each.owner, each.site) == (owner, name)]
            record = usage.records.get(owner, {}).get(name)
            counted = (record.successes, record.failures) if record is not None else (0, 0)
            assert counted == (sum(e.well is True for e in own), sum(e.well is False for e in own))
            ends = [e.well for e in found if (e.owner, e.site) == (owner, name) and e.well is not None]
            failed = ends[-1:] == [False]
            assert (name in usage.bans.get(owner, {})) is failed, "a success ends a ban, a failure begins one"
        used = sum(each.core_seconds for each in found if each.owner == owner)
        windows = usage.users.get(owner)
        assert abs((sum(windows.used) if windows is not None else 0.0) - used) < 1e-3
