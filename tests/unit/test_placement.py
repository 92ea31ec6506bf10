"""Which site a job gets, and what each of the others is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridhypervisor.model.records import Job
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.wire import ImageManifest, Lending, Share, Terms
from gridhypervisor.planning.placement import place
from gridhypervisor.planning.world import SiteFacts

A = SiteFacts("a", up=True, max_jobs=4)
B = SiteFacts("b", up=True, max_jobs=4)


def job(**spec: object) -> Job:
    return Job("j1", "me", "default", "test", JobSpec("image", ("true",), **spec), "/home", "/home",  # type: ignore[arg-type]
               ImageManifest(()), "0" * 64, 0.0)  # fmt: skip


def sites(*facts: SiteFacts) -> dict[str, SiteFacts]:
    return {f.name: f for f in facts}


def test_the_larger_free_share_wins() -> None:
    assert place(job(), sites(replace(A, alive=3), replace(B, alive=2))).site == "b"


def test_equals_are_told_apart_by_name() -> None:
    assert place(job(), sites(B, A)).site == "a"


def test_a_site_that_failed_it_comes_last_but_is_not_out() -> None:
    failed = replace(job(), excluded=("a",))
    assert place(failed, sites(A, replace(B, alive=3))).site == "b"
    choice = place(failed, sites(A, replace(B, alive=4)))
    assert choice.site == "a"
    assert "an earlier attempt failed here" in choice.summary


def test_what_a_probe_did_not_find_comes_last_but_is_not_out() -> None:
    """The site's other nodes may have it."""
    without = replace(A, lacks=frozenset({"kvm"}))
    assert place(job(hypervisor="kvm"), sites(without, replace(B, alive=3))).site == "b"
    assert place(job(hypervisor="kvm"), sites(replace(without, alive=3), replace(B, alive=4))).site == "a"
    assert place(job(), sites(without, B)).site == "a", "who asks for nothing gets what there is"
    choice = place(job(hypervisor="kvm"), sites(without))
    assert choice.site == "a" and "kvm did not work on the node that was probed" in choice.summary


@pytest.mark.parametrize(
    ("facts", "spec", "verdict"),
    [
        (replace(A, up=False, why="no route"), {}, "does not answer: no route"),
        (replace(A, up=False), {}, "is not connected yet"),
        (replace(A, draining=True), {}, "draining"),
        (replace(A, alive=4), {}, "no room for more (max jobs: 4)"),
        (replace(A, max_walltime=60), {}, "walltime 1800 s exceeds the site's limit of 60 s"),
        (replace(A, max_cpus=1), {"resources": ResourcesSpec(cpus=2)}, "it asks for 2 CPUs; the largest node has 1"),
        (replace(A, max_memory=1 << 20), {}, "it asks for 512Mi of memory; the site has 1 MiB for one job"),
        (A, {"site": "b"}, "the job asks for b"),
    ],
)
def test_who_cannot_take_it_is_told_why(facts: SiteFacts, spec: dict[str, object], verdict: str) -> None:
    choice = place(job(**spec), sites(facts, replace(B, up=False)))
    assert choice.site is None
    [candidate] = [c for c in choice.candidates if c.site == "a"]
    assert verdict in candidate.verdict
    told = verdict.partition(": no route")[0]  # many may wait for a silent site: its words are told once
    assert (told in choice.summary) is (spec.get("site") in (None, "a"))  # what was not asked for is no reason


def test_only_a_free_place_can_be_spurned() -> None:
    big = job(resources=ResourcesSpec(cpus=2))
    assert place(big, sites(replace(A, max_cpus=1), replace(B, max_cpus=1, up=False))).spurned == ("a",)
    assert place(big, sites(replace(A, max_cpus=1, alive=A.max_jobs), replace(B, alive=B.max_jobs))).spurned == ()


def test_without_any_site_it_says_how_to_add_one() -> None:
    assert "ghv site add" in place(job(), {}).summary


def test_a_site_that_does_not_exist_is_named_with_those_that_do() -> None:
    summary = place(job(site="moon"), sites(A, B)).summary
    assert "moon" in summary and "a, b" in summary


LENT = replace(A, lending=Lending(Terms("lender.toml", cores=4), mine=Share(cores=1), rest=Share(cores=2)))


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (replace(LENT, own=Share(cores=2)), "the lender of a allows 4 cores; 4 are in use"),
        (replace(LENT, lending=Lending(Terms("f", cores=0, own=True))), "your own cap on a allows 0 cores; 0 are in"),
        (replace(LENT, lending=Lending(Terms("f", images=("1" * 64,)))), "the lender of a allows 1 image, and 000000"),
        (replace(LENT, lending=Lending(Terms("f", vm_seconds=1799))), "allows 0.5 VM-hours a month; 0 are in use"),
    ],
)
def test_a_lender_limits_like_the_site_itself(facts: SiteFacts, verdict: str) -> None:
    assert place(job(), sites(LENT)).site == "a"
    choice = place(job(), sites(facts))
    assert choice.site is None and verdict in choice.summary
    assert choice.spurned == ("a",), "a job that needs less may have it"
    assert place(job(), sites(facts, B)).site == "b"
