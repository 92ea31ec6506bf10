"""Who uses the service, what each may do, and what is kept for him. No I/O.

The service's own user comes over the Unix socket and may do everything. All others come over the network with a token.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from gridhypervisor.model.spec import Duration

UserName = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._@-]{0,62})?$")]


class Scope(enum.StrEnum):
    """What a token is good for. One includes those before it."""

    READ = "read"  # look at what is its user's own, and at what all share: images, sites
    WRITE = "write"  # submit, change and remove what is its user's own
    ADMIN = "admin"  # the same of everybody's; sites' draining and checks, the policy, tokens

    def includes(self, other: Scope) -> bool:
        return ORDER.index(self) >= ORDER.index(other)


ORDER = list(Scope)


class Caller(msgspec.Struct, frozen=True):
    """Whoever asks for something. `local`: through the Unix socket, so it is the service's own user."""

    owner: str
    project: str
    scope: Scope = Scope.ADMIN
    local: bool = False
    token: str = ""  # its id
    expires: float | None = None  # in seconds since the epoch; None: never
    outbound: bool = True  # its guests may reach what the sites' accounts can reach

    @property
    def sees(self) -> str:
        """The owner of whom it sees what there is; empty: of all."""
        return "" if self.scope is Scope.ADMIN else self.owner


class TokenRequest(msgspec.Struct, frozen=True):
    """A token to be made. Without `owner` or `project` it has those of whoever asks."""

    scope: Scope = Scope.WRITE
    owner: UserName = ""
    project: UserName = ""
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    expires: Duration = "30d"  # from now on; at most 366d
    outbound: bool = False  # its jobs may ask for `network: outbound`


class TokenView(msgspec.Struct, frozen=True):
    """A token as people see it. `secret` is told once, in the answer to the request that made it."""

    id: str
    owner: str
    project: str
    name: str
    scope: Scope
    created: float
    expires: float
    outbound: bool = False
    revoked: float | None = None
    secret: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What a request with an Idempotency-Key was answered: its repetition is answered the same."""

    owner: str
    project: str
    key: str
    fingerprint: str  # of method, path and body
    at: float
    status: int
    content_type: str
    location: str
    body: str


class Upload(msgspec.Struct, frozen=True):
    """How much of a file has come: `size` bytes of those with this SHA-256. `complete`: all, and they are the ones."""

    sha256: str
    size: int
    complete: bool


class Result(msgspec.Struct, frozen=True):
    """A result that the service keeps with its job."""

    path: str  # in the job's results
    size: int
    mode: int = 0o644  # its permissions
    sha256: str = ""  # if the site told
    link: str = ""  # where it leads, if it is a symbolic link
