"""What the drivers have in common: the batch script's text and how a failed command is told.

A job is found by its *name*, which is unique, chosen before the submission, and ours by its prefix. Batch ids are for
people: a controller that crashes may forget a job and give its id to the next one (Slurm's does).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from gridhypervisor.model.batch import BatchJob, BatchState, Submission
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import CommandResult

OVERHEAD = 384 << 20
"""Bytes asked for beside the guest's memory: the emulator's code cache and tables, the pilot, the watchdog."""


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
    return [*lines, f"exec /bin/sh {shlex.quote(job.start)} pilot --scratch {scratch} --entry {entry}"]


def by_name(jobs: Iterable[BatchJob]) -> dict[str, BatchJob]:
    """One job a name. Where a submission was doubled, one that has not ended stands for both."""
    out: dict[str, BatchJob] = {}
    for job in jobs:
        if job.name not in out or out[job.name].state is BatchState.ENDED:
            out[job.name] = job
    return out


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
