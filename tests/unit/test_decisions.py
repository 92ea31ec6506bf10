"""The record of choices: found again, also after a restart, a full file, half a line; and what one bad job costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.execution import decisions as module
from gridhypervisor.execution.choosing import choose
from gridhypervisor.execution.decisions import Decisions
from gridhypervisor.model.policy import SchedulingPolicy
from gridhypervisor.model.records import Job
from gridhypervisor.model.wire import HypervisorKind, OperationKind, Timing
from gridhypervisor.planning.past import SitePast
from gridhypervisor.planning.predictions import Predictions
from gridhypervisor.planning.published import Published
from gridhypervisor.planning.replay import as_it_is, replay
from gridhypervisor.planning.suiting import Grid, Seeker
from tests.unit.test_placing import BIG, NOW, SMALL, job

ASKS = 'member("uml", Hypervisors)'
SITES = {"big": BIG, "small": SMALL}


def cycle(record: Decisions, jobs: list[Job], published: Published, node: str) -> None:
    """Choose sites for jobs, where such a node of `small` is known, and write it down."""
    past = {"small": SitePast(nodes={node: frozenset({HypervisorKind.UML})})}
    grid = Grid(SITES, now=NOW, catalogue=published.update(SITES, past, NOW), past=past)
    seekers = [Seeker(each) for each in jobs]
    record.add(as_it_is(seekers, grid, 0, choose(seekers, grid), published), published)


def again(path: Path, jobs: list[Job], name: str) -> tuple[dict[str, str], list[str]]:
    """What a replay gives, and the nodes that it saw."""
    found = Decisions(path).last(name)
    assert found is not None
    recorded, snapshot = found
    nodes = [node for site in snapshot.nodes.values() for node in site if node]
    return replay(recorded, snapshot.nodes, jobs, SchedulingPolicy()), nodes


def test_a_choice_is_found_with_what_nodes_published_then(tmp_path: Path) -> None:
    path, published = tmp_path / "d.jsonl", Published()
    jobs = [job(f"j{n}", requirements=ASKS) for n in range(3)]
    record = Decisions(path)
    for each, node in zip(jobs, ("n1", "n1", "n2"), strict=True):
        cycle(record, [each], published, node)
    assert path.read_text().count('{"snapshot"') == 2, "what stays the same is written once"
    assert again(path, jobs, "j1") == ({"j1": "small"}, ["n1"])
    assert again(path, jobs, "j2") == ({"j2": "small"}, ["n2"])
    with path.open("a") as file:
        file.write('{"at":1.0,"asked":[{"job":"j1"')  # where a disk was full
    cycle(Decisions(path), jobs, Published(), "n3")  # a service that has started again counts from the beginning
    assert again(path, jobs, "j0")[1] == ["n3"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert Decisions(path).last("j9") is None


def test_what_was_predicted_then_counts_when_a_choice_is_made_again(tmp_path: Path) -> None:
    path, wanted = tmp_path / "d.jsonl", job(rank="-ReadyTime", hypervisor="uml")
    known = Predictions()
    for site, took in (("big", 90.0), ("small", 1.0)):
        known.add(site, HypervisorKind.UML, wanted.image_digest, [Timing(OperationKind.BOOT, 512 << 20, took)] * 8)
    published, record = Published(), Decisions(path)
    grid = Grid(SITES, now=NOW, catalogue=published.update(SITES, {}, NOW), predictions=known)
    choices = choose([Seeker(wanted)], grid)
    record.add(as_it_is([Seeker(wanted)], grid, 0, choices, published), published)
    assert choices["j1"].site == "small"
    assert again(path, [wanted], "j1")[0] == {"j1": "small"}
    found = Decisions(path).last("j1")
    assert found is not None and found[0].ready["j1"]["big"] > 90 > found[0].ready["j1"]["small"]


def test_the_record_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 8_000)
    path, published = tmp_path / "d.jsonl", Published()
    record = Decisions(path)
    jobs = [job(f"j{n}", requirements=ASKS) for n in range(60)]
    for each in jobs:
        cycle(record, [each], published, "n1")
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 20_000
    assert again(path, jobs, "j59") == ({"j59": "small"}, ["n1"])
    assert again(path, jobs, "j50") == ({"j50": "small"}, ["n1"])
    assert Decisions(path).last("j0") is None


def test_of_many_sites_a_cycle_writes_down_those_that_changed_and_is_found_with_all(tmp_path: Path) -> None:
    path, jobs = tmp_path / "d.jsonl", [job(f"j{n}") for n in range(module.WHOLE + 20)]
    sites = {f"s{n}": replace(SMALL, name=f"s{n}", max_jobs=1000) for n in range(100)}
    record, expected = Decisions(path), {}
    for each in jobs:
        grid = Grid(sites, now=NOW)
        [[name, choice]] = choose([Seeker(each)], grid).items()
        assert choice.site is not None
        record.add(as_it_is([Seeker(each)], grid, 0, {name: choice}, Published()), Published())
        expected[name] = choice.site
        sites = sites | {choice.site: replace(sites[choice.site], alive=sites[choice.site].alive + 1)}
    lines = path.read_text().splitlines()
    assert sum(len(line) < len(lines[1]) / 20 for line in lines[1:]) == len(jobs) - 2, "two of them tell all"
    for each in jobs:
        assert again(path, jobs, each.id)[0] == {each.id: expected[each.id]}
    cycle = Decisions(path).last(jobs[-1].id)
    assert cycle is not None and sum(facts.alive for facts in cycle[0].sites.values()) == len(jobs) - 1
    del sites["s0"]  # a site that was removed is not there for those after
    grid = Grid(sites, now=NOW)
    record.add(as_it_is([Seeker(jobs[0])], grid, 0, choose([Seeker(jobs[0])], grid), Published()), Published())
    last = Decisions(path).last(jobs[0].id)
    assert last is not None and last[0].sites.keys() == sites.keys()


def test_what_cannot_be_written_costs_nobody_his_site(tmp_path: Path) -> None:
    cycle(Decisions(tmp_path / "not" / "there"), [job(requirements=ASKS)], Published(), "n1")


def test_a_job_that_no_site_can_be_chosen_for_by_a_fault_of_ours_is_alone_with_it() -> None:
    """One of another version's, say, that asks for what is no longer published."""
    bad = job("j1", requirements="Memry > 1")
    good = [job(f"j{n}") for n in range(2, 8)]
    found = choose([Seeker(each) for each in (bad, *good)], Grid({"big": replace(BIG, max_jobs=3)}, now=NOW))
    assert found["j1"].site is None and "report this as a bug" in found["j1"].summary
    assert found["j1"].again is not None and found["j1"].again > NOW
    assert [found[each.id].site for each in good] == ["big"] * 3 + [None] * 3
