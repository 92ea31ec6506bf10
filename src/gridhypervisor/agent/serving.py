"""Whether the program of a service is ready: its guest is asked again and again, until it says so for the first time.

What is asked stands in the job file, and runs inside the guest; here is when, and what of it is told to the service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gridhypervisor.agent.ending import now
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.report import Report
from gridhypervisor.model.wire import ReadyProbe

if TYPE_CHECKING:
    from gridhypervisor.agent.vm import Vm

MARGIN = 10.0
"""Seconds beyond a try's limit after which its answer is not waited for any more."""


class Serving:
    """Of one guest, from when its program was started. `probe`: None where that is all that it takes."""

    def __init__(
        self, probe: ReadyProbe | None, vm: Vm, loop: Loop, report: Report, log: Callable[[str], None]
    ) -> None:
        self._vm, self._report, self._log = vm, report, log
        self._tries, self._answered, self._until = 0, True, 0.0
        self._limit = probe.limit if probe is not None else 0
        self._late = now() + probe.timeout if probe is not None and probe.timeout else float("inf")
        if probe is None:
            self._ready()
        else:
            self._report.note = "its service is not ready yet"
            self._ask()
            loop.every(probe.interval, self._ask)

    def look(self) -> None:
        """Take in what the guest has answered."""
        answer = self._vm.probed
        if self._answered or answer is None or answer[0] != self._tries:
            return
        self._answered = True
        _, code, said = answer
        if code == 0:
            self._ready()
            return
        how = f"no answer in {self._limit} s" if code in (124, 143) else f"exit code {code}"
        note = f"its service is not ready yet: {said or how}"
        if self._report.note != note:
            self._report.note = note
            self._report.write()

    def _ask(self) -> None:
        if now() >= self._late and not self._report.serves:
            self._late = float("inf")
            self._report.write()
        if self._report.serves or (not self._answered and now() < self._until):
            return
        self._tries, self._answered, self._until = self._tries + 1, False, now() + self._limit + MARGIN
        self._vm.say(f"PROBE {self._tries}")

    def _ready(self) -> None:
        self._report.serves, self._report.note = True, ""
        self._report.write()
        self._log(f"the service is ready, after {self._tries} tries")
