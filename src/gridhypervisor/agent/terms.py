"""The lender's file: its text read into `Terms`, and its hours of the week. Pure; docs/lender.md shows the format.

The format is flat TOML on purpose: a fault can be told by its line, and nothing in it needs explaining twice.
"""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from gridhypervisor.model.wire import Period, Terms

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY, WEEK = 86400, 7 * 86400

_WINDOW = re.compile(r"(?:([A-Za-z]{3})(?:-([A-Za-z]{3}))? +)?(\d\d?):(\d\d)-(\d\d?):(\d\d)")
_SIZE = re.compile(r"(\d+) ?([KMGT])(?:i?B)?(?:/s)?")
_AT = re.compile(r"\(at line (\d+), column \d+\)")


class TermsError(ValueError):
    """What is wrong with a lender's file: of each fault line, field, and what is allowed there."""


def parse(text: str, file: str, holder: str = "", *, own: bool = False) -> Terms:
    """What the file says. `holder`: its owner's name; `own`: the account can change it.

    Raises:
        TermsError: it says what cannot be understood; the message names every fault, with file, line, field, and what
            is allowed there.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = _AT.search(str(error))
        where = f"line {at[1]}" if at else "its last line"
        raise TermsError(f"{file}, {where}: not TOML: {_AT.sub('', str(error)).strip()}") from error
    given: dict[str, Any] = {}
    faults = []
    for key, value in found.items():
        if key not in _FIELDS:
            faults.append(f"line {_line(text, key)}: {key}: there is no such field; there are {', '.join(_FIELDS)}")
            continue
        name, read, allowed = _FIELDS[key]
        try:
            given[name] = read(value)
        except ValueError as error:
            shown = str(error) or repr(value)
            faults.append(f"line {_line(text, key, str(error))}: {key}: {shown:.80} is not allowed; give {allowed}")
    if faults:
        raise TermsError(f"{file}, {'; '.join(faults)}")
    return Terms(file, holder, own, **given)


def open_for(hours: Sequence[str], moment: time.struct_time) -> float | None:
    """Seconds from that local time on in which VMs may run; 0: none may now; None: they may at any time.

    >>> open_for(["Mon-Fri 18:00-08:00"], time.strptime("Fri 2026-11-20 23:30", "%a %Y-%m-%d %H:%M"))
    30600.0
    """
    if not hours:
        return None
    now = moment.tm_wday * DAY + moment.tm_hour * 3600 + moment.tm_min * 60 + moment.tm_sec
    # Last week's windows may reach into this one, and this week's may go on in the next one.
    spans = sorted((begin + week, end + week) for text in hours for begin, end in _spans(text)
                   for week in (-WEEK, 0, WEEK))  # fmt: skip
    until = now
    for begin, end in spans:
        if begin <= until < end:
            until = end
    return None if until - now > WEEK else float(until - now)


def period_start(period: Period, moment: time.struct_time) -> time.struct_time:
    """The local midnight with which the period began that holds this moment; for `time.mktime`."""
    day = {Period.DAY: moment.tm_mday, Period.WEEK: moment.tm_mday - moment.tm_wday, Period.MONTH: 1}[period]
    return time.struct_time((moment.tm_year, moment.tm_mon, day, 0, 0, 0, 0, 0, -1))


def _line(text: str, key: str, item: str = "") -> int:
    """Where a field stands, or the item of its list; the file is flat, so its name begins a line."""
    lines = text.splitlines()
    names = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}\b")
    first = next((number for number, line in enumerate(lines) if names.match(line)), 0)
    return 1 + next((n for n, line in enumerate(lines) if item and n >= first and item in line), first)


def _spans(window: str) -> list[tuple[int, int]]:
    """Seconds of the week, from Monday's midnight. One that ends not after it begins, ends on the next day."""
    match = _WINDOW.fullmatch(window.strip())
    if match is None:
        raise ValueError(window)
    first, last = (name.lower() if name else "" for name in match.group(1, 2))
    hour, minute, end_hour, end_minute = (int(number) for number in match.group(3, 4, 5, 6))
    begin, end = hour * 60 + minute, end_hour * 60 + end_minute
    if {first, last or first} - {"", *DAYS} or minute > 59 or end_minute > 59 or begin >= 1440 or end > 1440:
        raise ValueError(window)
    if end <= begin:
        end += 1440
    if not first:
        days = range(7)
    else:
        start = DAYS.index(first)
        days = range(start, start + (DAYS.index(last or first) - start) % 7 + 1)
    return [(day % 7 * DAY + begin * 60, day % 7 * DAY + end * 60) for day in days]


def _hours(value: Any) -> tuple[str, ...]:
    hours = _texts(value)
    for window in hours:
        _spans(window)
    return hours


def _images(value: Any) -> tuple[str, ...]:
    digests = _texts(value)
    for digest in digests:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(digest)
    return digests


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError
    return tuple(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError
    return value


def _time(value: Any) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError
    return round(value * 3600)


def _size(value: Any) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or len(match[1]) > 9:
        raise ValueError
    return int(match[1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def _rate(value: Any) -> int:
    rate = _size(value)
    if rate < 1 << 20:
        raise ValueError
    return rate


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
        raise ValueError
    return value


def _period(value: Any) -> Period:
    if not isinstance(value, str):
        raise ValueError
    try:
        return Period(value)
    except ValueError:
        raise ValueError from None


_FIELDS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "contact": ("contact", _text, "a text of at most 200 characters on one line"),
    "vms": ("vms", _count, "a whole number, 0 or more"),
    "cores": ("cores", _count, "a whole number, 0 or more"),
    "memory": ("memory", _size, 'a size such as "16 GiB"'),
    "vm_hours": ("vm_seconds", _time, "a number of hours, 0 or more"),
    "core_hours": ("core_seconds", _time, "a number of hours, 0 or more"),
    "period": ("period", _period, '"day", "week" or "month"'),
    "images": ("images", _images, "a list of digests of 64 hex digits, as `ghv image show` gives them"),
    "hours": ("hours", _hours, 'a list such as ["Mon-Fri 18:00-08:00", "Sat-Sun 00:00-24:00"]'),
    "bandwidth": ("bandwidth", _rate, 'a size a second such as "10 MiB/s", at least 1 MiB'),
    "listen": ("listen", _flag, "true or false"),
}
"""By the name in the file: that in `Terms`, how the value is read, and what is allowed."""
