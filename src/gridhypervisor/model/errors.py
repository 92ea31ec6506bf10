"""Failures that more than one part must tell apart."""

from __future__ import annotations


class LinkLost(Exception):
    """The connection to a relay ended or a deadline passed: whether the request took effect is unknown."""


class LinkError(Exception):
    """A relay (or the way to it) answered that it will not or cannot; the request had no effect."""

    def __init__(self, message: str, kind: str = "refused", hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.hint = kind, hint


class InputError(Exception):
    """An input of a job cannot be had, however often it is tried."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
