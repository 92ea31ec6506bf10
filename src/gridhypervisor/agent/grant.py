"""A pilot's grant: until when its guest may run, counted from when the beat was sent that was answered last.

Pure, on the node's own clock: an answer that was on its way for long gives little, and two machines' clocks are never
compared. The watchdog enforces it.
"""

from __future__ import annotations

from collections.abc import Iterable

from gridhypervisor.model.wire import GRANT


class Grant:
    """`seconds`: how long one lasts."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = float("-inf")  # CLOCK_BOOTTIME; before the first answer nothing is granted
        self._sent: dict[int, float] = {}  # beats that may yet be answered

    def sent(self, beat: int, at: float) -> None:
        """A beat is about to be sent, at this moment."""
        self._sent = {number: then for number, then in self._sent.items() if then + self.seconds > at}
        self._sent[beat] = at

    def heard(self, names: Iterable[str]) -> bool:
        """Take in what lies in control/. Whether the grant lasts longer now."""
        numbers = [name.removeprefix(GRANT) for name in names if name.startswith(GRANT)]
        answered = [int(number) for number in numbers if number.isdecimal()]
        until = max((self._sent[beat] + self.seconds for beat in answered if beat in self._sent), default=self.until)
        longer = until > self.until
        self.until = max(until, self.until)
        return longer
