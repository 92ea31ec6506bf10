"""Long work that is not a job (building an image, checking a site): started, followed, remembered for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gridhypervisor.model.views import Operation, OperationItem, Problem, ServiceError

KEPT = 100
"""Ended operations whose story is still told."""

Progress = Callable[[str], None]


class Operations:
    def __init__(self, describe: Callable[[Exception], Problem]) -> None:
        self._describe = describe
        self._items: dict[str, list[OperationItem]] = {}
        self._changed: dict[str, asyncio.Condition] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._count = 0

    def start(self, work: Callable[[Progress], Awaitable[Any]]) -> Operation:
        """Begin it. `work` is given a function, callable from any thread, that tells progress in one line."""
        self._count += 1
        operation = f"op{self._count}"
        self._items[operation] = []
        self._changed[operation] = asyncio.Condition()
        self._tasks[operation] = asyncio.create_task(self._run(operation, work))
        for old in [o for o in self._items if o not in self._tasks][: -KEPT or None]:
            del self._items[old], self._changed[old]
        return Operation(operation)

    def list(self) -> list[Operation]:
        """Those that are still told of, oldest first."""
        return [Operation(name, self._state(name)) for name in self._items]

    def _state(self, operation: str) -> str:
        last = self._items[operation][-1].kind if self._items[operation] else "progress"
        return {"done": "done", "error": "failed"}.get(last, "running")

    async def follow(self, operation: str) -> AsyncIterator[OperationItem]:
        """Everything it said from its beginning, and what it says until it ends."""
        items = self._items.get(operation)
        if items is None:
            raise _none(operation, "follow")
        told = 0
        while True:
            while told < len(items):
                yield items[told]
                told += 1
                if items[told - 1].kind != "progress":
                    return
            async with self._changed[operation]:
                if told == len(items):
                    await self._changed[operation].wait()

    async def stop(self, operation: str) -> None:
        """End it before its time; one that has ended stays so. What it has put into a thread goes on there."""
        if operation not in self._items:
            raise _none(operation, "stop")
        if (task := self._tasks.get(operation)) is not None:
            task.cancel()
            await asyncio.wait({task})

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, operation: str, work: Callable[[Progress], Awaitable[Any]]) -> None:
        loop = asyncio.get_running_loop()
        waiting: set[asyncio.Task[None]] = set()

        def tell(words: str) -> None:
            loop.call_soon_threadsafe(note, words)

        def note(words: str) -> None:
            task = loop.create_task(self._add(operation, OperationItem("progress", words)))
            waiting.add(task)
            task.add_done_callback(waiting.discard)

        try:
            result = await work(tell)
            last = OperationItem("done", result=result)
        except asyncio.CancelledError:
            last = OperationItem("error", problem=Problem("finish the operation", 409, "conflict", "it was stopped"))
        except Exception as error:  # whatever it is, its follower is to hear of it
            last = OperationItem("error", problem=self._describe(error))
        finally:
            del self._tasks[operation]
        await asyncio.sleep(0)  # what other threads told before the end comes before it
        if waiting:
            await asyncio.wait(waiting)
        await self._add(operation, last)

    async def _add(self, operation: str, item: OperationItem) -> None:
        async with self._changed[operation]:
            self._items[operation].append(item)
            self._changed[operation].notify_all()


def _none(operation: str, what: str) -> ServiceError:
    why = "there is none of this name, or the service was restarted since"
    return ServiceError(Problem(f"{what} operation {operation}", 404, "not-found", why))
