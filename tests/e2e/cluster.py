"""An installation that uses a test site's cluster over SSH as an ordinary user: what is the same on every kind of one.

The site's nodes are processes of this machine, so the tests see their files and processes from below, as they do with
the local site. Batch commands are found through a folder of the user's own first, where a test can put another one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gridhypervisor.client import Client
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.views import JobRequest
from gridhypervisor.planning.probes import REACH
from tests.e2e.installation import Installation, _processes, wait_for
from testsites.site import UID, ClusterSite

PATIENT = "trap 'echo stopped; echo saved > result; exit 3' TERM; echo started; while :; do sleep 0.1; done"
"""A program that goes on until it is stopped."""

RERUN = "echo run >> made; echo started; sleep $(cat seconds)"
"""A program that lasts as long as its input `seconds` says. Each attempt takes its inputs anew."""


class ClusterLab(Installation):
    """Its site is called what its kind is. `options`: of `ghv site add`, beside what every site of these tests has."""

    defaults: Mapping[str, str] = {}
    """Options that this one's site has unless it is told otherwise."""

    def __init__(self, folder: Path, scratch: Path, template: Path, site: ClusterSite, **options: str) -> None:
        super().__init__(folder, scratch, template)
        self.site = site
        self.add_site(site.kind, **{**self.defaults, **options})
        assert self.id  # asked once, while the service is there

    def add_site(self, name: str, *words: str, **options: str) -> None:
        """Add the site, with further words for `ghv site add`, and wait until it can be used."""
        settings = (word for key, value in self.settings().items() for word in ("--env", f"{key}={value}"))
        joining = self.site.words(**{"spool_lag": "1", "listing_interval": "1", **options})
        self.ghv("site", "add", name, *joining, *settings, *words)
        wait_for(f"site {name}", lambda: self.health(name) == "up", 600)

    @property
    def commands(self) -> Path:
        """A folder of the user's own in which batch commands are found first: a test can put another one there."""
        return self.site.home / "commands"

    @property
    def commands_there(self) -> str:
        """That folder as the site names it."""
        return f"/home/{self.site.login.user}/commands"

    def settings(self) -> dict[str, str]:
        """What batch commands find in theirs, beside what every login of the site does."""
        if not self.commands.exists():
            self.commands.mkdir()
            os.chown(self.commands, UID, UID)
        return {"PATH": f"{self.commands_there}:/usr/local/bin:/usr/bin:/bin"}

    # -- the site, from above -------------------------------------------------------------------------------------

    def health(self, name: str = "") -> str:
        return str(self.ghv("site", "show", name or self.site.kind, "-o", "json").json["health"])

    def why(self) -> str:
        """Why the site cannot be used, or its batch system not be asked."""
        return str(self.ghv("site", "show", self.site.kind, "-o", "json").json["health_why"])

    def batch_id(self, job: str) -> str:
        """The batch job of the job's newest attempt."""

        def look() -> str:
            attempts = self.job(job)["attempts"]
            return str(attempts[-1]["batch_id"]) if attempts else ""

        return wait_for(f"the batch job of {job}", look)

    @contextlib.contextmanager
    def command(self, name: str, script: str) -> Iterator[None]:
        """While this lasts the relay finds this script instead of a batch command. See `clear_commands`."""
        path, new = self.commands / name, self.commands / f".{name}"
        new.write_text(f"#!/bin/sh\n{script}\n")
        new.chmod(0o755)
        new.rename(path)
        try:
            yield
        finally:
            path.unlink()

    def clear_commands(self) -> None:
        """Remove what the scripts of `command` left beside themselves."""
        for path in self.commands.iterdir():
            path.unlink()

    def together(self, command: str, site: str, program: str, count: int, **spec: Any) -> tuple[str, list[str]]:
        """A job, and so many of this program, with its `result` in a folder `many0`, ..., that come while the first
        one's submission is under way, by this batch command, which knows `--version`: they are submitted together.

        Between, the relay's patience with a command runs: hence no command line for each.
        """
        [socket] = (self.folder / "run").rglob("*.sock")
        client = Client(str(socket))

        def submit(script: str, folder: str, **more: Any) -> str:
            small = ResourcesSpec(memory="128M", scratch="48M")
            asked = JobSpec("tiny", ("sh", "-c", script), resources=small, site=site, **more)
            return client.submit(JobRequest(asked, str(self.work), str(self.work / folder))).id

        gate, reached = self.commands / "gate", self.commands / "reached"
        folder = f"/home/{self.site.login.user}/commands"
        slow = f'[ "$1" = --version ] || {{ : >{folder}/reached; until [ -e {folder}/gate ]; do sleep 0.05; done; }}'
        with self.command(command, f'{slow}; exec /usr/bin/{command} "$@"'):
            first = submit("echo of its own", "first")
            wait_for("its submission", reached.exists)
            rest = [submit(program, f"many{at}", outputs=("result",), **spec) for at in range(count)]
            for job in rest:
                wait_for("its submission", lambda: _state(client, job) == "submitting")  # noqa: B023
            gate.touch()
            for job in (first, *rest):
                wait_for("the site's answer", lambda: self.attempt(job)[1])  # noqa: B023
        return first, rest

    def attempt(self, job: str) -> tuple[str, str]:
        """State and batch id of its only attempt; empty before there is one."""
        found = self.job(job)["attempts"]
        assert len(found) <= 1, found
        return (found[0]["state"], found[0]["batch_id"]) if found else ("", "")

    def assert_checked(self) -> dict[str, str]:
        """Whether `ghv site check` holds, and tells of a node what this machine, of which all nodes are, says too. The
        evidence by claim."""
        found = self.ghv("site", "check", self.site.kind, "-o", "json")
        assert all(check["holds"] for check in found.json), found
        told = {check["claim"]: check["evidence"] for check in found.json}
        node, _, number = told["a batch job runs on a node"].partition(", batch job ")
        assert node in (self.site.name, *self.site.nodes) and number, told
        assert told["nodes share the workdir"] == f"{node} found its orders in /home/{self.site.login.user}/.ghv"
        assert told[REACH].startswith("not needed"), told
        model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        assert model is not None and told["the processor is known"].startswith(model[1].strip()), told
        memory = re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())
        assert memory is not None and told["the memory is known"].startswith(f"{int(memory[1]) >> 10} MiB"), told
        assert re.search(r"(kvm|uml|tcg), (qemu|linux) \d", told["a hypervisor runs guests"]), told
        assert node in self.ghv("site", "show", self.site.kind).out.decode()
        wait_for("no job", lambda: not any(job["name"].startswith("check-") for job in self.jobs()))
        return told

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ghv("list", "-o", "json").json
        return found

    # -- the site, from below -------------------------------------------------------------------------------------

    @property
    def workdir(self) -> Path:
        return self.site.home / ".ghv"

    def processes(self) -> dict[int, str]:
        marks = (f"spool/{self.id}-", f"-name {self.id}-", f"umid={self.id}-")
        return {pid: words for pid, words in _processes() if any(mark in words for mark in marks)}

    def close(self) -> None:
        super().close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _state(client: Client, job: str) -> str:
    attempts = client.job(job).attempts
    return attempts[-1].state if attempts else ""


Lab = TypeVar("Lab", bound=ClusterLab)


@contextlib.contextmanager
def joined(kind: type[Lab], site: ClusterSite, scratch: Path, template: Path, **options: str) -> Iterator[Lab]:
    """An installation that uses the site, for as long as the context lasts."""
    with (
        tempfile.TemporaryDirectory(prefix="ghv-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        contextlib.closing(kind(Path(folder), scratch, template, site, **options)) as made,
    ):
        yield made


def tiny(site: str) -> tuple[str, ...]:
    """Words of `ghv run` for a job there that needs as little as possible."""
    return "--image", "tiny", "--memory", "128M", "--scratch", "48M", "--site", site


def reasons(found: dict[str, Any]) -> list[str]:
    """Why each attempt ended."""
    return [attempt["reason"] or "" for attempt in found["attempts"]]


# -- an SSH connection that is cut in the middle of a submission -------------------------------------------------------

FIRST = 'if [ "$1" = --version ] || [ -e {reached} ]; then exec {real} "$@"; fi\n'
"""What a false submit command begins with: it meets only the first submission, however late it is taken away."""


def cut_after_the_submission(lab: ClusterLab, submit: str) -> None:
    """The batch system has the job, and the answer never came: that costs nothing."""
    reached, real = f"{lab.commands_there}/reached", f"/usr/bin/{submit}"
    script = FIRST.format(reached=reached, real=real) + f'{real} "$@" && : >{reached} && exec sleep 600'
    with lab.command(submit, script):
        job = lab.detach(*tiny(lab.site.kind), "--", "sh", "-c", "echo once; sleep 5")
        wait_for("the submission", (lab.commands / "reached").exists)
        assert lab.site.cut_ssh()
    found = lab.wait(job)
    assert (found["job"]["state"], len(found["attempts"])) == ("done", 1), found
    assert lab.ghv("logs", job).out == b"once\n"
    assert any(story.startswith("submitting>") for story in lab.story(job))
    lab.clear_commands()


def cut_before_the_submission(lab: ClusterLab, submit: str) -> str:
    """The batch system never heard of it, which nobody can know at once; it is submitted again, and only then. The
    job's id."""
    reached, real = f"{lab.commands_there}/reached", f"/usr/bin/{submit}"
    with lab.command(submit, FIRST.format(reached=reached, real=real) + f": >{reached}; exec sleep 600"):
        program = ("sh", "-c", "echo run >> made")
        job = lab.detach(*tiny(lab.site.kind), "--out", "made", "--to", "before", "--", *program)
        wait_for("the submission", (lab.commands / "reached").exists)
        assert lab.site.cut_ssh()
    found = lab.wait(job)
    assert found["job"]["state"] == "done"
    assert reasons(found) == ["lost", "exited"], found
    assert (lab.work / "before/made").read_text() == "run\n"
    lab.clear_commands()
    return job


# -- a job that lasts longer than its batch jobs -----------------------------------------------------------------------

COUNTS = "i=0; while [ $i -lt 100 ]; do i=$((i + 1)); echo $i; echo $i > counted; usleep 250000; done; exit 7"
"""A program that counts up, for longer than one batch job leaves it, however fast its guest boots."""


def goes_on_through_batch_jobs(lab: Installation, *words: str) -> None:
    """A counter that never goes back, though its batch jobs end, each another. What is saved is removed."""
    longer = ("--walltime", "10m", "--segment", "40s", "--out", "counted", "--to", "longer")
    job = lab.detach(*words, *longer, "--", "sh", "-c", COUNTS)
    found = lab.wait(job, 600)
    assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 7), found
    guests = [attempt for attempt in found["attempts"] if attempt["hypervisor"]]  # the last successor had none
    ends = [attempt["reason"] for attempt in guests]
    assert ends[-1] == "exited" and set(ends[:-1]) == {"hand-over"}, found
    assert lab.ghv("logs", job).out.split() == [str(count).encode() for count in range(1, 101)]
    assert (lab.work / "longer/counted").read_text() == "100\n"
    assert "it goes on in another, from checkpoint" in str(lab.events(job))
    wait_for("its checkpoints to be removed", lambda: not list((lab.workdir / "checkpoints").iterdir()))
    assert found["handovers"]["times"] == len(guests) - 1 and found["handovers"]["stood"] > 0, found
    numbers = [attempt["batch_id"] for attempt in guests]
    assert len(numbers) > 1 and len(set(numbers)) == len(numbers)


# -- a batch system that is away ---------------------------------------------------------------------------------------


def without_its_batch_system_for_a_minute(lab: ClusterLab, away: Callable[[], None], back: Callable[[], None]) -> None:
    """Of what runs one job ends meanwhile and comes home, one is cancelled, and one goes on until its batch system is
    there again. What is submitted meanwhile runs afterwards. Nothing runs twice."""
    words = (*tiny(lab.site.kind), "--retry", "5")
    ends = lab.detach(*words, "--", "sh", "-c", "echo started; sleep 10; echo ended")
    stops, goes_on = (
        lab.detach(*words, "--out", "result", "--to", to, "--", "sh", "-c", PATIENT) for to in ("stops", "goes-on")
    )
    for job in (ends, stops, goes_on):
        lab.wait_word(job)
    lab.wait_state(goes_on, "running")
    away()
    since = time.monotonic()
    try:
        wait_for("that it is told", lab.why)
        meanwhile = lab.detach(*words, "--", "echo", "afterwards")
        found = lab.wait(ends)
        assert (found["job"]["state"], lab.ghv("logs", ends).out) == ("done", b"started\nended\n"), found
        lab.ghv("cancel", stops)
        found = lab.wait(stops)
        assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
        assert (lab.work / "stops/result").read_text() == "saved\n"
        wait_for("a minute", lambda: time.monotonic() > since + 60)
        assert lab.job(meanwhile)["job"]["state"] in ("pending", "prolog", "queued")
    finally:
        back()
    found = lab.wait(meanwhile, 300)
    assert (found["job"]["state"], lab.ghv("logs", meanwhile).out) == ("done", b"afterwards\n"), found
    assert lab.job(goes_on)["job"]["state"] == "running"
    lab.ghv("cancel", goes_on)
    found = lab.wait(goes_on)
    assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
    assert (lab.work / "goes-on/result").read_text() == "saved\n"


# -- what a guest and a pilot do beside their own job ------------------------------------------------------------------

COUNTS_ON = "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.3; done"


def suspended_and_resumed(lab: ClusterLab, gone: Callable[[str], bool]) -> None:
    """A guest is saved at the site and gives its place free; another batch job takes it up, and it goes on where it
    stood. `gone`: whether the batch system has no batch job of that name any more."""
    job = lab.detach(*tiny(lab.site.kind), "--hypervisor", "tcg", "--retry", "0", "--", "sh", "-c", COUNTS_ON)

    def counted() -> list[int]:
        return [int(line) for line in lab.ghv("logs", job, "--stream", "stdout").out.split()]

    wait_for("it to count", lambda: len(counted()) > 2, 300)
    entry = lab.entry(job)
    assert entry is not None
    lab.ghv("suspend", job)
    wait_for("it to stand still", lambda: lab.job(job)["job"]["state"] == "suspended", 300)
    wait_for("its batch job's end", lambda: gone(entry.name), 120)
    stood = counted()
    lab.ghv("resume", job)
    wait_for("it to count on", lambda: counted()[-1] > stood[-1], 600)
    lab.ghv("cancel", job)
    found = lab.wait(job)
    assert [reasons(found), found["job"]["state"]] == [["suspended", "cancelled"], "cancelled"], found
    assert counted() == list(range(1, len(counted()) + 1)), "nothing is lost, and nothing came twice"
    done = [row["operation"] for row in found["ledger"]["operations"]]
    assert "save" in done and done[-1] == "resume", done


WARM = "warm"
"""The same account once more, with pilots that serve others."""


def share_batch_jobs(labs: Sequence[ClusterLab], count: int) -> None:
    """Short jobs of several owners, in one account: each owner's pilots serve jobs of his own, and nobody else's."""
    for lab in labs:
        lab.add_site(WARM, idle="10")
    arrays = [lab.detach(*tiny(WARM), "--array", f"1-{count}", "--", "sleep", "1") for lab in labs]
    for lab, array in zip(labs, arrays, strict=True):
        lab.ghv("wait", array, timeout=600)
    for lab in labs:
        words, told = "in the batch job of ", lab.events()
        hosts = {e["job"]: e["message"].removeprefix(words) for e in told if e["message"].startswith(words)}
        assert hosts, "some of them were served by the pilot of another"
        assert all(host.startswith(f"{lab.id}-") for host in hosts.values()), hosts
        lab.ghv("site", "remove", WARM)
