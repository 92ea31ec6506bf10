"""HTCondor: submit descriptions, condor_q and condor_rm, and what their answers mean. Learnt from 23.9 itself.

A job begins at most once: one that HTCondor would run again, or holds after it ran, is taken off by the queue itself.
What has ended stays in the queue for an hour, so that one question tells everything: history files are searched from
end to end, and not every site lets users read them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gridhypervisor.model.batch import BatchJob, BatchState, Limits, Listing, Submission, Submitted
from gridhypervisor.model.capacity import Capacity, capacity
from gridhypervisor.model.errors import LinkError
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BATCH_LOG, Command, CommandResult
from gridhypervisor.sites.driver import (
    OVERHEAD,
    RATES,
    batch_script,
    by_name,
    explain,
    hint,
    idle_of,
    known_options,
    rates_of,
    refused,
    seconds_option,
)
from gridhypervisor.sites.nodes import SLOT, condor_rows

KEPT = 3600
"""Seconds that an ended job stays in the queue."""

NEVER_RAN = "NumShadowStarts =?= undefined"
"""The queue itself counts this before anything can run. What the node counts, NumJobStarts, comes late or never."""

DESCRIPTION = f"""\
universe = vanilla
executable = /bin/sh
transfer_executable = false
should_transfer_files = NO
initialdir = /
input = /dev/null
output = /dev/null
error = /dev/null
notification = never
want_graceful_removal = true
leave_in_queue = (JobStatus == 3 || JobStatus == 4) && time() - EnteredCurrentStatus < {KEPT}
periodic_remove = (JobStatus == 1 || JobStatus == 5) && RemoteHost =?= undefined && !({NEVER_RAN})
"""

IDLE, RUNNING, REMOVED, COMPLETED, HELD, TRANSFERRING, SUSPENDED = range(1, 8)
STATES = {
    IDLE: BatchState.PENDING,
    RUNNING: BatchState.RUNNING,
    REMOVED: BatchState.ENDED,
    COMPLETED: BatchState.ENDED,
    HELD: BatchState.HELD,
    TRANSFERRING: BatchState.ENDING,
    SUSPENDED: BatchState.RUNNING,
}
"""What a JobStatus means where no node is concerned; see `_state` for where one is."""

OURS = "PeriodicRemove"
"""In HTCondor's words for a removal that the description above asked for."""

HOLDS = {
    1: "its user or the site's administrators hold it: condor_release",
    3: "its own policy holds it: change the site's option `native`",
    5: "its own policy holds it: change the site's option `native`",
    6: "the node could not start it: ask the site's administrators",
    14: "the node lacks its folder: choose a workdir that all nodes see",
    15: "it was submitted on hold: change the site's option `native`",
    26: "the site's policy holds it: ask the site's administrators",
    34: "it took more memory than it asked for: ask for more",
    46: "its walltime is over",
    47: "its walltime is over",
}
"""Reasons of a hold by their numbers, and what mends them."""

NO_ANSWER = re.compile(
    r"failed to connect|timed? ?out|communication|can't (find address|send)|disconnect|CEDAR:|SECMAN:|AUTHENTICATE:",
    re.IGNORECASE,
)
"""After these the queue may have the job all the same."""

BUSY = r"exceed MAX_JOBS_(SUBMITTED|PER_OWNER)|try again later"
"""The queue has too many jobs, of this user or at all, for now."""

HINTS = (
    ("can't find address", "no queue runs where the login is: set CONDOR_CONFIG in the site's `environment`"),
    ("requirements", "mend the site's option `constraint`: it is an expression on a machine's attributes"),
    ("accounting_group", "set the site's option `account` to an accounting group that you may use"),
    ("parse", "mend the site's options `native` and `constraint`"),
    ("no such file", "HTCondor's commands are not in PATH: set PATH in the site's `environment`"),
    ("permi", "the site lets this account submit nothing: ask its administrators"),
)

LISTED = (
    *(
        "ClusterId",
        "ProcId",
        "GhvName",
        "JobStatus",
        "NumShadowStarts",
        "NumJobMatches",
        "RemoteHost",
        "LastRemoteHost",
    ),
    *(
        "ExitCode",
        "ExitSignal",
        "HoldReason",
        "HoldReasonCode",
        "LastHoldReason",
        "LastHoldReasonCode",
        "VacateReason",
        "RemoveReason",
    ),
    *("JobCurrentReconnectAttempt", "LastRejMatchReason"),
)

OPTIONS = RATES | {"account", "constraint", "native", "spool_lag", "listing_interval"}


class HTCondorDriver:
    """See `execution.ports.Driver`.

    Raises:
        LinkError: the site has options that this driver does not know, or cannot read.
    """

    listing_lag = 2.0

    def __init__(self, site: Site) -> None:
        known_options(site, OPTIONS)
        # NFS clients answer look-ups from their cache for up to a minute; a site with another spool says so.
        self.spool_lag = seconds_option(site, "spool_lag", 65.0)
        self.idle = idle_of(site)
        self.listing_interval = max(1.0, seconds_option(site, "listing_interval", 10.0))
        self.rates = rates_of(site)
        self._site = site
        own = [f"accounting_group = {account}"] if (account := site.options.get("account")) else []
        wanted = f"({site.options['constraint']}) && " if site.options.get("constraint") else ""
        own += [f"requirements = {wanted}({NEVER_RAN})"]
        self._own = own + [line.strip() for line in re.split(r"[;\n]", site.options.get("native", "")) if line.strip()]
        if any(re.match(r"queue\b", line, re.IGNORECASE) for line in self._own):
            raise LinkError(
                f"configure site {site.name}: options.native: `queue` would submit the job more than once",
                hint="it holds submit commands, separated by semicolons, e.g. request_disk = 4G; rank = Mips",
            )

    def max_jobs(self, site: Site) -> int:
        return site.max_jobs or 100

    def probe(self) -> list[Command]:
        machines = ("-constraint", 'SlotType =!= "Dynamic"', "-af", "TotalSlotCpus", "TotalSlotMemory")
        return [self._command("condor_version"), self._command("condor_status", *machines)]

    def limits(self, results: Sequence[CommandResult]) -> Limits:
        """What the largest machine has. Walltimes are bounded by policies that nobody can read."""
        if not results:
            return Limits()
        version, machines = results
        if version.code != 0:
            return Limits(problem=f"{explain(version, 'condor_version')}; {hint(version.stderr, HINTS)}")
        found = re.search(r"CondorVersion: (\S+)", version.stdout)
        rows = [words for line in machines.stdout.splitlines() if len(words := line.split()) == 2]
        sizes = [(int(cpus), int(memory)) for cpus, memory in rows if cpus.isdigit() and memory.isdigit()]
        return Limits(
            version=f"htcondor {found[1]}" if found else "htcondor",
            max_cpus=max((cpus for cpus, _ in sizes), default=None),
            max_memory=max(((memory << 20) - OVERHEAD for _, memory in sizes), default=None),
        )

    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        """All of them are processes of one cluster, each with a name of its own: taken all, or none."""
        own = "".join(self._description(job) for job in jobs)
        return [self._command("condor_submit", "-terse", "-", stdin=DESCRIPTION + own)] if jobs else []

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        [answer] = (_submitted(result) for result in results)
        ids = (f"{answer.batch_id}.{process}" if answer.batch_id else "" for process in range(len(jobs)))
        return {job.name: replace(answer, batch_id=id_) for job, id_ in zip(jobs, ids, strict=True)}

    def query(self, installation: str) -> list[Command]:
        ours = f'substr(GhvName, 0, {len(installation) + 1}) == "{installation}-"'
        return [self._command("condor_q", "-json", "-constraint", ours, "-attributes", ",".join(LISTED))]

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        [result] = results
        if result.code != 0 or result.stderr.strip():
            return None, explain(result, "condor_q")
        try:
            rows = json.loads(result.stdout) if result.stdout.strip() else []  # of no jobs it says nothing at all
            jobs = [_job(row) for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return None, f"condor_q: an answer that makes no sense: {type(error).__name__}: {error}"
        return Listing(as_of, by_name(jobs)), ""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        # By name: it reaches a doubled submission too. What has ended is not to be "removed" as well.
        names = " || ".join(f'GhvName == "{name}"' for name, _ in jobs)
        words = f"({names}) && JobStatus =!= {REMOVED} && JobStatus =!= {COMPLETED}"
        return [self._command("condor_rm", "-constraint", words)] if jobs else []

    def survey(self) -> list[Command]:
        wanted = f" && ({self._site.options['constraint']})" if self._site.options.get("constraint") else ""
        slots = ("-constraint", f'SlotType =!= "Dynamic"{wanted}', "-af", *SLOT)
        return [
            self._command("condor_status", *slots),
            self._command("condor_status", "-schedd", "-af", "TotalIdleJobs"),
        ]

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        """Of the machines that `constraint` allows. Jobs that wait are those of all the pool's queues."""
        slots, queues = results
        if slots.code != 0:
            return None
        waits = [int(word) for word in queues.stdout.split() if word.isdigit()] if queues.code == 0 else []
        return capacity(condor_rows(slots.stdout), sum(waits) if waits else None)

    def _description(self, job: Submission) -> str:
        if re.search(r"[\r\n]", job.entry + job.start + job.scratch):
            raise LinkError(
                f"submit {job.name}: a submit description cannot hold a path with a line break: {job.entry!r}",
                hint="choose another workdir or scratch for the site",
            )
        script = "; ".join(batch_script(job, log=f"{job.entry}/{BATCH_LOG}").strip().split("\n")[1:])
        own = [
            f"arguments = {quoted('-c', script)}",
            f"request_cpus = {job.cpus}",
            f"request_memory = {math.ceil((job.memory + OVERHEAD) / (1 << 20))}",
            f"allowed_job_duration = {job.walltime}",
            f"batch_name = {job.name}",
            f'+GhvName = "{job.name}"',
            *self._own,
        ]
        return "\n".join(own) + "\nqueue\n"

    def _command(self, *argv: str, stdin: str = "") -> Command:
        # Whatever the site's habit: other users' jobs are not ours, however they call them.
        environment = {"_CONDOR_CONDOR_Q_ONLY_MY_JOBS": "true", **self._site.environment}
        return Command(argv, stdin=stdin, environment=environment)


def quoted(*words: str) -> str:
    """Arguments as a submit description spells them. A dollar that would begin a macro of its own is set apart from
    what follows it, by closing and opening the shell's quotes: it stands between such quotes, or the shell would
    have expanded it, too.

    >>> print(quoted("-c", "echo 'a \\"b\\" $(c)'"))
    "'-c' 'echo ''a ""b"" $''''(c)'''"
    """
    apart = (re.sub(r"\$(?=\w*\(|\$)", "$''", word) for word in words)
    inner = " ".join("'" + word.replace("'", "''") + "'" for word in apart)
    return '"' + inner.replace('"', '""') + '"'


def _submitted(result: CommandResult) -> Submitted:
    # 23.9 can die of a missing cipher after it has told the number; the number is told only when the queue has the job.
    if found := re.search(r"^(\d+)\.0 - \1\.\d+$", result.stdout, re.MULTILINE):
        return Submitted(True, found[1])
    return refused(result, "condor_submit", no_answer=NO_ANSWER, busy=BUSY, hints=HINTS)


def _job(row: Mapping[str, object]) -> BatchJob:
    state = _state(row)
    node = str(row.get("RemoteHost") or row.get("LastRemoteHost") or "").partition("@")[2]
    return BatchJob(
        f"{row['ClusterId']}.{row['ProcId']}",
        str(row["GhvName"]),
        state,
        _reason(row, state),
        node,
        _exit_code(row) if state is BatchState.ENDED else None,
        max(0, _number(row, "NumJobMatches") - 1),
    )


def _state(row: Mapping[str, object]) -> BatchState:
    """Where a node is concerned: a job that is held or removed has ended once that node has let it go and told how it
    ended. Without its word the queue has only given it up."""
    status = _number(row, "JobStatus")
    state = STATES.get(status, BatchState.UNKNOWN)
    if status not in (IDLE, REMOVED, HELD) or not _number(row, "NumShadowStarts"):
        return state
    if row.get("RemoteHost"):
        return BatchState.ENDING
    return BatchState.NODE_LOST if _exit_code(row) is None else BatchState.ENDED


def _reason(row: Mapping[str, object], state: BatchState) -> str:
    """The site's own words: why it waits, how it ended."""
    status = _number(row, "JobStatus")
    if state is BatchState.UNKNOWN:
        return f"HTCondor's state {row.get('JobStatus')}"
    if status == HELD:
        return _withhint(str(row.get("HoldReason") or "held"), _number(row, "HoldReasonCode"))
    if state is BatchState.PENDING:
        return str(row.get("LastRejMatchReason") or "").strip()
    if state is BatchState.RUNNING:
        return "its node does not answer" if _number(row, "JobCurrentReconnectAttempt") else ""
    if status == COMPLETED:
        return ""
    if held := str(row.get("LastHoldReason") or ""):
        return _withhint(held, _number(row, "LastHoldReasonCode"))
    words = str(row.get("VacateReason") or row.get("RemoveReason") or "")
    return "its node let it go, and it is not to begin again" if not words or OURS in words else words


def _withhint(words: str, code: int) -> str:
    """The reason of a hold and, where its number says so, what mends it."""
    return f"{words}: {HOLDS[code]}" if code in HOLDS else words


def _exit_code(row: Mapping[str, object]) -> int | None:
    """What a shell would show; None: no node has told."""
    if isinstance(number := row.get("ExitSignal"), int):
        return 128 + number
    return code if isinstance(code := row.get("ExitCode"), int) else None


def _number(row: Mapping[str, object], key: str) -> int:
    value = row.get(key)
    return value if isinstance(value, int) else 0
