"""Submissions to one site: alone at once, many together, each with an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from gridhypervisor.execution.submissions import Submissions
from gridhypervisor.model.batch import Rates, Submission, Submitted
from gridhypervisor.model.errors import LinkLost
from gridhypervisor.planning.pacing import MOST
from gridhypervisor.simulation.loop import VirtualLoop


def job(number: int) -> Submission:
    return Submission(f"a1b-j{number}-1", "/w", "/w/start", "", 1, 1 << 20, 60)


class Site:
    """A connection, its driver and the batch system behind them: what was asked, and an answer by a rule."""

    site = None

    def __init__(
        self,
        answer: Callable[[Submission, int], bool | str | None] = lambda job, together: True,
        rates: Rates = Rates(),  # noqa: B008
    ) -> None:
        """The rule says yes, no, nothing, or why it is too busy."""
        self.driver, self.asked, self.answer, self.rates = self, list[list[str]](), answer, rates
        self.times: list[float] = []  # of `asked`
        self.open = asyncio.Event()
        self.open.set()

    def submit(self, jobs: Sequence[Submission], site: object) -> list[str]:
        return [job.name for job in jobs]

    def submitted(self, jobs: Sequence[Submission], results: Sequence[str]) -> dict[str, Submitted]:
        assert [job.name for job in jobs] == results
        return {job.name: _submitted(self.answer(job, len(jobs)), f"id of {job.name}") for job in jobs}

    async def batch(self, commands: list[str]) -> list[str]:
        self.asked.append(commands)
        self.times.append(asyncio.get_running_loop().time())
        await self.open.wait()
        if self.answer(job(0), 0) is None:
            raise LinkLost("cut")
        return commands


def _submitted(answer: bool | str | None, batch_id: str) -> Submitted:
    return Submitted(False, message=answer, busy=True) if isinstance(answer, str) else Submitted(answer, batch_id)


def submissions(site: Site, **told: Any) -> Submissions:
    return Submissions(cast(Any, site), **told)


def in_virtual_time(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story)


def names(*numbers: int) -> list[str]:
    return [job(number).name for number in numbers]


def test_what_comes_while_one_is_under_way_goes_together_after_it() -> None:
    async def scenario() -> None:
        site = Site()
        at = submissions(site)
        site.open.clear()
        first = asyncio.create_task(at.submit(job(1)))
        while not site.asked:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(at.submit(job(number))) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        assert site.asked == [names(1)]
        rest[1].cancel()
        site.open.set()
        assert (await first).batch_id == "id of a1b-j1-1"
        assert [(await rest[at]).batch_id for at in (0, 2)] == ["id of a1b-j2-1", "id of a1b-j4-1"]
        assert site.asked == [names(1), names(2, 4)]
        await at.submit(job(5))
        assert site.asked[-1] == names(5)

    asyncio.run(scenario())


def test_one_that_stops_waiting_takes_no_other_with_it() -> None:
    async def scenario() -> None:
        site = Site()
        at = submissions(site)
        site.open.clear()
        both = [asyncio.create_task(at.submit(job(number))) for number in (1, 2)]
        while not site.asked:
            await asyncio.sleep(0)
        both[0].cancel()
        await asyncio.sleep(0)
        site.open.set()
        assert (await both[1]).accepted

    asyncio.run(scenario())


def test_what_is_refused_among_others_is_tried_alone() -> None:
    async def scenario() -> None:
        site = Site(lambda job, together: job.name != names(2)[0] and together == 1)
        at = submissions(site)
        answers = await asyncio.gather(*(at.submit(job(number)) for number in (1, 2, 3)))
        assert [answer.accepted for answer in answers] == [True, False, True]
        assert site.asked == [names(1, 2, 3), names(1), names(2), names(3)]
        await asyncio.gather(*(at.submit(job(number)) for number in (4, 5)))
        assert site.asked[4:] == [
            names(4, 5),
            names(4),
            names(5),
        ]  # the first group may have been refused for one's sake
        await asyncio.gather(*(at.submit(job(number)) for number in (6, 7)))
        assert site.asked[7:] == [names(6), names(7)]  # the second was not: this site takes no groups

    asyncio.run(scenario())


def test_a_cut_is_told_to_all_that_were_under_way_and_to_nobody_else() -> None:
    async def scenario() -> None:
        cut = [True]
        site = Site(lambda job, together: None if cut[0] else True)
        at = submissions(site)
        for answer in await asyncio.gather(*(at.submit(job(number)) for number in (1, 2)), return_exceptions=True):
            assert isinstance(answer, LinkLost)
        cut[0] = False
        assert (await at.submit(job(3))).accepted
        cut[0] = True
        with pytest.raises(LinkLost):
            await at.submit(job(4))

    asyncio.run(scenario())


def test_no_more_are_submitted_than_the_rate_allows_and_a_lone_one_does_not_wait() -> None:
    async def scenario() -> None:
        site = Site(rates=Rates(jobs=6))
        at = submissions(site)
        await asyncio.gather(*(at.submit(job(number)) for number in range(1, 15)))
        assert [len(asked) for asked in site.asked] == [6, 6, 2]
        assert site.times == pytest.approx([0, 60, 120])
        assert at.describe() == "at most 6 jobs a minute"
        await asyncio.sleep(100)
        await at.submit(job(15))
        assert site.times[-1] == pytest.approx(220)

    in_virtual_time(scenario())


def test_what_a_site_is_too_busy_for_is_tried_again_ever_more_seldom_and_keeps_its_turn() -> None:
    async def scenario() -> None:
        now = asyncio.get_running_loop().time
        room, told = list[float](), dict[str, str]()
        site = Site(lambda job, together: True if now() > 600 else "qsub: only 2 jobs are allowed per user")
        at = submissions(site, room=lambda: room.append(now()), tell=told.__setitem__)
        first = asyncio.create_task(at.submit(job(1)))
        await asyncio.sleep(1)
        assert at.busy == "qsub: only 2 jobs are allowed per user"
        assert at.describe() == f"{at.busy}; tried again in 4 s; waiting: 1"
        assert "only 2 jobs" in told[job(1).name]
        second = asyncio.create_task(at.submit(job(2)))
        await asyncio.sleep(0)
        assert "only 2 jobs" in told[job(2).name]
        assert (await first).accepted and (await second).accepted and not at.busy
        gaps = [after - before for before, after in zip(site.times, site.times[1:], strict=False)]
        assert gaps[0] == pytest.approx(5) and max(gaps) == pytest.approx(MOST)
        assert len(site.times) <= 20  # as a group and, that being refused, for one of it
        assert len(room) == 1 and room[0] <= 600 + MOST
        assert at.describe() == ""

    in_virtual_time(scenario())


def test_a_site_that_takes_some_of_a_group_gets_the_rest_later_and_is_not_asked_for_each() -> None:
    async def scenario() -> None:
        now, there = asyncio.get_running_loop().time, set[str]()

        def answer(job: Submission, together: int) -> bool | str:
            if together != 1 or (len(there) >= 2 and now() < 60):
                return "too many"
            there.add(job.name)
            return True

        site = Site(answer)
        at = submissions(site)
        answers = await asyncio.gather(*(at.submit(job(number)) for number in range(1, 6)))
        assert all(answer.accepted for answer in answers)
        before = [asked for asked, time in zip(site.asked, site.times, strict=True) if time == 0]
        assert before == [names(1, 2, 3, 4, 5), names(1), names(2), names(3)]
        assert now() < 60 + MOST

    in_virtual_time(scenario())


def test_after_no_answer_the_others_leave_it_alone_for_a_while_and_that_one_does_not_go_again() -> None:
    async def scenario() -> None:
        site = Site(lambda job, together: None if job.name == names(1)[0] else True)
        at = submissions(site)
        assert (await at.submit(job(1))).accepted is None
        assert (await at.submit(job(2))).accepted
        assert site.asked == [names(1), names(2)]
        assert site.times == pytest.approx([0, 5])

    in_virtual_time(scenario())


@pytest.mark.parametrize("how", ["withdrawn", "closed"])
def test_what_waits_can_be_called_back_and_was_surely_never_submitted(how: str) -> None:
    async def scenario() -> None:
        site = Site(lambda job, together: "too many")
        at = submissions(site)
        waits = asyncio.create_task(at.submit(job(1)))
        await asyncio.sleep(1)
        at.withdraw(job(1).name) if how == "withdrawn" else at.close()
        answer = await waits
        assert answer.accepted is False and answer.busy
        await asyncio.sleep(1000)
        assert site.asked == [names(1)]
        assert not at.busy or how == "closed"

    in_virtual_time(scenario())


def test_one_called_back_while_it_is_under_way_has_the_sites_answer_and_is_not_tried_again() -> None:
    async def scenario() -> None:
        site = Site(lambda job, together: "too many" if job.name == names(1)[0] else True)
        at = submissions(site)
        site.open.clear()
        both = [asyncio.create_task(at.submit(job(number))) for number in (1, 2)]
        while not site.asked:
            await asyncio.sleep(0)
        for number in (1, 2):
            at.withdraw(job(number).name)
        site.open.set()
        assert [(await each).accepted for each in both] == [False, True]
        await asyncio.sleep(1000)
        assert names(1) not in site.asked[2:]

    in_virtual_time(scenario())
