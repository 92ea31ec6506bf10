"""Tokens: how they look, and what is kept of them. Pure: chance and time come in as arguments.

A token's secret is 64 hexadecimal digits that the service made by chance, of which it keeps only the SHA-256. A slow
hash with salt is for what people choose; nobody can go through 2^256 secrets, and each request pays for the hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from gridhypervisor.model.access import Caller, Scope, TokenView

PREFIX = "ghv"
"""What a token begins with, so that whoever finds one in a file or a log knows what it is."""

SECRET_BYTES = 32

LONGEST = 366 * 86400
"""Seconds: no token is good for longer."""

_TOKEN = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_([0-9a-f]{{{2 * SECRET_BYTES}}})")


@dataclass(frozen=True)
class Token:
    """One token: everything but its secret. Times are in seconds since the epoch."""

    id: str
    owner: str
    project: str
    name: str  # for people: where it is used
    scope: Scope
    digest: str  # SHA-256 of the whole token, hex
    created: float
    expires: float
    outbound: bool = False  # its guests may reach what the sites' accounts can reach
    revoked: float | None = None
    version: int = 0

    def good(self, now: float) -> bool:
        return self.revoked is None and now < self.expires

    @property
    def caller(self) -> Caller:
        return Caller(self.owner, self.project, self.scope, token=self.id, expires=self.expires, outbound=self.outbound)


def view(token: Token, secret: str = "") -> TokenView:
    told = {name: getattr(token, name) for name in TokenView.__struct_fields__ if name != "secret"}
    return TokenView(**told, secret=secret)


def make_secret(chance: bytes) -> tuple[str, str]:
    """(id, token) out of 38 bytes by chance."""
    digits = chance.hex()
    return digits[:12], f"{PREFIX}_{digits[:12]}_{digits[12:]}"


CHANCE = 6 + SECRET_BYTES
"""Bytes that `make_secret` wants."""


def token_id(text: str) -> str:
    """The id in a token; empty: the text has not a token's form."""
    match = _TOKEN.fullmatch(text)
    return match[1] if match else ""


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fits(token: Token, text: str) -> bool:
    """Whether the text is this token; takes as long whatever part of it is wrong."""
    return hmac.compare_digest(token.digest, digest_of(text))
