"""The typed client: what other programs, and `ghv`, say to the service through its Unix socket.

It decides nothing about jobs. It turns calls into requests, answers into the records of `model.views`, problems into
`ServiceError`, and hides that the service may restart in between: calls are repeated where that is harmless, streams
go on where they broke off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridhypervisor.client.aio import AsyncClient
    from gridhypervisor.client.sync import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """Import a client when it is first asked for: a start of `ghv` should not pay for the asynchronous one."""
    if name == "Client":
        from gridhypervisor.client.sync import Client

        return Client
    if name == "AsyncClient":
        from gridhypervisor.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
