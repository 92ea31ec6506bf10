"""What is remembered of the past when work is given out: use by account, times and failures by user and resource, bans.

Records and the pure functions that carry them forward. Who calls them, and where they are kept, is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

FORGETTING = 3.5
"""Windows in which what is remembered of use falls to 1/e. GridWay: exp(−i/3.5) for window i (gw_scheduler_jobs.c)."""

SAME_FAILURE = 10.0
"""Seconds within which failures count once: one fault at a site ends all that runs there (GridWay: t ≤ 10)."""

FIRST_BAN = 0.1
"""The ban that follows on a first failure, as a part of the longest ban (GridWay: 0.1 · FR_MAX_BANNED)."""


@dataclass(frozen=True)
class Windows:
    """Core-seconds that an account used, by windows of time; `used[i]` is in the window i before `newest`.

    Window n is the time from n·size to (n+1)·size, in seconds since the epoch.
    """

    newest: int = 0
    used: tuple[float, ...] = ()


def charge(windows: Windows, at: float, core_seconds: float, size: float, depth: int) -> Windows:
    """`windows` with some use at a time added; what is older than `depth` windows is dropped. `size` in seconds.

    Use at a time that is older than all that is remembered changes nothing.
    """
    window = math.floor(at / size)
    newest = max(windows.newest, window) if windows.used else window
    used = [0.0] * (newest - windows.newest if windows.used else 0) + list(windows.used)
    used += [0.0] * (depth - len(used))
    if newest - window < depth:
        used[newest - window] += core_seconds
    return Windows(newest, tuple(used[:depth]))


def remembered(windows: Windows, now: float, size: float, depth: int) -> float:
    """Core-seconds that still count: Σ used in the window i before this one · exp(−i / 3.5), for i < depth."""
    ages = ((math.floor(now / size) - windows.newest + i, used) for i, used in enumerate(windows.used))
    return math.fsum(used * math.exp(-max(age, 0) / FORGETTING) for age, used in ages if age < depth)


@dataclass(frozen=True)
class Record:
    """How a user's jobs have fared at a resource, within the policy's history; seconds from dispatch to results."""

    successes: int = 0
    failures: int = 0  # of the site or the node; a program that ends with an exit code has not failed
    mean: float | None = None  # over the successes; None: there was none
    last: float | None = None  # of the newest success

    def expected(self, weight: float) -> float | None:
        """Seconds that the next job may take: T = (1−w)·T_history + w·T_last, with what is known of the two.

        GridWay's usage policy (UG_HISTORY_RATIO is w), where T is the sum of transfer, suspension and execution.
        """
        if self.mean is None or self.last is None:
            return self.last if self.mean is None else self.mean
        return (1 - weight) * self.mean + weight * self.last

    @property
    def reliability(self) -> float:
        """(successes + 1) / (successes + failures + 1): 1 without a failure, 1/2 after a first one, never 0."""
        return (self.successes + 1) / (self.successes + self.failures + 1)


@dataclass(frozen=True)
class Ban:
    """A user's jobs do not go to a resource before `until`. Times in seconds since the epoch."""

    first: float  # when the first failure was since the last success
    until: float


def banned(ban: Ban | None, now: float, longest: float, growth: float) -> Ban:
    """The ban after a failure at `now`; a success clears it, by dropping the record. `longest`, `growth` in seconds.

    First failure: 0.1·longest. A later one, t seconds after the first: longest·(1 − e^(−t/growth)). Failures within
    10 s of the first count once. GridWay: FR_MAX_BANNED and FR_BANNED_C, in gw_scheduler_job_failed(), where a second
    failure can shorten the first one's ban; here a ban never shortens.
    """
    if ban is None:
        return Ban(now, now + FIRST_BAN * longest)
    since = now - ban.first
    if since <= SAME_FAILURE:
        return ban
    return replace(ban, until=max(ban.until, now + longest * -math.expm1(-since / growth)))


@dataclass(frozen=True)
class Usage:
    """All that is remembered, as a planning cycle needs it. Resources by their own name or by their site's.

    `running`: jobs of ours that have a place, queued at sites or running, by user, project and site.
    """

    users: Mapping[str, Windows] = field(default_factory=dict)
    projects: Mapping[str, Windows] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, Record]] = field(default_factory=dict)  # by user, by resource
    bans: Mapping[str, Mapping[str, Ban]] = field(default_factory=dict)  # by user, by resource
    running_users: Mapping[str, int] = field(default_factory=dict)
    running_projects: Mapping[str, int] = field(default_factory=dict)
    running_sites: Mapping[str, int] = field(default_factory=dict)
    given: int = 0  # places that this cycle has given away already
