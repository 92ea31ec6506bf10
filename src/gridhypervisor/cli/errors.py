"""Turns what a command raised into words on stderr and an exit code."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

from gridhypervisor.cli import exits, output
from gridhypervisor.model.views import Problem, ServiceError

NO_FILE = "there is no such file or folder"


def not_there(paths: Sequence[str], hint: str = "") -> ServiceError:
    """The error of files or folders that were named, and cannot be read."""
    if len(paths) == 1:
        return ServiceError(Problem(f"open {paths[0]}", 404, "not-found", why_not_read(paths[0]), hint))
    why = "\n".join(f"{path}: {why_not_read(path)}" for path in paths)
    return ServiceError(Problem(f"open {len(paths)} files", 404, "not-found", why, hint))


def why_not_read(path: str) -> str:
    return "it cannot be read" if os.path.lexists(path) else NO_FILE


def report(error: Exception) -> int:
    """Say what went wrong, and return the exit code for it."""
    if isinstance(error, ServiceError):
        output.say_problem(error.problem)
        return exits.of_problem(error.problem)
    if type(error).__name__ == "SpecError":  # by name: its module costs an import that most commands need not pay
        for line in str(error).splitlines():
            output.echo(f"{output.paint('error:', output.RED)} {line}", err=True)
        return exits.Exit.MISSING if getattr(error, "missing", False) else exits.Exit.INVALID
    if isinstance(error, OSError) and error.filename is not None:
        why = NO_FILE if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        output.say_problem(Problem(f"open {os.fsdecode(error.filename)}", 404, "not-found", why))
        return exits.Exit.MISSING
    if os.environ.get("GHV_DEBUG"):
        traceback.print_exception(error)
    hint = "This is a fault in ghv. With GHV_DEBUG=1 set it also prints where it happened."
    output.say_problem(Problem("carry out the command", 500, "internal", f"{type(error).__name__}: {error}", hint))
    return exits.Exit.INTERNAL
