"""The scheduling policies' formulas, against values worked out by hand; and what a whole cycle decides and explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from gridhypervisor.model.policy import (
    URGENT,
    FailureSetting,
    FixedJobs,
    FixedResources,
    JobPolicies,
    Limits,
    ResourcePolicies,
    SchedulingPolicy,
    ShareSetting,
    UsageSetting,
    WaitingSetting,
)
from gridhypervisor.planning.policies.cycle import Cycle, assign
from gridhypervisor.planning.policies.jobs import Request, deadline_part, fixed_part, prioritise, waiting_part
from gridhypervisor.planning.policies.moves import Outlook, runs_too_slowly, waits_too_long, worth_moving
from gridhypervisor.planning.policies.resources import Candidates, failure_part, rank_part, usage_part
from gridhypervisor.planning.policies.usage import Ban, Record, Usage, Windows, banned, charge, remembered
from gridhypervisor.planning.policies.verdicts import explain

DAY = 86400.0
NOW = 100 * DAY
ALL = np.array([True, True, True])


GRIDWAYS = ResourcePolicies(usage=UsageSetting(1.0), failure=FailureSetting(1.0, "1h"))
"""All four count, as with GridWay."""


def only(**weights: float) -> SchedulingPolicy:
    """A policy of these job weights alone."""
    given = {"fixed": 0.0, "share": 0.0, "waiting": 0.0, "deadline": 0.0} | weights
    empty = JobPolicies()
    return SchedulingPolicy(
        jobs=JobPolicies(
            FixedJobs(given["fixed"]),
            ShareSetting(given["share"]),
            WaitingSetting(given["waiting"]),
            type(empty.deadline)(given["deadline"]),
        )
    )


def request(name: str, user: str = "alice", ago: float = 0.0, **fields: Any) -> Request:
    return Request(name, user, fields.pop("project", "default"), NOW - ago, **fields)


def sites(
    free: Mapping[str, int],
    rank: Sequence[float] | None = None,
    eligible: Sequence[bool] | None = None,
    **columns: Sequence[float],
) -> Candidates:
    """One group of jobs, and sites with so many places free of 10; cores and memory as given, or no matter."""
    names, n = list(free), len(free)
    column: dict[str, Any] = {c: np.array(columns.get(c, [math.inf] * n), dtype=float) for c in
              ("free_cores", "total_cores", "free_memory", "total_memory")}  # fmt: skip
    ranks = np.array([[0.0] * n if rank is None else rank], dtype=float)
    able = np.array([[True] * n if eligible is None else eligible], dtype=bool)
    return Candidates(names, names, free_places=free, total_places=dict.fromkeys(names, 10),
                      eligible=able, rank=ranks, **column)  # fmt: skip


def cycle(
    jobs: Sequence[Request], where: Candidates, policy: SchedulingPolicy | None = None, usage: Usage | None = None
) -> Cycle:
    return assign(jobs, where, policy or SchedulingPolicy(resources=GRIDWAYS), usage or Usage(), NOW)


def ordered(jobs: Sequence[Request], policy: SchedulingPolicy, usage: Usage | None = None) -> list[str]:
    return [jobs[i].id for i in prioritise(jobs, policy, usage or Usage(), NOW).order]


class TestWhoGoesFirst:
    def test_fixed_priority_is_over_the_largest(self) -> None:
        assert fixed_part(np.array([0.0, 5.0, 10.0])).tolist() == [0, 0.5, 1]
        assert fixed_part(np.zeros(2)).tolist() == [0, 0]

    def test_fixed_priority_is_the_users_else_the_projects_else_the_default(self) -> None:
        fixed = FixedJobs(default=1, users={"alice": 5}, projects={"staff": 4})
        assert [fixed.of("alice", "staff"), fixed.of("bob", "staff"), fixed.of("bob", "x")] == [5, 4, 1]

    def test_waiting_is_linear(self) -> None:
        assert waiting_part(np.array([0.0, 30.0, 120.0, -5.0])).tolist() == [0, 0.25, 1, 0]

    def test_a_deadline_counts_half_at_half_and_all_when_it_has_passed(self) -> None:
        part = deadline_part(np.array([-1.0, 0.0, DAY, 2 * DAY, 7 * DAY, math.inf]), DAY)
        assert part.tolist() == [1, 1, 0.5, 0.25, 0, 0]

    def test_priority_is_the_weighted_sum(self) -> None:
        jobs = [
            request("a", ago=100, fixed=10, deadline=NOW + 0),
            request("b", user="bob", ago=50, fixed=5, deadline=NOW + DAY, cores=2, seconds=60),
        ]
        found = prioritise(jobs, only(fixed=2, share=1, waiting=4, deadline=8), Usage(), NOW)
        assert found.total.tolist() == pytest.approx([2 * 1 + 1 + 4 * 1 + 8 * 1, 2 * 0.5 + 1 + 4 * 0.5 + 8 * 0.5])

    def test_use_is_forgotten_window_by_window(self) -> None:
        windows = Windows(100, (70.0, 35.0, 7.0))
        kept = 70 + 35 * math.exp(-1 / 3.5) + 7 * math.exp(-2 / 3.5)
        assert remembered(windows, NOW, DAY, 5) == pytest.approx(kept)
        assert remembered(windows, NOW, DAY, 2) == pytest.approx(70 + 35 * math.exp(-1 / 3.5))
        assert remembered(windows, NOW + 3 * DAY, DAY, 5) == pytest.approx(
            70 * math.exp(-3 / 3.5) + 35 * math.exp(-4 / 3.5)
        )
        assert remembered(windows, NOW + 5 * DAY, DAY, 5) == 0

    def test_use_is_charged_to_its_window(self) -> None:
        windows = charge(Windows(), NOW, 10.0, DAY, 3)
        windows = charge(windows, NOW + DAY, 1.0, DAY, 3)
        windows = charge(windows, NOW + 5, 10.0, DAY, 3)
        assert windows == Windows(101, (1.0, 20.0, 0.0))
        assert charge(windows, NOW - 2 * DAY, 99.0, DAY, 3) == windows, "older than anybody remembers"

    def test_equal_users_take_turns(self) -> None:
        jobs = [request(f"a{i}", seconds=60) for i in range(4)]
        jobs += [request(f"b{i}", user="bob", seconds=60) for i in range(2)]
        assert ordered(jobs, only(share=1)) == ["a0", "b0", "a1", "b1", "a2", "a3"]

    def test_a_double_share_gets_two_turns(self) -> None:
        rules = JobPolicies(share=ShareSetting(users={"alice": 10.0, "bob": 5.0}))
        jobs = [request(f"a{i}", seconds=60) for i in range(4)]
        jobs += [request(f"b{i}", user="bob", seconds=60) for i in range(2)]
        assert ordered(jobs, SchedulingPolicy(jobs=rules)) == ["a0", "b0", "a1", "a2", "b1", "a3"]

    def test_large_jobs_count_for_what_they_take(self) -> None:
        jobs = [request(f"a{i}", seconds=60, cores=2) for i in range(3)]
        jobs += [request(f"b{i}", user="bob", seconds=60) for i in range(4)]
        assert ordered(jobs, only(share=1)) == ["a0", "b0", "b1", "a1", "b2", "b3", "a2"]

    def test_who_has_used_more_comes_later_by_so_much(self) -> None:
        usage = Usage(users={"alice": Windows(100, (120.0,))})
        jobs = [request("a0", seconds=60), *(request(f"b{i}", user="bob", seconds=60) for i in range(4))]
        assert ordered(jobs, only(share=1), usage) == ["b0", "b1", "a0", "b2", "b3"]
        share = prioritise(jobs, only(share=1), usage, NOW).share
        assert share[0] == pytest.approx(1 - (0.5 * 120 / 180 + 0.5 * 120 / 240)), (
            "user's 120 of 180; project's 120 of 240"
        )

    def test_projects_take_turns_whatever_the_number_of_their_users(self) -> None:
        policy = SchedulingPolicy(jobs=JobPolicies(share=ShareSetting(project_weight=1.0)))
        jobs = [request(f"a{i}", user=f"u{i}", project="many", seconds=60) for i in range(4)]
        jobs += [request(f"b{i}", user="bob", project="one", seconds=60) for i in range(2)]
        assert ordered(jobs, policy) == ["a0", "b0", "a1", "b1", "a2", "a3"]

    def test_the_first_to_come_is_the_first_of_equals(self) -> None:
        jobs = [request("late", ago=1), request("early", ago=2), request("second", ago=1)]
        assert ordered(jobs, only(fixed=1)) == ["early", "late", "second"]

    def test_urgent_jobs_go_before_all_and_those_that_have_a_place_after_all(self) -> None:
        jobs = [request("moving", ago=9, moving=True), request("high", fixed=19), request("urgent", fixed=URGENT)]
        assert ordered(jobs, only(fixed=1)) == ["urgent", "high", "moving"]

    def test_of_each_user_the_longest_waiting_job_goes_first_once_patience_is_over(self) -> None:
        week = 7 * DAY
        jobs = [request("high", user="carol", fixed=19), request("new", user="dave", fixed=1)]
        jobs += [request(f"old{i}", ago=week + 9 - i, fixed=0) for i in range(3)]
        jobs += [request("bob", user="bob", ago=week + 5, fixed=0)]
        assert ordered(jobs, only(fixed=1)) == ["old0", "bob", "high", "new", "old1", "old2"]


class TestWhereItGoes:
    def test_rank_is_over_the_largest_where_all_are_positive(self) -> None:
        assert rank_part(np.array([50.0, 100.0, 0.0]), ALL)[0].tolist() == [0.5, 1, 0]

    def test_rank_is_over_the_smallest_where_all_are_negative(self) -> None:
        assert rank_part(np.array([-10.0, -100.0, -50.0]), ALL)[0].tolist() == [0.9, 0, 0.5]

    def test_rank_between_signs_is_one_line(self) -> None:
        assert rank_part(np.array([-1.0, 0.0, 3.0]), ALL)[0].tolist() == [0, 0.25, 1]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_rank_that_is_no_number_counts_for_none(self, bad: float) -> None:
        part, lost = rank_part(np.array([bad, 5.0, 1.0]), ALL)
        assert lost and part.tolist() == [0, 0, 0]
        part, lost = rank_part(np.array([bad, 5.0, 1.0]), np.array([False, True, True]))
        assert not lost and part[1:].tolist() == [1, 0.2], "of what it may not use nothing is wanted"

    def test_ranks_too_far_apart_for_arithmetic_are_no_numbers(self) -> None:
        assert rank_part(np.array([1e308, -1e308, 0.0]), ALL)[1]

    def test_usage_is_the_shortest_time_over_its_own(self) -> None:
        assert usage_part(np.array([100.0, 400.0, math.nan]), ALL).tolist() == [1, 0.25, 0.25]
        assert usage_part(np.array([math.nan] * 3), ALL).tolist() == [0, 0, 0]
        assert usage_part(np.array([0.0, 4.0, 1.0]), ALL).tolist() == [1, 0.25, 1], "less than a second is a second"

    def test_expected_time_weighs_the_last_job_against_the_mean(self) -> None:
        assert Record(3, 0, mean=100.0, last=200.0).expected(0.25) == 125.0
        assert Record(1, 0, mean=None, last=200.0).expected(0.25) == 200.0
        assert Record(1, 0, mean=100.0).expected(0.25) == 100.0
        assert Record(0, 2).expected(0.25) is None

    def test_failures_rank_down(self) -> None:
        reliability = np.array([Record(0, 0).reliability, Record(0, 1).reliability, Record(7, 2).reliability])
        assert failure_part(reliability, ALL).tolist() == [1, 0.5, 0.8]

    def test_bans_grow_from_the_first_failure(self) -> None:
        first = banned(None, NOW, 3600, 650)
        assert first == Ban(NOW, NOW + 360)
        assert banned(first, NOW + 10, 3600, 650) == first, "the same fault"
        later = banned(first, NOW + 650, 3600, 650)
        assert later.until == pytest.approx(NOW + 650 + 3600 * (1 - math.exp(-1)))
        assert banned(first, NOW + 11, 3600, 650).until == first.until, "never shorter than it was"
        assert banned(None, NOW, 0, 650).until == NOW, "no bans"

    def test_suitability_decides_and_fixed_priority_zero_is_never(self) -> None:
        where = sites({"a": 10, "b": 10, "c": 10}, rank=[10, 100, 1000])
        assert cycle([request("j")], where).placed == {"j": "c"}
        never = SchedulingPolicy(resources=ResourcePolicies(fixed=FixedResources(resources={"c": 0})))
        assert cycle([request("j")], where, never).placed == {"j": "b"}
        # a: 3·1 + 0.1; b: 3·(10/99) + 1
        heavy = msgspec.structs.replace(GRIDWAYS, fixed=FixedResources(3.0, resources={"a": 99, "b": 10, "c": 0}))
        found = cycle([request("j")], where, SchedulingPolicy(resources=heavy))
        assert found.placed == {"j": "a"}
        rank = {c.site: c.rank for c in explain(found, "j").candidates}
        assert rank == {"a": pytest.approx(3 + 0.1 + 1), "b": pytest.approx(30 / 99 + 1 + 1), "c": None}

    def test_a_quicker_and_a_more_reliable_site_is_preferred(self) -> None:
        fast = Usage(records={"alice": {"a": Record(1, 0, 100.0, 100.0), "b": Record(1, 0, 50.0, 50.0)}})
        assert cycle([request("j")], sites({"a": 10, "b": 10}), None, fast).placed == {"j": "b"}
        liar = Usage(records={"alice": {"a": Record(0, 3)}})
        assert cycle([request("j")], sites({"a": 10, "b": 10}), None, liar).placed == {"j": "b"}
        policy = SchedulingPolicy(
            resources=ResourcePolicies(usage=UsageSetting(0.0), failure=FailureSetting(0.0)),
        )
        assert cycle([request("j")], sites({"a": 10, "b": 10}), policy, liar).placed == {"j": "a"}

    def test_a_ban_holds_for_its_user_and_its_time(self) -> None:
        where = sites({"a": 10, "b": 1})
        usage = Usage(bans={"alice": {"a": Ban(NOW - 60, NOW + 60)}})
        assert cycle([request("j"), request("k", user="bob")], where, None, usage).placed == {"j": "b", "k": "a"}
        found = cycle([request("j")], sites({"a": 10}), None, usage)
        assert "1 banned for alice" in found.waiting["j"]
        assert explain(found, "j").candidates[0].verdict == "banned for alice after failures, for another 60 s"
        assert assign([request("j")], where, SchedulingPolicy(), usage, NOW + 60).placed == {"j": "a"}

    def test_what_is_to_be_avoided_is_out_and_what_failed_it_comes_last(self) -> None:
        where = sites({"a": 1, "b": 1}, rank=[9, 1])
        assert cycle([request("j", avoid=frozenset({"a"}))], where).placed == {"j": "b"}
        assert cycle([request("j", tried=frozenset({"a"}))], where).placed == {"j": "b"}
        alone = sites({"a": 1})
        assert cycle([request("j", tried=frozenset({"a"}))], alone).placed == {"j": "a"}
        assert cycle([request("j", avoid=frozenset({"a"}))], alone).placed == {}

    def test_a_sites_name_stands_for_its_nodes_and_a_node_for_itself(self) -> None:
        inf = np.full(3, np.inf)
        where = Candidates(["a1", "a2", "b1"], ["a", "a", "b"], inf, inf, inf, inf, {"a": 9, "b": 9}, {"a": 9, "b": 9},
                           np.ones((1, 3), dtype=bool), np.array([[3.0, 2.0, 1.0]]))  # fmt: skip
        assert cycle([request("j", avoid=frozenset({"a"}))], where).placed == {"j": "b1"}
        assert cycle([request("j", avoid=frozenset({"a1"}))], where).placed == {"j": "a2"}
        usage = Usage(records={"alice": {"a2": Record(1, 0, 10.0, 10.0), "a": Record(0, 99)}})
        assert cycle([request("j")], where, None, usage).placed == {"j": "a2"}, "its own record goes before its site's"


class TestACycle:
    def test_work_spreads_over_equals_by_what_is_free(self) -> None:
        found = cycle([request(f"j{i}", seconds=60) for i in range(6)], sites({"a": 2, "b": 4, "c": 3}))
        assert list(found.placed.values()) == ["b", "b", "c", "a", "b", "c"]

    def test_capacity_is_counted_down(self) -> None:
        where = sites({"a": 10, "b": 10}, rank=[2, 1], free_cores=[4, 8], total_cores=[8, 8],
                      free_memory=[100, 100], total_memory=[100, 100])  # fmt: skip
        jobs = [request("two", cores=2), request("three", cores=3), request("fat", memory=101), request("one", cores=1)]
        found = cycle(jobs, where, only())
        assert found.placed == {"two": "a", "three": "b", "one": "a"}
        assert found.waiting == {"fat": "no room at any of 2 that it may use: 2 without 0 MiB of free memory"}
        assert explain(found, "three").candidates[0].verdict == "2 of 8 cores free, 3 wanted"
        assert where.free_cores.tolist() == [4, 8], "what was given is not touched"

    def test_limits_of_user_project_site_and_cycle(self) -> None:
        jobs = [request(f"a{i}", seconds=60) for i in range(3)] + [request("b", user="bob", project="lab")]
        where = sites({"a": 10, "b": 10}, rank=[2, 1])
        usage = Usage(running_users={"alice": 1}, running_projects={"lab": 2}, running_sites={"a": 5})

        def placed(**limits: Any) -> dict[str, str]:
            return cycle(jobs, where, SchedulingPolicy(limits=Limits(**limits)), usage).placed

        assert len(placed()) == 4
        assert list(placed(user=2)) == ["a0", "b"]
        assert list(placed(user=2, users={"alice": 3})) == ["a0", "b", "a1"]
        assert list(placed(project=2)) == ["a0", "a1"]
        assert list(placed(projects={"lab": 2})) == ["a0", "a1", "a2"]
        assert list(placed(sites={"a": 6}).values()) == ["a", "b", "b", "b"]
        assert len(placed(cycle=2)) == 2
        words = cycle(jobs, where, SchedulingPolicy(limits=Limits(user=1)), usage).waiting["a0"]
        assert words == "alice has 1 jobs queued and running at sites, all that the policy allows a user"

    def test_what_no_resource_matches_says_so(self) -> None:
        found = cycle([request("j")], sites({"a": 10, "b": 10}, eligible=[False, False]))
        assert found.waiting == {"j": "none of 2 resources matches it"}
        assert cycle([request("j")], sites({})).waiting == {"j": "there is no resource"}
        words = explain(found, "j", lambda group, row: f"group {group}: Memory >= 4096, and it has 2048")
        assert words.candidates[0].verdict == "group 0: Memory >= 4096, and it has 2048"

    def test_an_urgent_job_keeps_a_resource_that_small_ones_would_fill(self) -> None:
        where = sites({"a": 10}, free_cores=[3], total_cores=[8])
        jobs = [request(f"small{i}") for i in range(3)]
        assert len(cycle([*jobs, request("big", cores=8)], where).placed) == 3
        found = cycle([*jobs, request("big", cores=8, fixed=URGENT)], where)
        assert found.placed == {}
        assert found.waiting["big"].startswith("a is kept for it until there is room; ")
        assert found.waiting["small0"] == "no room at any of 1 that it may use: 1 kept for jobs that come first"
        assert explain(found, "small0").candidates[0].verdict == "kept for a job that comes first"
        too_big = cycle([*jobs, request("big", cores=9, fixed=URGENT)], where)
        assert len(too_big.placed) == 3, "nothing is kept for what will never fit"

    def test_a_thousand_jobs_do_not_keep_one_out(self) -> None:
        jobs = [request(f"a{i}", ago=10, seconds=60) for i in range(1000)] + [request("b", user="bob", seconds=60)]
        assert "b" in list(cycle(jobs, sites({"a": 10})).placed)[:2]

    def test_a_bad_rank_loses_only_itself(self) -> None:
        base = sites({"a": 9, "b": 10})
        where = Candidates(base.names, base.sites, base.free_cores, base.total_cores, base.free_memory,
                           base.total_memory, base.free_places, base.total_places,
                           np.ones((2, 2), dtype=bool), np.array([[math.inf, 1.0], [2.0, 1.0]]))  # fmt: skip
        found = cycle([request("bad", group=0), request("good", group=1)], where)
        assert found.placed == {"bad": "b", "good": "a"}
        assert list(found.warnings) == ["bad"]
        full = replace(where, free_places={"a": 0, "b": 0})
        assert list(cycle([request("one"), request("two")], full).warnings) == ["one", "two"], "those that wait, too"
        assert "its rank is not a number" in explain(found, "bad").summary

    def test_everything_is_explained_as_it_was(self) -> None:
        where = sites({"a": 1, "b": 1, "c": 0, "d": 1}, rank=[3, 2, 9, 1], eligible=[True, True, True, False])
        found = cycle([request("first", ago=2), request("second", ago=1), request("third")], where)
        assert found.placed == {"first": "a", "second": "b"}
        second = explain(found, "second")
        assert (second.position, second.summary) == (2, "goes to b")
        assert second.priority == "1.00 = 1·fixed 0.00 + 1·share 1.00 + 0·waiting 0.50 + 1·deadline 0.00"
        assert [(c.site, c.chosen, c.verdict) for c in second.candidates] == [
            ("a", False, "no room for more at a (max jobs: 10)"),
            ("b", True, "suits best: 2.22 (fixed 1.00, rank 0.22, usage 0.00, failure 1.00)"),
            ("c", False, "no room for more at c (max jobs: 10)"),
            ("d", False, "does not meet the job's requirements"),
        ]
        lost = explain(found, "first").candidates[1].verdict
        assert lost == "suits less than a: 2.22 (fixed 1.00, rank 0.22, usage 0.00, failure 1.00)"
        assert explain(found, "third").summary == "no room at any of 3 that it may use: 3 with their max jobs"
        with pytest.raises(KeyError, match="explain nobody: it was not among the 3 jobs"):
            explain(found, "nobody")

    def test_tables_that_do_not_fit_together_are_refused(self) -> None:
        with pytest.raises(ValueError, match="2 columns"):
            sites({"a": 1, "b": 1}, rank=[1.0])
        with pytest.raises(ValueError, match="plan j: it is of group 1, and the matcher has 1"):
            cycle([request("j", group=1)], sites({"a": 1}))


class TestMoving:
    def test_waiting_longer_than_its_patience(self) -> None:
        assert not waits_too_long(599, 600)
        assert not waits_too_long(1e9, 0), "it waits for ever"
        assert waits_too_long(601, 600) == "it has waited 601 s in the queue, and its patience is 600 s"

    def test_running_below_its_predicted_rate(self) -> None:
        assert not runs_too_slowly(5, 10, 600, 0.5, 600)
        assert not runs_too_slowly(1, 10, 599, 0.5, 600), "too early to say"
        assert not runs_too_slowly(1, 0, 600, 0.5, 600), "nothing was predicted"
        assert runs_too_slowly(4, 10, 600, 0.5, 600) == "it runs at 40% of the predicted rate, below 50%"

    def test_moving_only_for_a_gain_above_the_cost_and_a_higher_rank(self) -> None:
        here, there = Outlook(rate=1.0, rank=1.0), Outlook(rate=2.0, wait=100.0, rank=2.0)
        assert not worth_moving(1000, here, there, cost=400)  # 1000 s against 600 s: a gain of 400 s
        words = worth_moving(1000, here, there, cost=399)
        assert words == "it ranks 2 there and 1 here; it would be done 400 s sooner, and moving costs 399 s"
        assert not worth_moving(1000, here, Outlook(2.0, 100.0, rank=1.0), cost=0)
        assert worth_moving(1000, Outlook(0.0), there, cost=1e6)
        assert not worth_moving(1000, Outlook(0.0), Outlook(0.0, rank=9.0), 0)
