"""Failures that more than one part must tell apart."""

from __future__ import annotations

from collections.abc import Callable


class LinkLost(Exception):
    """The connection to a relay ended or a deadline passed: whether the request took effect is unknown."""


class LinkError(Exception):
    """A relay (or the way to it) answered that it will not or cannot; the request had no effect."""

    def __init__(self, message: str, kind: str = "refused", hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.hint = kind, hint


class LoginNeeded(LinkError):
    """The host wants more than can be given without a person. Trying again unasked may lock the account.

    `came` says whether somebody may have opened a way in since: cheap, and without a word to the host. `passing`: such
    a login had worked before, so the fault may be the host's, and pass.
    """

    def __init__(self, message: str, hint: str, *, came: Callable[[], bool], passing: bool) -> None:
        super().__init__(message, "login", hint)
        self.came, self.passing = came, passing


class InputError(Exception):
    """An input of a job cannot be had, however often it is tried."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
