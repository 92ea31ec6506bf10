"""PBS in Torque's dialect: command lines for qsub, qstat and qdel, and what their answers mean.

Learnt from Torque's manuals and from what its users show of it, proven against Slurm's wrappers in that dialect.
OpenPBS and PBS Pro speak another one (`-l select=`, JSON, `qstat -x` for what has ended): the probe knows and says so.

Jobs go one by one. Slurm's wrappers make an array of `qsub -t`, but know neither `qstat -t` nor `qdel ID[N]`: its tasks
could be neither listed nor ended one by one, so nothing of an array could be proven.

qstat tells of every job of every user at once, some kilobytes each; what is ours of it is picked out at the site. A job
that has ended is listed for as long as the site keeps it (`keep_completed`); after that, it is absent.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from gridhypervisor.model.batch import BatchJob, BatchState, Limits, Listing, Submission, Submitted
from gridhypervisor.model.capacity import Capacity, capacity
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BATCH_LOG, BUNDLES, Command, CommandResult
from gridhypervisor.sites.driver import (
    OVERHEAD,
    RATES,
    batch_script,
    by_name,
    explain,
    hint,
    idle_of,
    known_options,
    native_words,
    rates_of,
    refused,
    seconds_option,
)
from gridhypervisor.sites.nodes import pbsnodes_rows, qstat_waiting

STATES = {
    **dict.fromkeys("QTW", BatchState.PENDING),  # queued, in transit between queues, waiting for a time
    "H": BatchState.HELD,
    **dict.fromkeys("RS", BatchState.RUNNING),  # S: suspended
    "E": BatchState.ENDING,
    "C": BatchState.ENDED,
}

REASONS = {
    -1: "it could not be started",
    -2: "it could not be started",
    -3: "it could not be started",
    -4: "its node's daemon began anew and gave it up",
    -5: "its node's daemon began anew and gave it up",
    -6: "its node's daemon began anew and gave it up",
    -7: "it could not be started again",
    -8: "its shell could not be started",
    -9: "its output files could not be made",
    -10: "it took more memory than it asked for",
    -11: "its walltime is over",
    -12: "its CPU time is over",
    -13: "its cgroup could not be made",
    -14: "the site's prologue failed",
}
"""What Torque's own exit_status says; a job's own is never negative."""

GIVEN_UP = frozenset({-4, -5, -6})
"""exit_status of what a node's daemon found when it began: whether it kills that, is the site's choice."""

SIGNALLED = 256
"""From here on, exit_status is that and the signal which ended the job's shell."""

NO_ANSWER = re.compile(
    r"(can|could) ?not connect|unable to contact|connection|communication|time(d )?out|socket|end of file|premature"
    r"|protocol|too busy",
    re.IGNORECASE,
)
"""After these the server may have the job all the same."""

BUSY = r"maximum number of jobs|try again later|MaxSubmitJob|GrpSubmitJob|temporarily un(able|available)"
"""The server has too many jobs, of this user or at all, for now."""

HINTS = (
    ("feasible nodes", "no node has that many CPUs, or what the site's option `constraint` asks for"),
    ("resource limits", "ask for less walltime, CPUs or memory, or set the site's option `queue` to another"),
    ("unauthorized", "the site does not let this account submit there: ask its administrators"),
    ("bad uid", "submit from another of the site's login hosts: this one is not allowed to"),
    ("job name", "this PBS takes no name longer than 15 characters: it must be Torque 4 or later"),
    ("account", "set the site's option `account` to one that you may use"),
    ("queue", "set the site's option `queue` to one that `qstat -q` lists"),
    ("partition", "set the site's option `queue` to one that `qstat -q` lists"),
    ("no such file", "PBS's commands are not in PATH: set PATH in the site's `environment`"),
)

LIST = """\
me=$(id -un) || exit
export own="<Job_Owner>$me@" ours="<Job_Name>$1-"
{ qstat -f -x; echo "qstat: $?"; } | "$2" awk -v RS='</Job>' '
    !/<Job>/ { print jobs + 0 " jobs " $0; next }
    { jobs++ }
    index($0, ENVIRON["own"]) && index($0, ENVIRON["ours"]) { print $0 "</Job>" }'
"""
"""Prints the records of our jobs, how many jobs there are at all, what came after the last, and qstat's exit code."""

WHOLE = re.compile(r"(0 jobs\s+(<.*</Data>\s+)?|[1-9]\d* jobs </Data>\s+)qstat: 0\s*", re.DOTALL)
"""How a whole listing ends. Of no jobs Torque prints an empty document, or nothing, according to its version."""

OPTIONS = RATES | {"queue", "account", "constraint", "native", "spool_lag", "listing_interval"}


class PbsDriver:
    """See `execution.ports.Driver`. `workdir`: the account's, absolute; `bundle`: digest.

    It remembers the ids of the jobs that it has listed, but nothing that it could not ask for again.

    Raises:
        LinkError: the site has options that this driver does not know, or cannot read.
    """

    listing_lag = 5.0  # the server that took the job answers, but it lets listings wait for what it is at

    def __init__(self, site: Site, workdir: str, bundle: str) -> None:
        known_options(site, OPTIONS)
        # NFS clients answer look-ups from their cache for up to a minute; a site with another spool says so.
        self.spool_lag = seconds_option(site, "spool_lag", 65.0)
        self.idle = idle_of(site)
        self.listing_interval = max(1.0, seconds_option(site, "listing_interval", 30.0))  # a full qstat costs a server
        self.rates = rates_of(site)
        self._site = site
        self._busybox = f"{workdir}/{BUNDLES}/{bundle}/busybox"
        self._native = native_words(site)
        self._ids: dict[str, set[str]] = {}  # of what lives, by name

    def max_jobs(self, site: Site) -> int:
        return site.max_jobs or 100

    def probe(self) -> list[Command]:
        return [self._command("qstat", "--version"), self._command("qstat", "-q"), self._command("pbsnodes", "-a")]

    def limits(self, results: Sequence[CommandResult]) -> Limits:
        """Those of the queue that the site's options name, or else of the most patient; of the largest node."""
        if not results:
            return Limits()
        version, queues, nodes = results
        words = version.stdout + version.stderr
        if found := re.search(r"pbs_version = (\S+)", words):
            return Limits(problem=f"OpenPBS {found[1]} speaks another dialect than Torque, which is all that ghv knows")
        rows = _queues(queues.stdout)
        if not rows:
            return Limits(problem=f"{_told('qstat', queues.code, queues.stderr)}; {hint(queues.stderr, HINTS)}")
        if wanted := self._site.options.get("queue", "").partition("@")[0][:16]:  # more of a name qstat does not show
            if wanted not in rows:
                asked = f"no queue {wanted} at the site; set the option `queue` to one of "
                return Limits(problem=asked + ", ".join(sorted(rows)))
            rows = {wanted: rows[wanted]}
        if not any(enabled for _, enabled in rows.values()):
            return Limits(problem=f"the queue takes no jobs ({', '.join(sorted(rows))}); ask the site's administrators")
        times = [time for time, enabled in rows.values() if enabled]
        cpus, sizes = _nodes(nodes.stdout)  # which a site may keep from its users
        found = re.search(r"Version: *(\S+)", words)
        return Limits(
            version=f"torque {found[1]}" if found else "pbs in Torque's dialect",
            max_walltime=None if None in times else max(time for time in times if time is not None),
            max_cpus=max(cpus, default=None),
            max_memory=max(sizes) - OVERHEAD if sizes else None,
        )

    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        return [
            self._command(*self._qsub(job), stdin=batch_script(job, log=f"{job.entry}/{BATCH_LOG}")) for job in jobs
        ]

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        return {job.name: _submitted(result) for job, result in zip(jobs, results, strict=True)}

    def query(self, installation: str) -> list[Command]:
        return [self._command("/bin/sh", "-c", LIST, "sh", installation, self._busybox)]

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        [result] = results
        rows, end = re.findall(r"<Job>.*?</Job>", result.stdout, re.DOTALL), result.stdout.rpartition("</Job>")[2]
        if result.code != 0 or not WHOLE.fullmatch(end.lstrip()):
            found = re.search(r"qstat: (\d+)\s*\Z", end)
            words = result.stderr or "its answer is not whole"
            return None, _told("qstat", int(found[1]) if found else result.code, words)
        jobs = [_job(_elements(row)) for row in rows]
        self._ids = {}
        for job in jobs:
            if job.state is not BatchState.ENDED:
                self._ids.setdefault(job.name, set()).add(job.id)
        return Listing(as_of, by_name(jobs)), ""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        # qdel takes ids alone: those that the names were last listed under, of which a doubled submission has two.
        ids = [found for name, number in jobs for found in sorted(self._ids.get(name, {number} - {""}))]
        return [self._command("qdel", *ids)] if ids else []

    def survey(self) -> list[Command]:
        return [self._command("pbsnodes", "-a"), self._command("qstat", "-q")]

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        """Of all nodes: which of them a queue has, Torque does not tell users. Jobs that wait are those of the queue
        that the site's options name, or of all."""
        nodes, queues = results
        rows, queue = pbsnodes_rows(nodes.stdout), self._site.options.get("queue", "").partition("@")[0][:16]
        return capacity(rows, qstat_waiting(queues.stdout, queue)) if nodes.code == 0 and rows else None

    def _qsub(self, job: Submission) -> list[str]:
        options = self._site.options
        nodes = f"nodes=1:ppn={job.cpus}" + (f":{wanted}" if (wanted := options.get("constraint")) else "")
        memory = math.ceil((job.memory + OVERHEAD) / (1 << 20))
        # Its own words go to the entry by the script: Torque would keep them on the node until the job's end.
        argv = [
            "qsub", "-N", job.name, "-S", "/bin/sh", "-l", f"{nodes},walltime={job.walltime},mem={memory}mb",
            "-r", "n", "-m", "n", "-j", "oe", "-o", "/dev/null",
        ]  # fmt: skip
        for flag, key in (("-q", "queue"), ("-A", "account")):
            argv += [flag, options[key]] if options.get(key) else []
        return argv + self._native

    def _command(self, *argv: str, stdin: str = "") -> Command:
        return Command(argv, stdin=stdin, environment=self._site.environment)


def seconds(text: str) -> int | None:
    """Torque's `[[[days:]hours:]minutes:]seconds`; None where it sets no limit.

    >>> seconds("24:00:00"), seconds("3:00:00:00"), seconds("90"), seconds("--")
    (86400, 259200, 90, None)
    """
    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 4:
        return None
    return sum(int(part) * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


def _elements(row: str) -> dict[str, str]:
    """Name and text of each element of a record that holds text alone. Of two of a name the first counts: the server's
    own come before what users may have written."""
    return {name: html.unescape(text) for name, text in reversed(re.findall(r"<(\w+)>([^<]*)</\1>", row))}


def _job(found: dict[str, str]) -> BatchJob:
    number, letter = found.get("Job_Id", ""), found.get("job_state", "")
    node = re.split(r"[/+]", found.get("exec_host", ""))[0]
    starts = _number(found.get("start_count")) or 0
    status = _number(found.get("exit_status"))
    state, reason, code = STATES.get(letter, BatchState.UNKNOWN), "", None
    if state is BatchState.UNKNOWN:
        reason = f"PBS's state {letter}"
    elif state is BatchState.PENDING:
        reason = found.get("comment", "")
    elif state is BatchState.HELD:
        reason = f"on hold ({found.get('Hold_Types', '')}): `qrls {number}`, or ask the site's administrators"
        reason += f": {found['comment']}" if found.get("comment") else ""
    elif state is BatchState.ENDED and status in GIVEN_UP:
        state, reason = BatchState.NODE_LOST, REASONS[status]
    elif state is BatchState.ENDED and status is None and (node or starts):
        # Only its node gives a job an exit_status.
        state, reason = BatchState.NODE_LOST, f"its end is listed, which {node or 'its node'} has not confirmed"
    elif state is BatchState.ENDED:
        reason, code = _end(status)
    return BatchJob(number, found.get("Job_Name", ""), state, reason, node, code, max(0, starts - 1))


def _end(status: int | None) -> tuple[str, int | None]:
    """How a job ended, in words, and the code that a shell would show."""
    if status is None:
        return "deleted before it began", None
    if status < 0:
        return REASONS.get(status, f"Torque's exit_status {status}"), None
    if status >= SIGNALLED:
        return f"ended by signal {status - SIGNALLED}", 128 + status - SIGNALLED
    return "", status


def _queues(text: str) -> dict[str, tuple[int | None, bool]]:
    """By name: the longest walltime of each queue that `qstat -q` shows, in seconds, and whether it takes jobs."""
    row = r"^(\S+) +\S+ +\S+ +(\S+) +\S+ +\d+ +\d+ +\S+ +([ED]) [RS] *$"
    return {name: (seconds(time), state == "E") for name, time, state in re.findall(row, text, re.MULTILINE)}


def _nodes(text: str) -> tuple[list[int], list[int]]:
    """CPUs of each node that `pbsnodes -a` shows, and memory in bytes."""
    cpus = [int(number) for number in re.findall(r"^ +np = (\d+)$", text, re.MULTILINE)]
    units = {"kb": 10, "mb": 20, "gb": 30}
    # Slurm's wrapper knows no physmem. Torque's availmem counts what is swapped out, too.
    for key in ("physmem", "availmem"):
        if sizes := re.findall(rf"[=,]{key}=(\d+)(kb|mb|gb)", text):
            return cpus, [int(number) << units[unit] for number, unit in sizes]
    return cpus, []


def _submitted(result: CommandResult) -> Submitted:
    # A site's greeting may stand above it.
    if result.code == 0 and (number := re.search(r"^(\d+(?:\.\S+)?)\s*\Z", result.stdout, re.MULTILINE)):
        return Submitted(True, number[1])
    # Slurm's wrapper tells its whole command line first, on stdout.
    words = (result.stderr + result.stdout).rpartition("the output was:")[2]
    return refused(result, "qsub", _bare("qsub", words), no_answer=NO_ANSWER, busy=BUSY, hints=HINTS)


def _told(what: str, code: int | None, words: str) -> str:
    return explain(CommandResult(code, "", _bare(what, words)), what)


def _bare(what: str, words: str) -> str:
    """The commands begin every line with their own name."""
    return re.sub(rf"^{what}: ", "", words, flags=re.MULTILINE)


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None
