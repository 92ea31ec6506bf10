"""Wakes those who follow a job, or all events, when there may be something new for them to look at."""

from __future__ import annotations

import asyncio


class Followers:
    def __init__(self) -> None:
        self._of_job: dict[str, set[asyncio.Event]] = {}
        self._of_events: set[asyncio.Event] = set()

    def follow(self, job: str, event: asyncio.Event) -> None:
        """Set the event whenever something of the job changes, until `unfollow`."""
        self._of_job.setdefault(job, set()).add(event)

    def unfollow(self, job: str, event: asyncio.Event) -> None:
        events = self._of_job.get(job, set())
        events.discard(event)
        if not events:
            self._of_job.pop(job, None)

    def watch_events(self, event: asyncio.Event) -> None:
        """Set the event whenever events are written, until `unwatch_events`."""
        self._of_events.add(event)

    def unwatch_events(self, event: asyncio.Event) -> None:
        self._of_events.discard(event)

    def announce(self, job: str) -> None:
        for event in self._of_job.get(job, ()):
            event.set()

    def announce_events(self) -> None:
        for event in self._of_events:
            event.set()
