"""What the service keeps of and for those who use it: tokens, what requests were answered, whose is what, results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gridhypervisor.execution.answers import Answers
from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.infrajobs import InfrastructureJobs
from gridhypervisor.execution.jobs import job_of
from gridhypervisor.execution.tokens import Tokens
from gridhypervisor.model.access import Answer, Caller, Result, TokenRequest, TokenView
from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.model.wire import ImageManifest


class Users(InfrastructureJobs):
    """The part of the API's backend that is about users. `chance`: so many bytes that nobody can guess."""

    def __init__(
        self,
        controller: Controller,
        resolve: Callable[[str], tuple[str, ImageManifest]],
        chance: Callable[[int], bytes],
        owner: str,
        project: str,
    ) -> None:
        super().__init__(controller, resolve, owner, project)
        self._tokens = Tokens(self.store, controller.in_store, controller.clock, chance)
        self._answers = Answers(self.store, controller.in_store, controller.clock)

    async def load_tokens(self) -> None:
        """Call once, before anybody is served."""
        await self._tokens.load()

    def caller(self, token: str) -> Caller | None:
        return self._tokens.caller(token)

    async def answer(self, caller: Caller, key: str) -> Answer | None:
        return await self._answers.find(caller.owner, caller.project, key)

    async def keep_answer(self, answer: Answer) -> None:
        await self._answers.keep(answer)

    async def tokens(self) -> list[TokenView]:
        return self._tokens.list()

    async def create_token(self, request: TokenRequest, caller: Caller) -> TokenView:
        return await self._tokens.create(request, caller)

    async def revoke_token(self, token: str) -> TokenView:
        return await self._tokens.revoke(token)

    async def owner_of(self, name: str) -> str | None:
        """Of a job or a group, by its id, or of a checkpoint; None: there is no such thing."""
        name = job_of(name) or name
        if (case := self.controller.cases.get(name)) is not None:
            return case.job.owner
        if name[:1] != "j":
            group = await self.controller.groups.find(name)
            return group.owner if group is not None else None
        records = await self.controller.in_store(self.store.job, name)
        return records.job.owner if records is not None else None

    async def results(self, job: str) -> list[Result]:
        """What the service keeps of a job that was given no other place for its results; once they are all home."""
        case = await self._case(job)
        if case.job.destination or not case.job.state.final:
            return []
        return await asyncio.to_thread(self.logs.results, job)

    async def result(self, job: str, path: str, offset: int, limit: int) -> bytes:
        """At most so many bytes of one of them; empty: no more."""
        case = await self._case(job)
        data = None
        if not case.job.destination and case.job.state.final:
            data = await asyncio.to_thread(self.logs.result, job, path, offset, limit)
        if data is None:
            why = f"there is no file {path!r} among the results that are kept here"
            hint = f"GET /v1/jobs/{job}/results lists those there are"
            raise ServiceError(Problem(f"read a result of job {job}", 404, "not-found", why, hint))
        return data
