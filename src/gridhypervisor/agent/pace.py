"""A token bucket for bytes: how long to wait before they may go. Pure; who waits is the relay."""

from __future__ import annotations

BURST = 1.0
"""Seconds' worth of bytes that may go at once, after a rest."""


class Pace:
    """Time is the caller's, in seconds on any clock that does not jump."""

    def __init__(self) -> None:
        self._clear_at = 0.0  # when all that was taken will have gone at the rate

    def delay(self, size: int, rate: int, now: float) -> float:
        """Take so many bytes at so many a second; seconds to wait before they may go."""
        self._clear_at = max(self._clear_at, now - BURST) + size / rate
        return max(0.0, self._clear_at - now)
