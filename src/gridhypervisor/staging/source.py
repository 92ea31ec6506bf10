"""What `fetch` asks of a kind of URL, and the ways in which that can go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

CHUNK = 64 << 10
"""Bytes that a source gathers at most before it gives them on: those a cut connection takes with it."""


@dataclass(frozen=True)
class Answer:
    """Bytes on their way. `start` is the offset of the first: 0 where the source began afresh."""

    start: int
    total: int | None  # size of the whole, where the source says it
    version: str  # names this very content, as the source does; empty: it does not
    chunks: Iterator[bytes]  # raises Interrupted


class Unchanged(Exception):
    """The source still has the version that was named."""


class Interrupted(Exception):
    """This try failed, and another may not. `after`: seconds that the source asks us to wait; 0: it did not say."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Source(Protocol):
    """One object at one URL."""

    def get(self, start: int, version: str, unless: str) -> AbstractContextManager[Answer]:
        """Its bytes from `start` on, if it is still of `version` (empty: whichever), else from 0.

        Raises:
            Unchanged: it is of the version `unless` (empty: no such wish).
            Interrupted: not this time.
            InputError: never.
        """
