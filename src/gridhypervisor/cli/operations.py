"""Follows an operation of the service to its end: progress goes to stderr, the result to the caller."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from gridhypervisor.cli.exits import Exit
from gridhypervisor.cli.output import GREEN, RED, YELLOW, dim, echo, emit, fit, paint, plain, terminal_width
from gridhypervisor.client.sync import Client
from gridhypervisor.model.views import Check, Operation


def finish(client: Client, operation: Operation, *, quiet: bool = False) -> Any:
    """The operation's result, as plain JSON types.

    Raises:
        ServiceError: the operation failed.
    """
    width = terminal_width(sys.stderr) if os.environ.get("TERM") != "dumb" else None
    drawn = False
    try:
        for item in client.follow_operation(operation):
            if item.kind == "done":
                return item.result
            if item.message and not quiet:
                if drawn := width is not None:  # one line, drawn over
                    echo(f"\r\x1b[2K{dim('ghv:')} {fit(item.message, width - 6)}", err=True, newline=False)
                else:
                    echo(f"{dim('ghv:')} {item.message}", err=True)
    finally:
        if drawn:
            echo("\r\x1b[2K", err=True, newline=False)
    raise AssertionError("an operation's stream ends with done or an error")


def show_checks(result: Any, output: str, *, otherwise: int) -> int:
    """Print the checks that an operation made; returns the exit code: `otherwise` if one of them does not hold,
    UNAVAILABLE if nobody can tell of one."""
    checks = msgspec.convert(result, list[Check])
    if output != "table":
        emit(checks, output)
    else:
        for item in checks:
            word, colour = {True: ("yes", GREEN), False: ("no", RED), None: ("unknown", YELLOW)}[item.holds]
            echo(f"{paint(word.ljust(7), colour)}  {item.claim}  {dim(plain(item.evidence))}")
            if item.hint:
                echo(f"{'':7}  next: {plain(item.hint)}")
    if any(item.holds is False for item in checks):
        return otherwise
    return Exit.UNAVAILABLE if any(item.holds is None for item in checks) else Exit.OK
