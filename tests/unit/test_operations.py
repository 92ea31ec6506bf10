"""Operations that are stopped before their time: who follows one is told, and what it has begun is put away first."""

from __future__ import annotations

import asyncio

import pytest

from gridhypervisor.execution.operations import Operations, Progress
from gridhypervisor.model.views import Problem, ServiceError


def test_one_that_is_stopped_puts_away_what_it_began_and_says_so_to_who_follows() -> None:
    async def story() -> None:
        operations, tidied = Operations(lambda error: Problem(str(error), 500, "internal")), asyncio.Event()

        async def work(progress: Progress) -> None:
            progress("begun")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # as a commit takes its time
                tidied.set()

        operation = operations.start(work).id
        followed = operations.follow(operation)
        assert (await anext(followed)).message == "begun"
        await operations.stop(operation)
        assert tidied.is_set(), "before who stopped it has an answer"
        last = await anext(followed)
        assert last.kind == "error" and last.problem is not None and last.problem.detail == "it was stopped"
        await operations.stop(operation)
        assert [item.kind async for item in operations.follow(operation)] == ["progress", "error"], "once is enough"
        with pytest.raises(ServiceError, match="stop operation op9"):
            await operations.stop("op9")
        await operations.close()

    asyncio.run(story())
