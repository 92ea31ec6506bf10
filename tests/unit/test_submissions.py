"""Submissions to one site: alone at once, many together, each with an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from gridhypervisor.execution.submissions import Submissions
from gridhypervisor.model.batch import Submission, Submitted
from gridhypervisor.model.errors import LinkLost


def job(number: int) -> Submission:
    return Submission(f"a1b-j{number}-1", "/w", "/w/start", "", 1, 1 << 20, 60)


class Site:
    """A connection, its driver and the batch system behind them: what was asked, and an answer by a rule."""

    site = None

    def __init__(self, answer: Callable[[Submission, int], bool | None] = lambda job, together: True) -> None:
        self.driver, self.asked, self.answer = self, list[list[str]](), answer
        self.open = asyncio.Event()
        self.open.set()

    def submit(self, jobs: Sequence[Submission], site: object) -> list[str]:
        return [job.name for job in jobs]

    def submitted(self, jobs: Sequence[Submission], results: Sequence[str]) -> dict[str, Submitted]:
        assert [job.name for job in jobs] == results
        return {job.name: Submitted(self.answer(job, len(jobs)), f"id of {job.name}") for job in jobs}

    async def batch(self, commands: list[str]) -> list[str]:
        self.asked.append(commands)
        await self.open.wait()
        if self.answer(job(0), 0) is None:
            raise LinkLost("cut")
        return commands


def submissions(site: Site) -> Submissions:
    return Submissions(cast(Any, site))


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
