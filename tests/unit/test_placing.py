"""Who gets which site when several want one: requirements, rank, policies, limits, bans; and what each is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from gridhypervisor.model.capacity import NodeRow, NodeState, capacity
from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, Of
from gridhypervisor.model.policy import (
    FailureSetting,
    FixedResources,
    Limits,
    RankSetting,
    ResourcePolicies,
    SchedulingPolicy,
)
from gridhypervisor.model.records import Job, Site, SiteKind
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, problems
from gridhypervisor.model.wire import (
    HypervisorKind,
    ImageManifest,
    Layer,
    Lending,
    NodeReport,
    Proven,
    Share,
    Terms,
)
from gridhypervisor.planning.looking import LOOK
from gridhypervisor.planning.matching import Place
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.placement import (
    Choice,
    in_order,
    matching_nodes,
    place_all,
    weigh,
)
from gridhypervisor.planning.policies.usage import Ban, Usage
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.suiting import Grid, Seeker, hopeless
from gridhypervisor.planning.world import SiteFacts

NOW = 1e6
LAYER = Layer("ab" * 32, 300 << 20, "base", "squashfs")


def job(name: str = "j1", owner: str = "me", created: float = NOW, **spec: object) -> Job:
    return Job(name, owner, "default", "test", JobSpec("image", ("true",), **spec), "/home", "/home",  # type: ignore[arg-type]
               ImageManifest((LAYER,)), "0" * 64, created)  # fmt: skip


def report(node: str, **more: object) -> NodeReport:
    proven = tuple(Proven(kind, kind is not HypervisorKind.KVM, "") for kind in HypervisorKind)
    known = NodeReport(node, "6.1", "EPYC", 4, 8, 4 << 30, 3 << 30, "/w", "/s", 9 << 30, proven, arch="x86_64")
    return replace(known, **more)  # type: ignore[arg-type]


def site(name: str, kind: SiteKind = SiteKind.SLURM, probed: NodeReport | None = None, **facts: object) -> SiteFacts:
    configured = Site(name, "me", "default", kind, host=f"{name}.example", probed=probed)
    return SiteFacts(name, up=True, max_jobs=4, site=configured, **facts)  # type: ignore[arg-type]


def grid(*sites: SiteFacts, past: dict[str, SitePast] | None = None, usage: Usage | None = None,
         policy: SchedulingPolicy | None = None) -> Grid:  # fmt: skip
    named = {facts.name: facts for facts in sites}
    past = past or {}
    catalogue = Published().update(named, past, NOW)
    return Grid(named, policy or SchedulingPolicy(), usage or Usage(), NOW, catalogue, past)


def choices(jobs: list[Job], where: Grid) -> dict[str, Choice]:
    return place_all([Seeker(each) for each in jobs], where)


def sites_of(jobs: list[Job], where: Grid) -> dict[str, str | None]:
    return {name: choice.site for name, choice in choices(jobs, where).items()}


GIB = 1 << 30
LISTED = replace(
    capacity(
        [NodeRow("n1", NodeState.MIXED, 8, 2, 4 * GIB, GIB), NodeRow("n2", NodeState.IDLE, 4, 4, 2 * GIB, 2 * GIB),
         NodeRow("n3", NodeState.DOWN, 64, 0, 64 * GIB, 0)], 3, 3600.0,
    ), as_of=NOW - 60,
)  # fmt: skip

BIG = site("big", max_cpus=16, max_memory=64 << 30)
SMALL = site("small", SiteKind.PBS, max_cpus=2, max_memory=1 << 30)


WAITED = SitePast()
WAITED.waits.append(3.0)


def test_who_asks_for_more_than_any_site_has_is_told_of_each() -> None:
    spec = job(resources=ResourcesSpec(cpus=64, memory="1Gi")).spec
    assert hopeless(spec, [BIG, SMALL]) == (
        "big: it asks for 64 CPUs; the largest node has 16; small: it asks for 64 CPUs; the largest node has 2"
    )
    assert hopeless(job(resources=ResourcesSpec(cpus=16)).spec, [BIG, SMALL]) == ""
    assert "small" in hopeless(job(resources=ResourcesSpec(cpus=16), site="small").spec, [BIG, SMALL])
    assert hopeless(spec, [BIG, site("new")]) == "", "of what is not known nobody can say so"
    assert hopeless(spec, []) == "there is no site"


def test_a_site_that_was_never_connected_does_not_say_how_many_jobs_it_takes() -> None:
    published = Published().update({"new": SiteFacts("new", up=False, max_jobs=0)}, {}, NOW)
    assert not {"MaxJobs", "FreePlaces"} & dict(published.values(Place("new"))).keys()
    verdict = weigh(Seeker(job()), grid(SiteFacts("new", up=False, max_jobs=0))).candidates[0].verdict
    assert verdict == "is not connected yet"


def test_what_a_connection_died_of_is_told_once_and_not_in_each_jobs_line() -> None:
    died = SiteFacts("gone", up=False, why="ssh: a reason of many words")
    choice = weigh(Seeker(job()), grid(died))
    assert "many words" in choice.candidates[0].verdict
    assert "many words" not in choice.summary and "`ghv site show gone`" in choice.summary


def test_requirements_are_held_against_what_sites_publish() -> None:
    where = grid(BIG, SMALL)
    assert weigh(Seeker(job(requirements="Memory >= 2048")), where).site == "big"
    assert weigh(Seeker(job(requirements='BatchSystem == "PBS"')), where).site == "small"
    neither = weigh(Seeker(job(requirements="Memory >= 2048 && Cpus > 100")), where)
    assert neither.site is None
    assert "small: Memory >= 2048 does not hold: Memory is 1024 MiB" in neither.summary
    assert "big: Cpus > 100 does not hold: Cpus is 16" in neither.summary


def test_what_is_not_known_of_a_site_is_no_match() -> None:
    choice = weigh(Seeker(job(requirements='CpuModel == "EPYC"')), grid(BIG, SMALL))
    assert choice.site is None and "CpuModel is not known" in choice.summary
    assert "(next: ghv site check big)" in choice.candidates[0].verdict
    probed = replace(SMALL, site=replace(SMALL.site, probed=report("n1")))  # type: ignore[type-var]
    asks = 'CpuModel == "EPYC" && Arch == "x86_64" && member("tcg", Hypervisors) && Acceleration == "uml"'
    assert weigh(Seeker(job(requirements=asks)), grid(BIG, probed)).site == "small"
    rates = {HypervisorKind.UML: 0.86, HypervisorKind.TCG: 0.09}
    ran = {"big": SitePast(nodes={"n7": frozenset({HypervisorKind.UML})}, rates={"n7": rates})}
    fast = weigh(Seeker(job(requirements="UmlRate > 0.5", rank="UmlRate")), grid(BIG, probed, past=ran))
    assert fast.site == "big", "what jobs measured there"
    measured = replace(report("n1"), hypervisors=(Proven(HypervisorKind.UML, True, "", rate=0.9),))
    better = replace(SMALL, site=replace(SMALL.site, probed=measured))  # type: ignore[type-var]
    best = weigh(Seeker(job(rank="KvmRate ?: UmlRate ?: TcgRate ?: 0.1")), grid(BIG, better, past=ran))
    assert best.site == "small", "what its probe knows of, which is more"
    known = weigh(Seeker(job(requirements="KvmRate > 1")), grid(probed))
    assert "KvmRate is not known" in known.summary and "site check" not in known.summary, "a probe has found it out"


def test_one_node_that_matches_is_enough() -> None:
    """Which node it comes to, the site decides."""
    ran = {"big": SitePast(nodes={"n7": frozenset({HypervisorKind.UML})})}
    where = grid(BIG, SMALL, past=ran)
    wants = job(requirements='member("uml", Hypervisors)')
    assert weigh(Seeker(wants), where).site == "big"
    [node] = matching_nodes(wants, where)
    assert (node.site, node.node, node.chosen) == ("big", "n7", True)


def test_the_better_rank_goes_before_the_larger_free_share() -> None:
    waits = {"big": SitePast(), "small": SitePast()}
    waits["big"].waits.extend([300.0, 10.0, 200.0])
    waits["small"].waits.append(20.0)
    where = grid(BIG, replace(SMALL, alive=3), past=waits)
    assert weigh(Seeker(job()), where).site == "big"
    choice = weigh(Seeker(job(rank="-QueueWait")), where)
    assert choice.site == "small" and "rank -20" in choice.summary
    assert "by the policy 1.90 = 1·fixed 1.00 + 1·rank 0.90" in choice.candidates[1].verdict
    assert [c.rank is not None for c in choice.candidates] == [True, True]


def test_of_many_sites_that_lack_something_a_few_are_told_and_all_to_who_asks() -> None:
    where, wants = grid(*(site(f"s{n:02}") for n in range(13))), job(requirements="Memory > 1000")
    told = choices([wants], where)["j1"].summary
    assert told.count("Memory is not known") == 10 and told.endswith("; and 3 more")
    assert [c.verdict for c in weigh(Seeker(wants), where).candidates if "Memory is not known" in c.verdict][12:]


def test_a_rank_that_divides_by_zero_loses_only_its_own() -> None:
    where = grid(BIG, replace(SMALL, alive=1))
    bad, good = job("j1", rank="10 / Jobs"), job("j2", rank="Jobs")
    assert sites_of([bad, good], where) == {"j1": "small", "j2": "small"}
    warned = weigh(Seeker(bad), where)
    assert "no number at big" in warned.warning and "counts as 0" in warned.warning
    assert weigh(Seeker(good), where).warning == ""
    blind = weigh(Seeker(job(rank="-QueueWait")), where)
    assert blind.site is not None, "it ranks nothing, and keeps the job from nothing"
    assert "undefined at every site" in blind.warning and "QueueWait is not known" in blind.warning
    assert weigh(Seeker(job(rank="-QueueWait")), grid(BIG, SMALL, past={"big": WAITED})).warning == ""
    nowhere = weigh(Seeker(job(rank="1 / (Jobs * 0)")), where)
    assert nowhere.site is not None and "and 1 more" in nowhere.warning


def test_what_of_an_image_is_there_counts_for_its_own_job() -> None:
    where = grid(BIG, SMALL, past={"small": SitePast(layers={LAYER.digest: LAYER.size})})
    assert weigh(Seeker(job(requirements="ImageCached")), where).site == "small"
    assert weigh(Seeker(job(rank="-ImageMissing")), where).site == "small"
    other = replace(job("j2", requirements="ImageCached"), image=ImageManifest((replace(LAYER, digest="cd" * 32),)),
                    image_digest="1" * 64)  # fmt: skip
    assert sites_of([job(requirements="ImageCached"), other], where) == {"j1": "small", "j2": None}


def test_a_rank_may_go_by_when_the_guest_will_be_ready() -> None:
    """An image that is there need not be sent. What was predicted is told of each site, and kept with the choice."""
    where = grid(BIG, SMALL, past={"small": SitePast(layers={LAYER.digest: LAYER.size})})
    for rank in ("-ReadyTime", "-readytime"):
        choice = weigh(Seeker(job(rank=rank)), where)
        assert choice.site == "small"
        ready = {each.site: each.ready for each in choice.candidates}
        assert ready["big"] > ready["small"] > 0  # type: ignore[operator]
        assert choice.expected is not None and choice.expected.ready == ready["small"]
    assert sites_of([job(requirements="ReadyTime < 3600")], where) == {"j1": "big"}
    assert sites_of([job(requirements="ReadyTime < 0")], where) == {"j1": None}


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("requirements", "Cpus > 1 && Memry > 2", "no site publishes Memry; did you mean Memory?"),
        ("requirements", "Cpus", "it has to come to true or false"),
        ("rank", "BatchSystem == 1", "they cannot be compared"),
        ("rank", "(Cpus", "character"),
    ],
)
def test_an_expression_that_means_nothing_is_a_fault_of_its_field(field: str, text: str, words: str) -> None:
    [(where, problem)] = problems(JobSpec("image", ("true",), **{field: text}))  # type: ignore[arg-type]
    assert where == field and words in problem


def test_priority_and_deadline_decide_who_is_first() -> None:
    jobs = [
        job("old", created=NOW - 1000),
        job("soon", created=NOW - 10, deadline="1h"),
        job("urgent", priority=20),
        job("high", priority=10),
    ]
    assert in_order(jobs, SchedulingPolicy(), Usage(), NOW)[:2] == ["urgent", "soon"]
    one = replace(BIG, max_jobs=1)
    assert sites_of(jobs, grid(one)) == {"old": None, "soon": None, "urgent": "big", "high": None}


def test_a_users_thousand_jobs_leave_another_his_turn() -> None:
    many = [job(f"a{i}", "ada", NOW - 100 + i / 1000) for i in range(1000)]
    last = job("b", "bob")
    order = in_order([*many, last], SchedulingPolicy(), Usage(), NOW)
    assert order.index("b") <= 1
    assert sites_of([*many, last], grid(BIG))["b"] == "big"


def test_jobs_that_wait_together_look_again_at_different_times() -> None:
    many = [job(f"j{i}", requirements="Cpus > 99") for i in range(2000)]
    found = choices(many, grid(BIG, SMALL))
    times = Counter(choice.again for choice in found.values())
    assert all(at is not None and NOW + 10 < at <= NOW + LOOK for at in times)
    assert max(times.values()) < 250, "of 2,000 in 15 s: 133 in each of them, were they spread evenly"
    assert len(times) <= 16, "those of a second look together"
    assert found == choices(many, grid(BIG, SMALL))


def test_limits_of_user_project_site_and_cycle() -> None:
    jobs = [job(f"j{i}", "ada" if i % 2 else "bob", NOW + i) for i in range(8)]

    def placed(limits: Limits, usage: Usage | None = None) -> list[str]:
        found = choices(jobs, grid(BIG, SMALL, policy=SchedulingPolicy(limits=limits), usage=usage))
        waiting = [choice for choice in found.values() if choice.site is None]
        assert all("policy" in choice.summary for choice in waiting), [c.summary for c in waiting]
        return sorted(name for name, choice in found.items() if choice.site)

    assert len(placed(Limits())) == 8
    assert placed(Limits(users={"ada": 1})) == ["j0", "j1", "j2", "j4", "j6"]
    assert placed(Limits(user=2), Usage(running_users={"ada": 2})) == ["j0", "j2"]
    assert len(placed(Limits(project=3))) == 3
    assert len(placed(Limits(cycle=5))) == 5
    capped = choices(jobs, grid(BIG, policy=SchedulingPolicy(limits=Limits(sites={"big": 2}))))
    assert sum(c.site is not None for c in capped.values()) == 2
    assert all("as many as the policy allows it" in c.summary for c in capped.values() if c.site is None)


def test_a_site_that_is_never_used_or_banned_is_not_and_says_so() -> None:
    never = SchedulingPolicy(resources=ResourcePolicies(fixed=FixedResources(resources={"big": 0})))
    choice = weigh(Seeker(job()), grid(BIG, policy=never))
    assert choice.site is None and "not to be used" in choice.summary
    ban = SchedulingPolicy(resources=ResourcePolicies(failure=FailureSetting(1.0, "1h")))
    banned = Usage(bans={"me": {"big": Ban(NOW - 5, NOW + 60)}})
    choice = weigh(Seeker(job()), grid(BIG, policy=ban, usage=banned))
    assert choice.site is None and "banned for me after failures, for another 60 s" in choice.summary
    assert choice.again == NOW + 60, "it looks again when the ban is over"
    assert weigh(Seeker(job(owner="you")), grid(BIG, policy=ban, usage=banned)).site == "big"


def test_of_those_who_wait_for_the_same_each_is_told_of_his_own_ban() -> None:
    ban = SchedulingPolicy(resources=ResourcePolicies(failure=FailureSetting(1.0, "1h")))
    banned = Usage(bans={"ann": {"big": Ban(NOW - 5, NOW + 60)}})
    jobs = [job("j1", owner="ann"), job("j2", owner="bob"), job("j3", owner="ann")]
    found = choices(jobs, grid(BIG, policy=ban, usage=banned))
    assert found["j2"].site == "big"
    assert all("banned for ann" in found[name].summary and found[name].again == NOW + 60 for name in ("j1", "j3"))
    full = choices(jobs, grid(replace(BIG, alive=BIG.max_jobs), policy=ban, usage=banned))
    assert {choice.again for name, choice in full.items() if name != "j2"} == {None}, "a place wakes them"
    assert all("no room for more" in choice.summary for choice in full.values())


def test_a_policy_may_pass_over_ranks() -> None:
    where = grid(BIG, SMALL, policy=SchedulingPolicy(resources=ResourcePolicies(rank=RankSetting(0.0))))
    assert weigh(Seeker(job(rank="-Cpus")), where).site == "big"
    assert weigh(Seeker(job(rank="-Cpus")), grid(BIG, SMALL)).site == "small"


def test_a_lenders_room_is_never_given_twice() -> None:
    lent = replace(BIG, max_jobs=100, lending=Lending(Terms("file", "root", cores=5)))
    jobs = [job(f"j{i}", created=NOW + i, resources=ResourcesSpec(cpus=2)) for i in range(6)]
    found = choices(jobs, grid(lent))
    assert [name for name, choice in found.items() if choice.site] == ["j0", "j1"]
    assert "5 cores; 4 are in use" in found["j2"].summary
    with_another = choices(jobs, grid(lent, replace(SMALL, max_jobs=100)))
    assert all(choice.site for choice in with_another.values()), "who finds no room there looks elsewhere at once"
    assert sum(choice.site == "big" for choice in with_another.values()) <= 2
    used = grid(replace(lent, own=Share(2, 4, 1 << 30, 0, 0)))
    assert all(choice.site is None for choice in choices(jobs, used).values())


def test_each_attribute_is_published_by_somebody() -> None:
    known = Site("a", "me", "default", SiteKind.SLURM, host="h", options={"partition": "p"},
                 probed=report("n1", mhz=2400, scratch_size=1 << 40))  # fmt: skip
    facts = replace(BIG, name="a", site=known, max_walltime=60, capacity=LISTED)
    past = SitePast(nodes={"n2": frozenset(HypervisorKind)}, rates={"n2": dict.fromkeys(HypervisorKind, 0.5)})
    past.waits.append(1.0)
    catalogue = Published().update({"a": facts}, {"a": past}, NOW)
    published = {name for place in catalogue for name in catalogue.values(place)}
    of_jobs = {name for name, each in ATTRIBUTES.items() if each.of is Of.JOB}
    assert ATTRIBUTES.keys() - published - of_jobs == set()


def published(facts: SiteFacts, past: SitePast | None = None) -> dict[str, dict[str, object]]:
    """By node; under "" the site's own row."""
    found = Published().update({facts.name: facts}, {facts.name: past or SitePast()}, NOW)
    return {place.node: dict(found.values(place)) for place in found}


def test_what_the_batch_system_lists_is_published() -> None:
    rows = published(replace(BIG, capacity=LISTED))
    own = rows[""]
    assert {key: own[key] for key in ("Nodes", "FreeNodes", "SiteCpus", "SiteFreeCpus", "QueueLength")} == {
        "Nodes": 3, "FreeNodes": 1, "SiteCpus": 12, "SiteFreeCpus": 6, "QueueLength": 3}  # fmt: skip
    assert own["MaintenanceIn"] == 3540, "it was told a minute ago"
    assert (own["Cpus"], own["FreeCpus"], own["FreeMemory"]) == (16, 4, 2048), "a limit, and the best of the nodes"
    assert (rows["n1"]["NodeState"], rows["n1"]["FreeCpus"], rows["n1"]["Memory"]) == ("mixed", 2, 4096)
    assert rows["n3"]["NodeState"] == "down" and "Cpus" not in rows["n3"], "nobody gets what it has"
    where = grid(replace(BIG, capacity=LISTED), SMALL)
    assert weigh(Seeker(job(requirements="FreeCpus >= 4 && QueueLength < 5")), where).site == "big"
    assert weigh(Seeker(job(requirements="FreeCpus > 4")), where).site is None


def test_a_node_that_is_known_in_more_than_one_way_is_one_node() -> None:
    """By its whole name to itself, and by the first part of it to the batch system."""
    knows = replace(BIG.site, probed=report("n1.example.org"))  # type: ignore[type-var]
    past = SitePast(nodes={"n2.example.org": frozenset({HypervisorKind.UML}), "n3": frozenset({HypervisorKind.UML})})
    rows = published(replace(BIG, site=knows, capacity=LISTED), past)
    assert sorted(rows) == ["", "n1", "n2", "n3"]
    assert (rows["n1"]["CpuModel"], rows["n1"]["FreeCpus"], rows["n1"]["FreeMemory"]) == ("EPYC", 2, 1024)
    assert rows["n2"]["Hypervisors"] == ("uml",) and rows["n2"]["Cpus"] == 4
    assert "Hypervisors" not in rows["n3"], "it is down"


def test_what_is_free_counts_as_far_as_the_site_is_believed() -> None:
    own = published(replace(BIG, capacity=LISTED, credit=0.5))[""]
    assert (own["SiteFreeCpus"], own["FreeCpus"], own["FreeNodes"], own["SiteCpus"]) == (3, 2, 0, 12)


def test_a_listing_that_changes_changes_the_rows_and_nothing_else() -> None:
    made, past = Published(), SitePast()
    facts = replace(BIG, capacity=LISTED)
    made.update({"big": facts}, {"big": past}, NOW)
    version = made.version
    made.update({"big": facts}, {"big": past}, NOW + 1)
    assert made.version == version
    rows = [NodeRow("n1", NodeState.ALLOCATED, 8, 0, 4 * GIB, 0), NodeRow("n4", NodeState.IDLE, 4, 4, GIB, GIB)]
    found = made.update({"big": replace(facts, capacity=capacity(rows))}, {"big": past}, NOW + 2)
    assert sorted(place.node for place in found) == ["", "n1", "n4"] and made.version > version
    fresh = Published().update({"big": replace(facts, capacity=capacity(rows))}, {"big": past}, NOW + 2)
    assert {place: dict(found.values(place)) for place in found} == {
        place: dict(fresh.values(place)) for place in fresh
    }


def test_the_wait_is_predicted_by_what_is_free() -> None:
    past = SitePast()
    past.waits.extend([5.0, 900.0, 800.0])
    assert published(BIG, past)[""]["QueueWait"] == 800.0
    nobody = capacity([NodeRow("n1", NodeState.IDLE, 8, 8)], 0)
    assert published(replace(BIG, capacity=nobody), past)[""]["QueueWait"] == 5.0
    assert published(replace(BIG, capacity=LISTED), past)[""]["QueueWait"] == 800.0, "others wait there"


def test_of_sites_that_suit_equally_the_one_that_is_believed_is_taken() -> None:
    liar, honest = replace(BIG, name="a", credit=0.25), replace(BIG, name="b", alive=2)
    choice = weigh(Seeker(job()), grid(liar, honest))
    assert choice.site == "b"
    [told] = [c.verdict for c in choice.candidates if c.site == "a"]
    assert (
        "room for 4 more (max jobs: 4), which counts 25%: jobs waited there though it said that cores were free" in told
    )
    assert weigh(Seeker(job()), grid(liar, replace(honest, alive=4))).site == "a", "better than to wait"
