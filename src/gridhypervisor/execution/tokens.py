"""Tokens: made, listed, revoked, and looked up for each request. All are in memory, but for their secrets."""

from __future__ import annotations

from collections.abc import Callable

from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.model.access import Caller, TokenRequest, TokenView
from gridhypervisor.model.replacing import replace
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.token import CHANCE, LONGEST, Token, digest_of, fits, make_secret, token_id, view
from gridhypervisor.model.views import Problem, ServiceError


class Tokens:
    """`chance`: so many bytes that nobody can guess."""

    def __init__(
        self, store: Store, in_store: StoreThread, clock: Callable[[], float], chance: Callable[[int], bytes]
    ) -> None:
        self._store, self._in_store, self._clock, self._chance = store, in_store, clock, chance
        self._tokens: dict[str, Token] = {}

    async def load(self) -> None:
        self._tokens = {token.id: token for token in await self._in_store(self._store.tokens)}

    def caller(self, secret: str) -> Caller | None:
        """Whose it is; None: no token that is good now."""
        token = self._tokens.get(token_id(secret))
        if token is None or not fits(token, secret) or not token.good(self._clock()):
            return None
        return token.caller

    def list(self) -> list[TokenView]:
        """Oldest first, those that are not good any more too."""
        return [view(token) for token in self._tokens.values()]

    async def create(self, request: TokenRequest, caller: Caller) -> TokenView:
        """A new one, with its secret."""
        lasts = parse_duration(request.expires)
        if not 0 < lasts <= LONGEST:
            why = f"expires: {request.expires} is not between 1s and {LONGEST // 86400}d"
            raise ServiceError(Problem("create token", 422, "invalid", why, "make another one before it expires"))
        name, secret = make_secret(self._chance(CHANCE))
        now = self._clock()
        token = Token(
            id=name,
            owner=request.owner or caller.owner,
            project=request.project or caller.project,
            name=request.name,
            scope=request.scope,
            digest=digest_of(secret),
            created=now,
            expires=now + lasts,
            outbound=request.outbound,
            version=1,
        )
        await self._in_store(self._store.put_token, token)
        self._tokens[name] = token
        return view(token, secret)

    async def revoke(self, name: str) -> TokenView:
        """It is good for nothing from now on; once is enough."""
        while True:
            token = self._tokens.get(name)
            if token is None:
                hint = "`ghv token list` shows those there are"
                raise ServiceError(Problem(f"revoke token {name}", 404, "not-found", "there is no such token", hint))
            if token.revoked is not None:
                return view(token)
            revoked = replace(token, revoked=self._clock(), version=token.version + 1)
            if await self._in_store(self._store.put_token, revoked):
                self._tokens[name] = revoked
                return view(revoked)
            await self.load()
