"""The fork site: processes on this machine under a limit of slots. The bundle's `forkq` is its batch system.

Command text out, parsed answers in, like every driver; it needs to know where the bundle is, for that is where its
batch system comes from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence

from gridhypervisor.model.batch import BatchJob, BatchState, Limits, Listing, Rates, Submission, Submitted
from gridhypervisor.model.capacity import Capacity, NodeRow, capacity, state_of
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BATCH_LOG, BUNDLES, Command, CommandResult
from gridhypervisor.sites.driver import batch_script, by_name, explain, idle_of, known_options, seconds_option

STATES = {"PENDING": BatchState.PENDING, "RUNNING": BatchState.RUNNING, "ENDED": BatchState.ENDED}

AHEAD = 2
"""Jobs beyond the slots that may wait in the queue: the next one starts without asking us."""

MACHINE = "uname -n && getconf _NPROCESSORS_ONLN && cat /proc/meminfo"

OPTIONS = frozenset({"idle", "spool_lag"})


class ForkDriver:
    """See `execution.ports.Driver`. `workdir`: the account's, absolute; `bundle`: digest.

    Raises:
        LinkError: the site has options that this driver does not know.
    """

    rates = Rates()
    listing_lag = 0.0  # when submit returns, the job is listed
    listing_interval = 5.0  # entries speak for themselves; this only finds what could not even start

    def __init__(self, site: Site, workdir: str, bundle: str) -> None:
        known_options(site, OPTIONS)
        self.spool_lag = seconds_option(site, "spool_lag", 0.0)
        self.idle = idle_of(site)
        self._site = site
        start = ["/bin/sh", f"{workdir}/{BUNDLES}/{bundle}/start", "forkq"]
        if site.scratch:
            start += ["--scratch", site.scratch]
        self._queue = (*start, "--dir", f"{workdir}/forkq")

    def max_jobs(self, site: Site) -> int:
        return site.max_jobs or (site.slots or os.cpu_count() or 1) + AHEAD

    def probe(self) -> list[Command]:
        return [self._command("list")]

    def limits(self, results: Sequence[CommandResult]) -> Limits:
        if results and results[0].code != 0:
            return Limits(problem=explain(results[0], "its fork queue cannot be started"))
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        slots = self._site.slots or os.cpu_count()
        return Limits(version="fork", max_cpus=os.cpu_count(), max_memory=memory, slots=slots)

    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        slots = ("--slots", str(site.slots)) if site.slots else ()
        return [
            self._command("submit", "--name", job.name, "--cpus", str(job.cpus), "--walltime", str(job.walltime),
                          *slots, stdin=batch_script(job, log=f"{job.entry}/{BATCH_LOG}"))
            for job in jobs
        ]  # fmt: skip

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        return {job.name: _submitted(result) for job, result in zip(jobs, results, strict=True)}

    def query(self, installation: str) -> list[Command]:
        return [self._command("list")]

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        [result] = results
        if result.code != 0:
            return None, explain(result, "forkq list")
        try:
            jobs = [_job(json.loads(line)) for line in result.stdout.splitlines()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return None, f"forkq list: an answer that makes no sense: {type(error).__name__}: {error}"
        return Listing(as_of, by_name(jobs)), ""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        # By id: here one is never used twice. A job whose id is not known yet gets it from the next listing.
        known = [number for _, number in jobs if number]
        return [self._command("cancel", *known)] if known else []

    def survey(self) -> list[Command]:
        return [self._command("list"), Command(("/bin/sh", "-c", MACHINE), environment=self._site.environment)]

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        """Of this machine. A core is free that no job of the queue has, as long as there is a slot."""
        jobs, machine = results
        name, _, rest = machine.stdout.partition("\n")
        cores, _, memory = rest.partition("\n")
        sizes = {key: int(size) << 10 for key, size in re.findall(r"^(\w+): +(\d+) kB$", memory, re.MULTILINE)}
        try:
            listed = [json.loads(line) for line in jobs.stdout.splitlines()]
            states = [str(row["state"]) for row in listed]
            taken = sum(int(row.get("cpus", 1)) for row in listed if row["state"] == "RUNNING")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if jobs.code != 0 or machine.code != 0 or not cores.isdigit() or int(cores) < 1:
            return None
        cpus = int(cores)
        full = states.count("RUNNING") >= (self._site.slots or cpus)
        free = 0 if full else max(0, cpus - taken)
        row = NodeRow(name, state_of(cpus, free), cpus, free, sizes.get("MemTotal"), sizes.get("MemAvailable"))
        return capacity([row], states.count("PENDING"))

    def _command(self, *words: str, stdin: str = "") -> Command:
        return Command((*self._queue, *words), stdin=stdin, environment=self._site.environment, server=len(self._queue))


def _submitted(result: CommandResult) -> Submitted:
    number = result.stdout.strip()
    if result.code == 0 and number.isdigit():
        return Submitted(True, number)
    # Whether it came to the point of writing the job down cannot be told from outside.
    return Submitted(None if result.code is None or result.code < 0 else False, message=explain(result, "forkq submit"))


def _job(row: dict[str, object]) -> BatchJob:
    code = row.get("code")
    return BatchJob(
        str(row["id"]),
        str(row["name"]),
        STATES.get(str(row["state"]), BatchState.UNKNOWN),
        str(row.get("reason") or ""),
        code=code if isinstance(code, int) else None,
    )
