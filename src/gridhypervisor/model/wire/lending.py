"""What a lender lets an account use, what is in use of it, and whether one more VM fits.

Three ask, and get one answer: the planner before it chooses a site, the relay before it takes a VM in, the pilot before
it boots one. What the lender writes, and how the relay counts, is in `agent/terms.py` and `agent/lender.py`; what each
limit means to people is in docs/lender.md.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass


class Period(enum.StrEnum):
    """Of the calendar, in the site's local time: what hours are counted over."""

    DAY = "day"
    WEEK = "week"  # from Monday
    MONTH = "month"


@dataclass(frozen=True)
class Share:
    """A part of what is lent: so much at once, and so much time. A VM that ran for an hour on two cores has taken one
    VM-hour and two core-hours, whatever it did with them."""

    vms: int = 0
    cores: int = 0
    memory: int = 0  # bytes, of guests
    vm_seconds: int = 0
    core_seconds: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(
            self.vms + other.vms,
            self.cores + other.cores,
            self.memory + other.memory,
            self.vm_seconds + other.vm_seconds,
            self.core_seconds + other.core_seconds,
        )

    def times(self, factor: int) -> Share:
        return Share(*(factor * a for a in dataclasses.astuple(self)))

    def or_more(self, other: Share) -> Share:
        """Of each the larger."""
        return Share(*map(max, dataclasses.astuple(self), dataclasses.astuple(other)))

    @staticmethod
    def of(cores: int, memory: int, walltime: int) -> Share:
        """What one VM takes, if it lasts as long as it may. Memory in bytes, walltime in seconds."""
        return Share(1, cores, memory, walltime, cores * walltime)


NO_SHARE = Share()


@dataclass(frozen=True)
class Terms:
    """What a lender's file says. None: not limited."""

    file: str
    holder: str = ""  # the file's owner, by name
    own: bool = False  # the account can change the file: a cap that it has set itself
    contact: str = ""  # whom to ask
    vms: int | None = None
    cores: int | None = None
    memory: int | None = None  # bytes
    vm_seconds: int | None = None  # in each period
    core_seconds: int | None = None
    period: Period = Period.MONTH
    images: tuple[str, ...] | None = None  # digests
    hours: tuple[str, ...] = ()  # as the lender wrote them; empty: at any time
    bandwidth: int | None = None  # bytes a second through one relay, both ways together
    listen: bool | None = None  # whether a relay may accept connections at the site; None: the file does not say
    problem: str = ""  # why the file cannot be understood; then nothing may start

    @property
    def hint(self) -> str:
        """Whom to ask, and what for."""
        if self.own:
            return f"this account set the limit itself, in {self.file}"
        return f"{self.file} says so; ask {self.contact or self.holder}, or give the job another site"


@dataclass(frozen=True)
class Use:
    """What one installation has of an account, for one of its users."""

    installation: str
    owner: str  # as the installation calls its user
    used: Share  # by VMs that run now; of time, what was spent in this period
    reserved: Share  # for VMs that wait to run; of time, what these and the running ones may still take


@dataclass(frozen=True)
class Lending:
    """What a relay tells its controller, at hello and whenever it changes."""

    terms: Terms
    mine: Share = NO_SHARE  # what is used by and reserved for this installation, but for time spent
    rest: Share = NO_SHARE  # what others use and have reserved, and all time spent
    open_for: float | None = None  # seconds from now on in which VMs may run; None: at any time

    def taken(self, mine: Share = NO_SHARE) -> Share:
        """What is used or reserved, of which `mine` is known to be this installation's: the relay may not know yet."""
        return self.rest + self.mine.or_more(mine)


@dataclass(frozen=True)
class Charge:
    """One VM's time, written down before its entry is removed."""

    entry: str
    installation: str
    owner: str
    cores: int
    seconds: int
    ended: float  # seconds since 1970


def obstacle(
    terms: Terms,
    taken: Share,
    want: Share,
    image: str,
    walltime: int,
    open_for: float | None,
    lender: str = "the lender",
) -> str:
    """Why the lender does not let a VM start now that wants so much; empty: it may.

    `image` is its digest, empty for a probe, which boots none; `walltime` and `open_for` are in seconds. `lender`: how
    to call him.
    """
    if terms.problem:
        return f"{lender} lets nothing start until the file is mended: {terms.problem}"
    if terms.images is not None and image and image not in terms.images:
        allowed = f"{len(terms.images)} image{'s' if len(terms.images) != 1 else ''}"
        return f"{lender} allows {allowed}, and {image[:12]} is not among them"
    if open_for is not None and walltime > open_for:
        ends = f"they end in {_minutes(open_for)}" if open_for > 0 else "it is not that time now"
        return f"{lender} lets VMs run {', '.join(terms.hours)}; {ends}, and its walltime is {_minutes(walltime)}"
    per = f" a {terms.period}"
    for limit, has, wants, unit, what, plural, over in (
        (terms.vms, taken.vms, want.vms, 1, "VM", "s", ""),
        (terms.cores, taken.cores, want.cores, 1, "core", "s", ""),
        (terms.memory, taken.memory, want.memory, 1 << 20, "MiB of memory", "", ""),
        (terms.vm_seconds, taken.vm_seconds, want.vm_seconds, 3600, "VM-hour", "s", per),
        (terms.core_seconds, taken.core_seconds, want.core_seconds, 3600, "core-hour", "s", per),
    ):
        if limit is not None and has + wants > limit:
            allowed = f"{_number(limit, unit)} {what}{plural if limit != unit else ''}{over}"
            needs = f", and it needs {_number(wants, unit)}" if wants != 1 else ""
            return f"{lender} allows {allowed}; {_number(has, unit)} {'is' if has == unit else 'are'} in use{needs}"
    return ""


def _number(value: int, unit: int) -> str:
    return f"{value / unit:.2f}".rstrip("0").rstrip(".")


def _minutes(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
