"""Grid Engine: command lines for qsub, qstat, qdel and qacct, and what their answers mean. Learnt from 8.1.9 itself.

What has ended leaves qstat at once; only the accounting file knows it then, and qacct reads all of that file. So qacct
is asked when a job has gone and nobody has said how it ended. Until somebody does, it is absent, which proves nothing.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gridhypervisor.model.batch import BatchJob, BatchState, Limits, Listing, Submission, Submitted
from gridhypervisor.model.capacity import Capacity, capacity
from gridhypervisor.model.records import Site
from gridhypervisor.model.wire import BATCH_LOG, BUNDLES, Command, CommandResult
from gridhypervisor.sites.arrays import (
    array_name,
    array_of,
    array_script,
    element,
    grouped,
    in_steps,
    index,
    is_array,
    step,
)
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
from gridhypervisor.sites.nodes import qhost_bytes, qhost_rows

LETTERS = frozenset("hqwrtsSTNPRdE")
"""What the letters of a state say, of which qstat shows any number: hold, queued, waiting, running, transferring,
suspended (by its user, its queue, a threshold, the system), run again, deletion asked for, error."""

HELD = {
    "E": "the site could not start it and keeps it (Eqw): mend that and `qmod -cj {id}`, or ask its administrators",
    "h": "on hold: `qrls {id}`, or ask the site's administrators",
}
"""Why a job waits that time alone does not start."""

SEEK = 100
"""For how many listings the end of a job that is gone is looked for, ever more seldom. Accounts are written late, by
seconds mostly; a job that was deleted before it began never gets into them."""

SEEK_OLD = 4
"""For how many listings ends from before our time are looked for."""

RUNS_AGAIN = frozenset({"24", "25", "30"})
"""Accounts' `failed` of a run after which Grid Engine keeps the job; 25 also after exit code 99, whatever `-r` says."""

OVER = frozenset({"0", "12", "13", "14", "15", "16", "17", "37", "100"})
"""`failed` of a run that the node saw end. Others happen before a run begins, except for 18 to 21: there the node lost
sight of it, after a crash, but also when only the job's shepherd was killed; the job itself runs on then."""

UNSEEN = frozenset({"18", "19", "20", "21"})

USAGE = ("ru_wallclock", "ru_utime", "ru_stime", "ru_maxrss", "ru_minflt", "ru_nvcsw", "cpu", "maxvmem")
"""What the node alone can know. `qdel -f` leaves a record as of a success, with an end and exit code 0, but none of
this, of jobs that it no longer minds: where a node is cut off they run on."""

REMEMBERED = 10_000
"""Ends of jobs that are told again in each listing. None of a site's queue lasts longer than that many."""

FIRST, SPAN = 1, 1000
"""An array's indices: the first, and how many there may be. A site that takes fewer, or no arrays, refuses one, and its
jobs are then submitted each by itself."""

ACCOUNTS = 2 << 20
"""Bytes of qacct's answer that are looked at: the newest thousand jobs of ours, or so."""

NO_ANSWER = re.compile(
    r"send message|commlib|got \w+ error|answer list|timed? ?out|unable to contact|(can't|cannot|unable to) connect"
    r"|connection|communication",
    re.IGNORECASE,
)
"""After these the queue master may have the job all the same."""

BUSY = r"only \d+ jobs are allowed|try again later"
"""The queue master has too many jobs, of this user or at all (max_u_jobs, max_jobs), for now."""

HINTS = (
    ('queue "', "set the site's option `queue` to one that `qconf -sql` lists"),
    ("parallel environment", "set the site's option `pe` to one of `qconf -spl` whose allocation_rule is $pe_slots"),
    ("project", "set the site's option `project` to one that `qconf -sprjl` lists"),
    ("no suitable queues", "no queue gives a job that much: ask for less walltime, CPUs or memory, or set the options "
     "`queue` and `pe`; where Grid Engine errs here, `native` = `-w n` submits it all the same"),
    ("unknown resource", "set the site's options `memory` and `native` to resources that `qconf -sc` lists"),
    ("submit host", "use one of the site's login hosts"),
    ("sge_root", "set SGE_ROOT, and SGE_CELL if it has one, in the site's `environment` as its settings.sh does"),
    ("act_qmaster", "set SGE_ROOT and SGE_CELL in the site's `environment` as its settings.sh does"),
    ("invalid option", "this Grid Engine lacks that option: change the site's option `native`"),
    ("no such file", "Grid Engine's commands are not in PATH: set PATH in the site's `environment`"),
)  # fmt: skip

OPTIONS = RATES | {"arrays", "queue", "project", "pe", "memory", "native", "spool_lag", "listing_interval"}


class GridEngineDriver:
    """See `execution.ports.Driver`. `workdir`: the account's, absolute; `bundle`: digest.

    It remembers which jobs it has listed and how they ended, but nothing that it could not ask for again.

    Raises:
        LinkError: the site has options that this driver does not know, or cannot read.
    """

    listing_lag = 5.0  # a queue master with reader threads answers from a copy that is a little behind

    def __init__(self, site: Site, workdir: str, bundle: str) -> None:
        known_options(site, OPTIONS)
        # NFS clients answer look-ups from their cache for up to a minute; a site with another spool says so.
        self.spool_lag = seconds_option(site, "spool_lag", 65.0)
        self.idle = idle_of(site)
        self.listing_interval = max(1.0, seconds_option(site, "listing_interval", 10.0))
        self.rates = rates_of(site)
        self._site = site
        self._busybox = f"{workdir}/{BUNDLES}/{bundle}/busybox"
        self._native = native_words(site)
        self._span = SPAN if choice_option(site, "arrays", "yes", "no") == "yes" else 1
        self._prefix = ""  # of our jobs' names
        self._listed: dict[str, BatchJob] = {}  # by name: in qstat's last answer
        self._sought = {"": 0}  # names whose end is looked for, and how often it was; "": jobs from before our time
        self._over: dict[str, BatchJob] = {}  # by name: what the accounts said of those no longer listed
        self._errors: dict[str, str] = {}  # by id, of listed jobs: why the site could not start it; empty: to be asked

    def max_jobs(self, site: Site) -> int:
        return site.max_jobs or 100

    def probe(self) -> list[Command]:
        queues = re.sub(r"@[^,]*", "", self._site.options.get("queue", "")) or "*"
        return [self._command("qstat", "-help"), self._command("qhost"), self._command("qconf", "-sq", queues)]

    def limits(self, results: Sequence[CommandResult]) -> Limits:
        """Those of the largest host and the most patient queue. Without a parallel environment a job gets one CPU."""
        if not results:
            return Limits()
        version, hosts, queues = results
        for result, what in ((version, "qstat"), (hosts, "qhost")):
            if result.code != 0:
                return Limits(problem=f"{explain(result, what)}; {hint(result.stderr, HINTS)}")
        # Some sites show their queues to administrators only: then nothing is known, and qsub will tell.
        times = _walltimes(queues.stdout) if queues.code == 0 else [None]
        if "matches the phrase" in queues.stdout + queues.stderr:
            return Limits(problem=f"no queue {self._site.options.get('queue', '')} at the site; set the option `queue` "
                          "to one that `qconf -sql` lists")  # fmt: skip
        rows = [line.split() for line in hosts.stdout.splitlines()]
        column = {word: number for number, word in enumerate(rows[0])} if rows else {}
        cpus, memory = (
            [row[column[key]] for row in rows[1:] if key in column and len(row) == len(column)]
            for key in ("NCPU", "MEMTOT")
        )
        known = [int(number) for number in cpus if number.isdigit()]
        sizes = [size for word in memory if (size := qhost_bytes(word)) is not None]
        return Limits(
            version=version.stdout.partition("\n")[0].strip(),
            max_walltime=_longest(times),
            max_cpus=(max(known) if known else None) if self._site.options.get("pe") else 1,
            max_memory=max(sizes) - OVERHEAD if sizes else None,
        )

    def submit(self, jobs: Sequence[Submission], site: Site) -> list[Command]:
        """Jobs that are alike go as one array: qsub takes one at a time."""
        for job in jobs:
            self._sought.setdefault(job.name, 0)
        return [self._submit(group) for group in self._groups(jobs)]

    def submitted(self, jobs: Sequence[Submission], results: Sequence[CommandResult]) -> dict[str, Submitted]:
        answers = {}
        for group, result in zip(self._groups(jobs), results, strict=True):
            answer, array = _submitted(result), array_name(group, FIRST)
            for job in group:
                at = f".{index(array, job.name)}" if array and answer.batch_id else ""
                answers[job.name] = replace(answer, batch_id=answer.batch_id + at)
        return answers

    def query(self, installation: str) -> list[Command]:
        """First what lives; then, if called for, whose node is silent, why one is in error, and what has ended."""
        self._prefix = f"{installation}-"
        out = [self._own('exec qstat -xml -g d -u "$me"')]  # an array's tasks one by one
        if any(job.node for job in self._listed.values()):
            out.append(self._own('exec qstat -xml -g d -u "$me" -s r -qs u'))
        if errors := {number.partition(".")[0] for number, why in self._errors.items() if not why}:
            out.append(self._command("qstat", "-j", ",".join(sorted(errors))))
        if any(times & (times - 1) == 0 for times in self._sought.values()):
            script = f'qacct -o "$me" -j "$1-*" | "$2" tail -c {ACCOUNTS}'
            out.append(self._own(script, installation, self._busybox))
        return out

    def listing(self, results: Sequence[CommandResult], as_of: float) -> tuple[Listing | None, str]:
        first, *others = results
        if first.code != 0 or not first.stdout.rstrip().endswith("</job_info>"):
            return None, explain(first, "qstat")
        # Which of the others were asked for is not known here, nor needed: each is told by its form.
        lost: set[str] = set()
        for result in others:
            if result.code == 0:
                lost |= {number for number, *_ in _rows(result.stdout)}
                self._over |= _accounts(result.stdout)
                self._errors |= _errors(result.stdout)
        rows = [row for row in _rows(first.stdout) if row[1].startswith(self._prefix) and not is_array(row[1])]
        self._errors = {number: self._errors.get(number, "") for number, _, letters, _ in rows if "E" in letters}
        listed = by_name(self._job(row, lost) for row in rows)
        for name in self._listed.keys() - listed.keys():
            self._sought[name] = 0
        # What is listed lives: what the accounts say of it is about an earlier try.
        over = [item for item in self._over.items() if item[0] not in listed][-REMEMBERED:]
        settled = listed.keys() | {name for name, job in over if job.state is BatchState.ENDED}
        self._sought = {
            name: times + 1
            for name, times in self._sought.items()
            if name not in settled and times < (SEEK if name else SEEK_OLD)
        }
        self._listed, self._over = listed, dict(over)
        return Listing(as_of, {**self._over, **listed}), ""

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[Command]:
        # By name: it reaches a doubled submission too, and ids begin anew when they have reached their highest.
        alone = [self._command("qdel", *(name for name, _ in jobs))] if jobs else []
        known = {name: self._listed[name].id if name in self._listed else number for name, number in jobs}
        tasks: dict[str, list[str]] = {}  # by array
        for name, number in known.items():
            if at := number.partition(".")[2]:
                tasks.setdefault(array_of(name, int(at)), []).append(at)
        return alone + [self._command("qdel", array, "-t", ",".join(those)) for array, those in tasks.items()]

    def survey(self) -> list[Command]:
        return [
            self._command("qhost", "-q"),
            self._command(*counted("qstat", "-g", "d", "-s", "p", "-u", "*")),
        ]

    def capacity(self, results: Sequence[CommandResult]) -> Capacity | None:
        """Of the queues that the site's options name, or of all. A node's cores are the slots of these."""
        hosts, waiting = results
        if hosts.code != 0:
            return None
        wanted = {name.partition("@")[0] for name in self._site.options.get("queue", "").split(",")} - {""}
        if any(set(name) & set("*?[") for name in wanted):
            wanted = set()
        return capacity(qhost_rows(hosts.stdout, wanted), count_of(waiting, heads=2))

    def _job(self, row: tuple[str, str, str, str], lost: set[str]) -> BatchJob:
        number, name, letters, queue = row
        node = queue.partition("@")[2]
        restarts = int("R" in letters)
        state, reason = state_of(letters), ""
        if state is BatchState.HELD:
            reason = HELD["E" if "E" in letters else "h"].format(id=number)
            reason += f": {why}" if (why := self._errors.get(number)) else ""
        elif state is BatchState.UNKNOWN:
            reason = f"Grid Engine's state {letters}"
        elif number in lost and node:
            state, reason = BatchState.NODE_LOST, f"{node} does not answer the queue master"
        return BatchJob(number, name, state, reason, node, restarts=restarts)

    def _groups(self, jobs: Sequence[Submission]) -> list[tuple[Submission, ...]]:
        return [part for group in grouped(jobs, self._span) for part in in_steps(group)]

    def _submit(self, group: Sequence[Submission]) -> Command:
        job, array = group[0], array_name(group, FIRST)
        if not array:
            script = batch_script(job, log=f"{job.entry}/{BATCH_LOG}")
            return replace(self._command(*self._qsub(job, job.name), *self._native, stdin=script), timeout=PATIENCE)
        tasks = ("-t", f"{FIRST}-{index(array, group[-1].name)}:{step(group)}")
        script = array_script(array, group, "SGE_TASK_ID")
        return replace(self._command(*self._qsub(job, array), *tasks, *self._native, stdin=script), timeout=PATIENCE)

    def _qsub(self, job: Submission, name: str) -> list[str]:
        options = self._site.options
        resource = options.get("memory")
        # With -notify KILL is announced by USR2, and a suspension by USR1: the pilot ends cleanly at either.
        # Verified at once: what no queue would ever take is refused, rather than left waiting for good. But what hosts
        # measure, mem_free for one, would be refused in any amount. Files are named in the script alone: in its own
        # options Grid Engine takes `:`, `,` and `$` for something else.
        argv = [
            "qsub", "-N", name, "-S", "/bin/sh", "-wd", "/", "-o", "/dev/null", "-j", "y", "-m", "n",
            "-r", "n", "-notify", "-w", "n" if resource else "e", "-l", f"h_rt={job.walltime}",
        ]  # fmt: skip
        if job.cpus > 1:
            # Without one it would get a single slot; the limits say so, and if not, the refusal will.
            argv += ["-pe", options.get("pe", "option-pe-is-not-set"), str(job.cpus)]
        if resource:
            argv += ["-l", f"{resource}={math.ceil((job.memory + OVERHEAD) / job.cpus / (1 << 20))}M"]
        for flag, key in (("-q", "queue"), ("-P", "project")):
            argv += [flag, options[key]] if options.get(key) else []
        return argv

    def _own(self, script: str, *arguments: str) -> Command:
        """A script about the jobs of this account, whatever a site's defaults let qstat show."""
        return self._command("/bin/sh", "-c", f"me=$(id -un) && {script}", "sh", *arguments)

    def _command(self, *argv: str, stdin: str = "") -> Command:
        return Command(argv, stdin=stdin, environment=self._site.environment)


def state_of(letters: str) -> BatchState:
    """What qstat's letters come to.

    >>> [str(state_of(letters)) for letters in ("qw", "hqw", "Eqw", "t", "Rr", "dr", "x")]
    ['pending', 'held', 'held', 'running', 'running', 'ending', 'unknown']
    """
    if not letters or not LETTERS.issuperset(letters):
        return BatchState.UNKNOWN
    if "E" in letters:
        return BatchState.HELD
    if "d" in letters:
        return BatchState.ENDING
    if letters[-1] in "qw":
        return BatchState.HELD if "h" in letters else BatchState.PENDING
    return BatchState.RUNNING if set(letters) & set("rtsSTNP") else BatchState.UNKNOWN


def _rows(xml: str) -> Iterator[tuple[str, str, str, str]]:
    """Id, name, state and queue instance of each job, or task of an array, in an answer of `qstat -xml -g d`.

    Not by an XML parser: the name of any other job of the user's can make it bad XML, in some versions.
    """
    for row in re.findall(r"<job_list\b.*?</job_list>", xml, re.DOTALL):
        found = dict(re.findall(r"<(JB_job_number|JB_name|state|queue_name|tasks)>([^<]*)</", row))
        if found.get("JB_job_number", "").isdigit() and "state" in found:
            number, name = _task(found["JB_job_number"], html.unescape(found.get("JB_name", "")), found.get("tasks"))
            yield number, name, found["state"], found.get("queue_name", "")


def _task(number: str, name: str, task: str | None) -> tuple[str, str]:
    """Id and name of a job; of an array's task, with its index, where a word for that is given."""
    return (f"{number}.{task}", element(name, int(task))) if task and task.isdigit() else (number, name)


def _errors(text: str) -> dict[str, str]:
    """By id: the last reason for an error in an answer of `qstat -j`. A job that is no array has a task 1 as well."""
    out, number = {}, ""
    for line in text.splitlines():
        if line.startswith("job_number:"):
            number = line.split()[1]
        elif found := re.match(r"error reason +(\d+): *(.*)", line):
            out[number] = out[f"{number}.{found[1]}"] = found[2].strip()
    return out


def _accounts(text: str) -> dict[str, BatchJob]:
    """By name: the last run of which `qacct -j` says that it is over. What it prints is oldest first."""
    out: dict[str, BatchJob] = {}  # by id, as is the next
    again: dict[str, int] = {}
    for block in re.split(r"^=+$", text, flags=re.MULTILINE)[1:]:
        fields = {key: words.strip() for key, words in re.findall(r"^(\w+)[ \t]+(.*)$", block, re.MULTILINE)}
        if not {"jobname", "jobnumber", "hostname", "failed", "exit_status", *USAGE} <= fields.keys():
            continue  # a piece
        number, name = _task(fields["jobnumber"], fields["jobname"], fields.get("taskid"))
        node = fields["hostname"]
        failed, _, why = (part.strip() for part in fields["failed"].partition(":"))
        if failed in RUNS_AGAIN:
            again[number] = again.get(number, 0) + 1
        elif failed in OVER and any(re.search(r"[1-9]", fields[key]) for key in USAGE):
            code = int(found[0]) if (found := re.match(r"\d+", fields["exit_status"])) else None
            out[number] = BatchJob(number, name, BatchState.ENDED, why, node, code, again.get(number, 0))
        elif failed in OVER | UNSEEN:
            words = f"{why or 'its end is in the accounts'}, which {node} has not confirmed"
            out[number] = BatchJob(number, name, BatchState.NODE_LOST, words, node, restarts=again.get(number, 0))
    return by_name(out.values())


def _walltimes(text: str) -> list[int | None]:
    """The longest that each queue of an answer of `qconf -sq` lets a job run, in seconds; None: as long as it likes."""
    lines = re.findall(r"^h_rt\s+(.*)$", text.replace("\\\n", ""), re.MULTILINE)
    out = []
    for line in lines:
        words = re.findall(r"INFINITY|[\d:]+", re.sub(r"\[[^=\]]*=", " ", line))
        times = [seconds(word) for word in words]
        out.append(_longest(times))
    return out


def _longest(times: Sequence[int | None]) -> int | None:
    """None, which is no limit, is the longest; nothing known is no limit known."""
    limits = [time for time in times if time is not None]
    return max(limits) if limits and len(limits) == len(times) else None


def seconds(text: str) -> int | None:
    """Grid Engine's `hours:minutes:seconds` or seconds; None where it sets no limit.

    >>> seconds("24:00:00"), seconds("90"), seconds("INFINITY")
    (86400, 90, None)
    """
    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) not in (1, 3):
        return None
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return total


def _submitted(result: CommandResult) -> Submitted:
    # With the site's own defaults it may be the number alone (-terse), or stand below other words.
    number = re.search(r"^(?:Your job(?:-array)? )?(\d+)(?:\.\d+-\d+:\d+)?(?: \(.*)?$", result.stdout, re.MULTILINE)
    if result.code == 0 and number:
        return Submitted(True, number[1])
    return refused(result, "qsub", no_answer=NO_ANSWER, busy=BUSY, hints=HINTS)
