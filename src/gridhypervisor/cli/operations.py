"""Follows an operation of the service to its end: progress on stderr, the result to the caller."""

from __future__ import annotations

import sys
from typing import Any

from gridhypervisor.cli.output import dim, echo
from gridhypervisor.client.sync import Client
from gridhypervisor.model.views import Operation


def finish(client: Client, operation: Operation, *, quiet: bool = False) -> Any:
    """The operation's result, as plain JSON types.

    Raises:
        ServiceError: the operation failed.
    """
    live = sys.stderr.isatty()
    drawn = False
    try:
        for item in client.follow_operation(operation):
            if item.kind == "done":
                return item.result
            if item.message and not quiet:
                clear = "\r\x1b[2K" if live else ""
                echo(f"{clear}{dim('ghv:')} {item.message}", err=True, newline=not live)
                drawn = live
    finally:
        if drawn:
            echo("\r\x1b[2K", err=True, newline=False)
    raise AssertionError("an operation's stream ends with done or an error")
