"""The store, called from one thread of its own: the loop goes on meanwhile, and calls keep their order.

It knows how to write much at once so that what cannot be written hurts nobody else. What is written, others decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from gridhypervisor.execution.counts import Counts

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class StoreThread:
    def __init__(self, counts: Counts | None = None) -> None:
        self._counts = counts or Counts()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a store call on the thread."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            return await loop.run_in_executor(self._thread, partial(function, *args, **kwargs))
        finally:
            called = function.func if isinstance(function, partial) else function
            self._counts.calls[getattr(called, "__name__", "other")] += 1
            self._counts.store.add(loop.time() - begun)

    async def together(
        self, write: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]
    ) -> Sequence[R | Exception]:
        """Write all in one transaction; the result of each, or why it could not be written.

        Where the transaction fails, each gets one of its own: one that cannot be written must not keep the others
        from it.
        """
        try:
            return await self(write, items)
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [result for item in items for result in await self.together(write, [item])]

    def close(self) -> None:
        self._thread.shutdown()
