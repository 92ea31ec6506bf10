"""Follows an operation of the service to its end: progress goes to stderr, the result to the caller."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from gridhypervisor.cli.output import GREEN, RED, YELLOW, dim, echo, emit, paint, plain
from gridhypervisor.client.sync import Client
from gridhypervisor.model.views import Check, Operation


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


def show_checks(result: Any, output: str, *, otherwise: int) -> int:
    """Print the checks that an operation made; returns the exit code: `otherwise` if one of them does not hold."""
    checks = msgspec.convert(result, list[Check])
    if output != "table":
        emit(checks, output)
    else:
        for item in checks:
            word, colour = {True: ("yes", GREEN), False: ("no", RED), None: ("unknown", YELLOW)}[item.holds]
            echo(f"{paint(word.ljust(7), colour)}  {item.claim}  {dim(plain(item.evidence))}")
    return otherwise if any(item.holds is False for item in checks) else 0
