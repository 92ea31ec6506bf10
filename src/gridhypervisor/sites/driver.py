"""What the drivers have in common: the batch script's text and how a failed command is told.

A job is found by its *name*, which is unique, chosen before the submission, and ours by its prefix. Batch ids are for
people: a controller that crashes may forget a job and give its id to the next one (Slurm's does).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite

from gridhypervisor.model.batch import BatchJob, BatchState, Rates, Submission, Submitted
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import CommandResult

Hints = Sequence[tuple[str, str]]
"""Words in small letters that a batch system refuses something with, and what mends it."""

PATIENCE = 180.0
"""Seconds that a submission may take: of one that is ended before its answer nobody knows what came. sbatch waits
by itself where there are too many jobs, two minutes in all; a queue master may have a minute's work before ours."""

RATES = frozenset({"submit_rate", "command_rate", "idle"})
"""Options of every site with a batch system of its own."""

IDLE = 10.0
"""Seconds that a pilot waits for another job of its user's, where neither the site's option `idle` nor `GHV_IDLE` in
the service's environment says otherwise."""

OVERHEAD = 384 << 20
"""Bytes asked for beside the guest's memory: the emulator's code cache and tables, the pilot, the watchdog."""


COUNT = """lines=$("$@") || exit
set -f
IFS='
'
set -- $lines
echo $#"""
"""How many lines a command prints that are not empty; or its failure. Of very long listings only this has to travel,
and a front-end needs nothing but its shell for it."""


def counted(*argv: str) -> tuple[str, ...]:
    """The command that prints how many lines another prints."""
    return "/bin/sh", "-c", COUNT, "sh", *argv


def count_of(result: CommandResult, heads: int = 0) -> int | None:
    """What `counted` printed, less the lines of a table's head; None: it does not tell."""
    words = result.stdout.strip()
    if result.code != 0 or not words.isdigit() or "error" in result.stderr.lower():
        return None
    return max(0, int(words) - heads)


def batch_script(job: Submission, log: str = "") -> str:
    """The text that the batch system runs. It becomes the pilot: the site's signals reach that and nobody between.

    Without a configured scratch it is the job's TMPDIR, unless that is a folder which only the front-end has.
    `log`: where the script's own words go, if the batch system cannot be told.
    """
    redirect = [f"exec >>{shlex.quote(log)} 2>&1"] if log else []
    return "\n".join(("#!/bin/sh", *redirect, *become_pilot(job, shlex.quote(job.entry)), ""))


def become_pilot(job: Submission, entry: str) -> list[str]:
    """The lines of shell by which a batch script becomes the pilot of an entry, which is given as a word of shell."""
    lines, scratch = [], shlex.quote(job.scratch)
    if not job.scratch:
        lines.append('[ -d "${TMPDIR-}" ] || TMPDIR=/tmp')
        scratch = '"$TMPDIR"'
    words = f"exec /bin/sh {shlex.quote(job.start)} pilot --scratch {scratch} --entry {entry}"
    if job.warm is not None:
        words += f" --pool {shlex.quote(job.warm.pool)} --idle {job.warm.idle:g} --lasts {job.walltime}"
    return [*lines, words]


def by_name(jobs: Iterable[BatchJob]) -> dict[str, BatchJob]:
    """One job a name. Where a submission was doubled, one that has not ended stands for both."""
    out: dict[str, BatchJob] = {}
    for job in jobs:
        if job.name not in out or out[job.name].state is BatchState.ENDED:
            out[job.name] = job
    return out


def refused(
    result: CommandResult, what: str, words: str = "", *, no_answer: re.Pattern[str], busy: str, hints: Hints
) -> Submitted:
    """What it means that a submission told no number. `words`: the site's own, where they are not its stderr.

    `no_answer`, `busy`: words after which the batch system may have the job all the same; by which it says that it has
    too much to do, or too many of the account's jobs, for now.
    """
    words = words or result.stderr
    message = explain(replace(result, stderr=words), what)
    if result.code is None or result.code <= 0 or no_answer.search(words):
        return Submitted(None, message=message)
    if re.search(busy, words, re.IGNORECASE):
        return Submitted(False, message=f"{message}; if that lasts, lower the site's `max-jobs`", busy=True)
    return Submitted(False, message=f"{message}; {hint(words, hints)}")


def hint(words: str, hints: Hints) -> str:
    """What mends a refusal in these words."""
    return next((mend for word, mend in hints if word in words.lower()), "ask the site's administrators")


def explain(result: CommandResult, what: str) -> str:
    """One line for a command that failed: what it was, and the site's own words."""
    words = " · ".join(line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip())
    if result.code is None:
        return f"{what}: no answer in time{f': {words[:300]}' if words else ''}"
    return f"{what}: {words[:300] or 'no message'} (exit code {result.code})"


def seconds_option(site: Site, key: str, default: float) -> float:
    """An option of the site that is a number of seconds.

    Raises:
        LinkError: it is no number, or negative.
    """
    text = site.options.get(key)
    if text is None:
        return default
    try:
        value = float(text)
        if value >= 0:
            return value
    except ValueError:
        pass
    raise LinkError(f"configure site {site.name}: options.{key}: {text!r} is not a number of seconds, e.g. {default:g}")


def idle_of(site: Site) -> float:
    """Its option `idle`, in seconds. Raises LinkError, as `seconds_option`; also where `GHV_IDLE` is no number."""
    given = {"idle": idle} if (idle := os.environ.get("GHV_IDLE")) else {}
    return seconds_option(replace(site, options={**given, **site.options}), "idle", IDLE)


def rates_of(site: Site) -> Rates:
    """Its options `submit_rate` and `command_rate`.

    Raises:
        LinkError: one is no number above 0.
    """
    return Rates(jobs=_rate(site, "submit_rate"), commands=_rate(site, "command_rate"))


def _rate(site: Site, key: str) -> float:
    text = site.options.get(key)
    if text is None:
        return inf
    try:
        value = float(text)
        if value > 0 and isfinite(value):
            return value
    except ValueError:
        pass
    raise LinkError(f"configure site {site.name}: options.{key}: {text!r} is not a number above 0, by the minute: 60")


def choice_option(site: Site, key: str, *allowed: str) -> str:
    """An option of the site that is one of these words, the first unless it says otherwise.

    Raises:
        LinkError: it is none of them.
    """
    word = site.options.get(key, allowed[0])
    if word not in allowed:
        raise LinkError(f"configure site {site.name}: options.{key}: {word!r} is not one of {', '.join(allowed)}")
    return word


def native_words(site: Site) -> list[str]:
    """The option `native`: further words for the site's command, as a shell would part them.

    Raises:
        LinkError: a quote is left open.
    """
    try:
        return shlex.split(site.options.get("native", ""))
    except ValueError as error:
        raise LinkError(
            f"configure site {site.name}: options.native: {error}", hint="quote it as for a shell"
        ) from error


def known_options(site: Site, known: frozenset[str]) -> None:
    """Refuse options that the driver would silently ignore.

    Raises:
        LinkError: there is one; the message lists those that exist.
    """
    if strange := sorted(site.options.keys() - known):
        raise LinkError(
            f"configure site {site.name}: options.{strange[0]}: a {site.kind} site has no such option",
            hint=f"it has {', '.join(sorted(known))}",
        )
