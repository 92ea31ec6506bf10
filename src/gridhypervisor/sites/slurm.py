"""Slurm: command lines for sbatch, squeue and scancel, and what their answers mean. Learnt from 22.05 itself.

It asks for no JSON (22.05's is slow or missing) and keeps no clock. Slurm counts walltimes in whole minutes and ends
jobs up to a minute late; the pilot's own watchdog is exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from gridhypervisor.model.batch import BatchJob, BatchState, Limits, Listing, Submission, Submitted
from gridhypervisor.model.capacity import Capacity, capacity
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BATCH_LOG, Command, CommandResult
from gridhypervisor.sites.arrays import array_name, array_of, array_script, element, grouped, index, is_array
from gridhypervisor.sites.carrying import courier_script
from gridhypervisor.sites.driver import (
    OVERHEAD,
    PATIENCE,
    RATES,
    batch_script,
    by_name,
    choice_option,
    count_of,
    counted,
    explain,
    hint,
    idle_of,
    known_options,
    native_words,
    rates_of,
    refused,
    seconds_option,
)
from gridhypervisor.sites.nodes import RESERVATIONS, SINFO, maintenance, sinfo_rows

WARNING, WARNED_FROM = 30, 300
"""Seconds before the end at which Slurm sends USR1, and the shortest walltime that gets one. Slurm may send it a minute
early, which in a short job would be most of the job; the pilot watches its own walltime in any case."""

STATES = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "POWER_UP_NODE"), BatchState.PENDING),
    **dict.fromkeys(("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"), BatchState.HELD),
    **dict.fromkeys(("RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"), BatchState.RUNNING),
    **dict.fromkeys(("COMPLETING", "STAGE_OUT"), BatchState.ENDING),
    **dict.fromkeys(
        ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "OUT_OF_MEMORY", "PREEMPTED",
         "RECONFIG_FAIL", "TIMEOUT"), BatchState.ENDED
    ),
    # Slurm declares these ends without having heard from the node: the processes may well go on there.
    **dict.fromkeys(("NODE_FAIL", "REVOKED"), BatchState.NODE_LOST),
}  # fmt: skip

DECLARED = frozenset({"CANCELLED", "DEADLINE", "PREEMPTED", "TIMEOUT"})
"""Ends that Slurm's controller declares by itself. Once the node has done as it was told, its exit status is there too:
a signal, or the pilot's own code; while that is 0 the node was given up and the processes may go on there."""

NEVER_STARTS = {
    "PartitionTimeLimit": "the walltime is above the partition's limit: ask for less, or for another partition",
    "PartitionNodeLimit": "the partition does not give that many nodes or CPUs to one job",
    "PartitionConfig": "the partition does not allow so many CPUs, so much memory, or such a walltime",
    "BadConstraints": "no node has what `constraint` asks for",
    "InvalidAccount": "the site does not know the `account` for this user",
    "InvalidQOS": "the site does not allow this `qos` for this account",
    "DependencyNeverSatisfied": "the job depends on one that failed",
    "JobHeldUser": "the job was held by its user: scontrol release",
    "JobHeldAdmin": "the job was held by the site's administrators: ask them",
    "QOSMaxWallDurationPerJobLimit": "the walltime is above the limit of the `qos`",
    "AssocMaxWallDurationPerJobLimit": "the walltime is above the limit of the `account`",
    "launch failed requeued held": "the site could not start it and holds it: ask its administrators",
}
"""Reasons of a pending job that time alone does not mend, and what does."""

NO_ANSWER = re.compile(
    r"unable to contact|connect failure|timed out|zero bytes|communication|connection|transport|unexpected message"
    r"|message (receive|send) failure|authentication error",
    re.IGNORECASE,
)
"""After these the controller may have the job all the same: one that 22.05 called timed out surfaced seconds later."""

BUSY = r"MaxSubmitJob|GrpSubmitJob|temporarily un(able|available)|too many (jobs|requests)|rate limit"
"""It has too much to do, or too many jobs of this account's, for now."""

HINTS = (
    ("partition", "set the site's option `partition` to one that `sinfo` lists"),
    ("time limit", "ask for less walltime, or choose another partition"),
    ("account", "set the site's options `account` and `qos` to what `sacctmgr show assoc user=$USER` lists"),
    ("feature", "set the site's option `constraint` to what `sinfo -o %f` lists"),
    ("node configuration", "ask for fewer CPUs or less memory, or choose another partition"),
    ("memory", "ask for less memory, or choose another partition"),
    ("unrecognized option", "this Slurm lacks that option: change the site's option `native`"),
    ("no such file", "Slurm's commands are not in PATH: set PATH in the site's `environment`"),
    ("configuration source", "set SLURM_CONF in the site's `environment`"),
)

FLAGS = {"partition": "--partition", "account": "--account", "qos": "--qos", "constraint": "--constraint"}
OPTIONS = RATES | {*FLAGS, "arrays", "control", "listen", "native", "spool_lag", "listing_interval"}
LISTED = ("ArrayJobID:|", "ArrayTaskID:|", "State:|", "Reason:|", "exit_code:|", "RestartCnt:|", "NodeList:|", "Name:|")
FIELDS = 2 + len(LISTED)

SPAN = 1000
"""An array's indices are below this: Slurm's MaxArraySize is 1001 unless a site changed it. A site that takes fewer, or
no arrays, refuses one, and its jobs are then submitted each by itself."""

CANCEL_ELEMENT = '[ "$(squeue --noheader --jobs="$1" --format=%j)" != "$2" ] || exec scancel "$1"'
"""With a name, scancel takes an element of an array that waits for all that wait; so the name is compared before: an
id may meanwhile be somebody else's."""


class SlurmDriver:
    """See `execution.ports.Driver`.

    Raises:
        LinkError: the site has options that this driver does not know, or cannot read.
    """

    listing_lag = 2.0  # squeue asks the controller that took the job; its own start may have been earlier, though

    def __init__(self, site: Site) -> None:
        known_options(site, OPTIONS)
        # NFS clients answer look-ups from their cache for up to a minute; a site with another spool says so. What comes
        # by TCP is written by the relay itself.
        carried = choice_option(site, "control", "spool", "tcp") == "tcp"
        self.spool_lag = seconds_option(site, "spool_lag", 5.0 if carried else 65.0)
        self.idle = idle_of(site)
        self.listing_interval = max(1.0, seconds_option(site, "listing_interval", 10.0))
        self.rates = rates_of(site)
        self._site = site
        self._span = SPAN if choice_option(site, "arrays", "yes", "no") == "yes" else 1
        self._native = native_words(site)

    def max_jobs(self, site: Site) -> int:
        return site.max_jobs or 100

    def probe(self) -> list[Command]:
        return [
            self._command("sbatch", "--version"),
            self._command("sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%c|%m|%L"),
            self._command("scontrol", "--oneliner", "show", "reservation"),
        ]

    def limits(self, results: Sequence[CommandResult]) -> Limits:
        """The limits of the partition that the site's options name, or of the default one."""
        if not results:
            return Limits()
        version, partitions, reservations = results
        for result, what in ((version, "sbatch"), (partitions, "sinfo")):
            if result.code != 0:
                return Limits(problem=f"{explain(result, what)}; {hint(result.stderr, HINTS)}")
        wanted = set(self._site.options.get("partition", "").split(",")) - {""}
        rows = [row for line in partitions.stdout.splitlines() if len(row := line.split("|")) == 6]
        names = sorted({row[0].rstrip("*") for row in rows})
        rows = [row for row in rows if (row[0].rstrip("*") in wanted if wanted else row[0].endswith("*"))]
        if not rows:
            asked = f"no partition {','.join(sorted(wanted))}" if wanted else "no default partition"
            return Limits(problem=f"{asked} at the site; set the option `partition` to one of {', '.join(names)}")
        times = [seconds(limit) for _, _, limit, *_ in rows]
        defaults = {f"default walltime: {default} s" for *_, text in rows if (default := seconds(text)) is not None}
        return Limits(
            version=version.stdout.strip(),
            max_walltime=None if None in times else max(time for time in times if time is not None),
            max_cpus=max(_number(cpus) for _, _, _, cpus, *_ in rows),
            max_memory=(max(_number(memory) for *_, memory, _ in rows) << 20) - OVERHEAD,
            notes=(*sorted(defaults), *_reservations(reservations)),
        )

    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        """Jobs that are alike go as one array: sbatch takes one at a time, some 40 a second."""
        return [self._submit(group) for group in grouped(jobs, self._span)]

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        answers = {}
        for group, result in zip(grouped(jobs, self._span), results, strict=True):
            answer, array = _submitted(result), array_name(group)
            for job in group:
                at = f"_{index(array, job.name)}" if array and answer.batch_id else ""
                answers[job.name] = replace(answer, batch_id=answer.batch_id + at)
        return answers

    def query(self, installation: str) -> list[Command]:
        # Every line carries the installation, so that the answer can be read by itself. With `all`, squeue shows also
        # what ended within MinJobAge: where a site keeps no accounts, that is the only record of it.
        columns = ",".join((f"JobID:|{installation}|", *LISTED))
        return [
            self._command("squeue", "--noheader", "--all", "--array", "--states=all", "--me", f"--Format={columns}")
        ]

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        [result] = results
        # squeue can fail, say so, print nothing and still exit with 0: for a user that it does not know, for one.
        if result.code != 0 or "error" in result.stderr.lower():
            return None, explain(result, "squeue")
        return Listing(as_of, by_name(job for line in result.stdout.splitlines() if (job := _job(line)))), ""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        # By name: it reaches a doubled submission too, and an id may meanwhile be somebody else's.
        alone = [self._command("scancel", f"--name={name}") for name, _ in jobs]
        elements = [(number, array_of(name, int(at))) for name, number in jobs if (at := number.partition("_")[2])]
        return alone + [self._command("/bin/sh", "-c", CANCEL_ELEMENT, "sh", *each) for each in elements]

    def survey(self) -> list[Command]:
        where = [f"--partition={wanted}"] if (wanted := self._site.options.get("partition")) else []
        return [
            self._command("sinfo", "--noheader", "--Node", *where, f"--Format={','.join(SINFO)}"),
            self._command(*counted("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i", *where)),
            self._command("/bin/sh", "-c", RESERVATIONS),
        ]

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        """Of the partitions that the site's options name, or of the default one."""
        nodes, waiting, reservations = results
        if nodes.code != 0 or not nodes.stdout.strip():
            return None
        wanted = set(self._site.options.get("partition", "").split(",")) - {""}
        return capacity(sinfo_rows(nodes.stdout, wanted), count_of(waiting), maintenance(reservations))

    def _submit(self, group: Sequence[Submission]) -> Command:
        job, array = group[0], array_name(group)
        if array:
            # The script finds its own log: of an entry's name Slurm could fill in the index alone.
            indices = ",".join(str(index(array, job.name)) for job in group)
            log, own = "/dev/null", [f"--job-name={array}", f"--array={indices}", "--chdir=/"]
            script = array_script(array, group, "SLURM_ARRAY_TASK_ID")
        elif job.carried is not None:  # the entry is not seen there; the script finds a place for its words
            log, own = "/dev/null", [f"--job-name={job.name}", "--chdir=/"]
            script = courier_script(job, job.carried)
        else:
            # sbatch fills in %-patterns in file names; our entry is to be taken as it stands.
            log = f"{job.entry}/{BATCH_LOG}".replace("%", "%%")
            own = [f"--job-name={job.name}", f"--chdir={job.entry}"]
            script = batch_script(job)
        argv = [
            "sbatch", "--parsable", "--no-requeue", *own, f"--output={log}", f"--error={log}",
            "--open-mode=append", f"--time={minutes(job.walltime)}",
            "--nodes=1", "--ntasks=1", f"--cpus-per-task={job.cpus}",
            f"--mem={math.ceil((job.memory + OVERHEAD) / (1 << 20))}M",
            # Anything but ALL has 22.05 run the user's login through `su` on the node: seconds, or a slurmd that dies.
            "--export=ALL",
        ]  # fmt: skip
        if job.walltime >= WARNED_FROM:
            argv.append(f"--signal=B:USR1@{WARNING}")
        argv += [f"{flag}={value}" for key, flag in FLAGS.items() if (value := self._site.options.get(key))]
        return replace(self._command(*argv, *self._native, stdin=script), timeout=PATIENCE)

    def _command(self, *argv: str, stdin: str = "") -> Command:
        return Command(argv, stdin=stdin, environment=self._site.environment)


def _reservations(result: CommandResult) -> list[str]:
    """Times in which nodes are somebody else's, in the site's own time; a job that would reach into one waits for its
    end. None where the site does not say."""
    fields = (dict(word.partition("=")[::2] for word in line.split()) for line in result.stdout.splitlines())
    return [
        f"reservation {each['ReservationName']}: {each.get('Nodes', '?')} from {each.get('StartTime', '?')} to "
        f"{each.get('EndTime', '?')}"
        for each in fields
        if result.code == 0 and "ReservationName" in each
    ]


def minutes(walltime: int) -> int:
    """Whole minutes that hold `walltime` seconds."""
    return max(1, math.ceil(walltime / 60))


def seconds(text: str) -> int | None:
    """Slurm's `[days-]hours:minutes:seconds`, `minutes:seconds` or `minutes`; None where it sets no limit.

    >>> seconds("1-00:00:00"), seconds("5:00"), seconds("90"), seconds("infinite")
    (86400, 300, 5400, None)
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or bool(dash) != days.isdigit():
        return None
    numbers = [int(part) for part in parts]
    if dash or len(numbers) == 3:  # from hours down
        hours, mins, secs = (*numbers, 0, 0)[:3]
    else:  # from minutes down
        hours, (mins, secs) = 0, (*numbers, 0)[:2]
    return int(days or 0) * 86400 + hours * 3600 + mins * 60 + secs


def _submitted(result: CommandResult) -> Submitted:
    number = result.stdout.strip().split(";")[0].rpartition("\n")[2]
    if result.code == 0 and number.isdigit():
        return Submitted(True, number)
    return refused(result, "sbatch", no_answer=NO_ANSWER, busy=BUSY, hints=HINTS)


def _job(line: str) -> BatchJob | None:
    """A line of `query`, if it is ours. Names of other jobs may hold any character: any line may be a piece of one."""
    fields = line.split("|", FIELDS - 1)
    if len(fields) != FIELDS or not fields[0].isdigit():
        return None
    number, installation, array, task, word, reason, status, restarts, node, rest = fields
    name = rest.removesuffix("|")
    if task.isdigit():
        number, name = f"{array}_{task}", element(name, int(task))
    if not name.startswith(f"{installation}-") or is_array(name):  # what is left of one whose elements were cancelled
        return None
    base = word.split(" ")[0]
    state = STATES.get(base, BatchState.UNKNOWN)
    if base in DECLARED and node and status == "0":
        state, reason = BatchState.NODE_LOST, f"{word}, which {node} has not confirmed"
    elif state is BatchState.UNKNOWN:
        reason = f"Slurm's state {word}: {reason}"
    elif state is BatchState.NODE_LOST:
        reason = word
    elif state is BatchState.PENDING and reason in NEVER_STARTS:
        state, reason = BatchState.HELD, f"{reason}: {NEVER_STARTS[reason]}"
    elif state is BatchState.ENDED and (reason in ("None", "") or base in DECLARED):
        reason = word  # what stands as the reason may be why it waited
    code = _exit_code(int(status)) if state is BatchState.ENDED and status.isdigit() else None
    return BatchJob(number, name, state, "" if reason == "None" else reason, node, code, _number(restarts))


def _exit_code(status: int) -> int:
    """What a shell would show for a status of wait(2), which is what Slurm prints."""
    return 128 + (status & 127) if status & 127 else status >> 8


def _number(text: str) -> int:
    """Slurm marks with a plus where nodes differ, and leaves out or words what it does not count."""
    digits = text.rstrip("+")
    return int(digits) if digits.isdigit() else 0
