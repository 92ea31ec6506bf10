"""`ghv run`: submits a job, streams what it prints, and ends as its program ended.

The first Ctrl-C cancels the job and goes on streaming until it has ended; the second leaves at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from gridhypervisor.cli import complete, exits, groups
from gridhypervisor.cli.output import RED, YELLOW, age, bold, dim, echo, emit, format_option, paint, plain, say_warning
from gridhypervisor.cli.progress import Progress
from gridhypervisor.cli.request import DURATION, SIZE, Flags, InputType, JobIdType, PairType, SweepType, make_request
from gridhypervisor.client.launcher import connect
from gridhypervisor.client.sync import Client
from gridhypervisor.model.states import JobState
from gridhypervisor.model.views import FollowKind, JobDetail, JobRequest, JobView, ServiceError
from gridhypervisor.model.wire import Phase

if TYPE_CHECKING:
    from gridhypervisor.cli.dag import Flags as DagFlags


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-f", "--file", metavar="FILE", help="The job's YAML file; - for stdin. Flags override it.")
@click.option(
    "--template",
    metavar="FILE",
    help="A job template of GridWay's; --image says what to boot, other flags override it.",
)
@click.option(
    "--image", metavar="NAME", shell_complete=complete.images, help="What to boot: name[:tag] or name@digest."
)
@click.option(
    "--in",
    "inputs",
    multiple=True,
    type=InputType(),
    metavar="INPUT",
    help="PATH, PATH=NAME, or URL#sha256=HEX&name=NAME. May be repeated.",
)
@click.option("--out", "outputs", multiple=True, metavar="GLOB", help="Results to bring home. May be repeated.")
@click.option(
    "--to", "destination", metavar="DIR", help="Where the results go.  [default: here; a template: its folder]"
)
@click.option("--cpus", type=click.IntRange(1, 1024), metavar="N", help="Virtual CPUs.  [default: 1]")
@click.option("--memory", type=SIZE, metavar="SIZE", help="The guest's memory.  [default: 512Mi]")
@click.option("--scratch", type=SIZE, metavar="SIZE", help="The guest's scratch disk.  [default: 2Gi]")
@click.option("--walltime", type=DURATION, metavar="TIME", help="Longest time for the whole job.  [default: 30m]")
@click.option(
    "--segment",
    type=DURATION,
    metavar="TIME",
    help="Longest time for one batch job: a longer walltime goes on through several.  [default: the site's limit]",
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    type=PairType(inherit=True),
    metavar="KEY[=VALUE]",
    help="A variable for the program; without a value, this environment's. May be repeated.",
)
@click.option("--name", metavar="NAME", help="A name for people.")
@click.option("--requirements", metavar="EXPR", help="Only at sites of which this ClassAd expression is true.")
@click.option("--rank", metavar="EXPR", help="Rather at sites where this one is higher; see docs/requirements.md.")
@click.option(
    "--priority",
    type=click.IntRange(0, 20),
    metavar="N",
    help="Higher goes first; 20 is urgent, if the policy lets you.  [default: policy's]",
)
@click.option("--deadline", type=DURATION, metavar="TIME", help="By when it should have begun, from now on.")
@click.option("--site", envvar="GHV_SITE", metavar="NAME", shell_complete=complete.sites, help="Only at this site.")
@click.option(
    "--retry",
    type=click.IntRange(0, 100),
    metavar="N",
    help="More tries when the infrastructure fails, never the program.  [default: 1]",
)
@click.option(
    "--network",
    type=click.Choice(["none", "restricted", "outbound"]),
    help="What the guest may reach.  [default: none]",
)
@click.option(
    "--hypervisor",
    type=click.Choice(["auto", "kvm", "uml", "tcg"]),
    help="What runs the guest: kvm and uml compute at native speed, tcg emulates.  [default: auto]",
)
@click.option(
    "--cpu",
    metavar="NAME",
    help="The processor that the guest sees: a baseline (x86-64-v2), common, or host; see docs/hypervisors.md.",
)
@click.option(
    "--copy-checkpoints/--no-copy-checkpoints",
    default=None,
    help="Bring a sealed copy of each of its checkpoints here, so that it may go on at any site.",
)
@click.option(
    "--instant",
    type=click.Choice(["auto", "never"]),
    help="Start from a snapshot of the booted image where there is one, or boot.  [default: auto]",
)
@click.option(
    "--isolation",
    type=click.Choice(["auto", "job"]),
    help="Share a batch job with other jobs of yours, one after another, or have one of its own.  [default: auto]",
)
@click.option(
    "--on-silence",
    type=click.Choice(["keep", "replace"]),
    help="When nothing is heard of it: wait, or end its guest and try again.  [default: keep]",
)
@click.option("--silence", type=DURATION, metavar="TIME", help="How long, for `replace`.  [default: 5m]")
@click.option(
    "--checkpoint-interval",
    type=DURATION,
    metavar="TIME",
    help="Save the guest so often: when its node dies it goes on from there.  [default: never]",
)
@click.option("--array", metavar="TASKS", help="A job for each of 1-100, or 1-9:2; 1-100%10: ten of them at a time.")
@click.option("--gang", type=click.IntRange(2, 256), metavar="N", help="N machines that start together or not at all.")
@click.option("--spread", is_flag=True, help="The gang may be at several sites.  [default: at one]")
@click.option("--param", type=SweepType(), metavar="START[:STEP]", help="What ${PARAM} is in an array's tasks.")
@click.option(
    "--after", multiple=True, type=JobIdType(), metavar="JOB", shell_complete=complete.jobs,
    help="Begin only when this job, array, gang or workflow has ended well. May be repeated.",
)  # fmt: skip
@click.option(
    "--dag", "dag_file", metavar="FILE", help="A workflow: a DAGMan file, whose JOBs are job files or templates."
)
@click.option("--dot", is_flag=True, help="Only draw the workflow, for Graphviz.")
@click.option("--from-start", is_flag=True, help="Run all of the workflow, whatever its rescue file says is done.")
@click.option("--detach", is_flag=True, help="Submit the job, print its id, and leave.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@format_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(dag_file: str | None, dot: bool, from_start: bool, detach: bool, quiet: bool, output: str, **given: Any) -> int:
    """Run a program in a virtual machine of its own, inside a batch job.

    \b
    ghv run --image xmm --in events.fits --out 'products/*' -- evproducts events.fits
    ghv run -f job.yaml --walltime 2h

    Prints what the program prints, and exits with its exit code. With -o json or yaml the
    program's output goes to stderr, and the job's record to stdout at the end.
    """
    if dag_file:
        if given["command"] or given["destination"]:
            raise click.UsageError("A workflow's files say what runs, and results go beside them: no COMMAND, no --to.")
        from gridhypervisor.cli import dag  # what reads and draws workflows takes its time to import

        flags = dag.Flags(dag_file, given["image"], from_start)
        return _run_dag(flags, draw=dot, detach=detach, quiet=quiet, output=output)
    request = make_request(Flags(**given), say_warning)
    client, home = connect(), ""
    if client.remote:
        from gridhypervisor.cli import elsewhere  # which few need

        home, request = request.destination, elsewhere.send_inputs(client, request, quiet=quiet)
    if request.spec.array or request.spec.gang is not None:
        return _run_array(client, request, home, detach=detach, quiet=quiet, output=output)
    if detach:
        job = client.submit(request)
        _forewarn(job.warning)
        echo(job.id) if output == "table" else emit(job, output)
        return exits.Exit.OK
    with Progress(quiet=quiet, stdout_is_stderr=output != "table") as progress, _interruptible(progress) as interrupts:
        job = client.submit(request, os.urandom(16).hex())
        interrupts.cancels(partial(client.cancel, job.id), job.id)
        _forewarn(job.warning)
        end = follow(client, job.id, progress, interrupts=interrupts)
        detail = client.job(job.id)
        if home:
            detail = elsewhere.fetch_results(client, detail, home, quiet=quiet)
        interrupts.over()
    if output != "table":
        emit(detail, output)
    tell_end(detail, quiet=quiet)
    return exits.of_job(end)


def _run_dag(flags: DagFlags, *, draw: bool, detach: bool, quiet: bool, output: str) -> int:
    from gridhypervisor.cli import dag

    request = dag.read(flags)
    if draw:
        dag.draw_dot(request.workflow)
        return exits.Exit.OK
    client = connect()
    if detach:
        made = client.submit_workflow(request)
        echo(made.id) if output == "table" else emit(made, output)
        return exits.Exit.OK
    with Progress(quiet=True) as progress, _interruptible(progress) as interrupts:
        made = client.submit_workflow(request, os.urandom(16).hex())
        interrupts.cancels(partial(client.cancel_group, made.id), made.id)
        end = dag.follow(client, made.id, quiet=quiet)
        interrupts.over()
    if output != "table":
        emit(end, output)
    dag.tell_end(end, quiet=quiet)
    return groups.exit_code(end)


def _run_array(client: Client, request: JobRequest, home: str, *, detach: bool, quiet: bool, output: str) -> int:
    """Its tasks' output stays in their logs: what is shown is how many are how far. `home`: where results go from a
    service elsewhere."""
    if detach:
        made = client.submit_group(request)
        _forewarn(made.warning)
        echo(made.id) if output == "table" else emit(made, output)
        return exits.Exit.OK
    with Progress(quiet=quiet) as progress, _interruptible(progress) as interrupts:
        made = client.submit_group(request, os.urandom(16).hex())
        interrupts.cancels(partial(client.cancel_group, made.id), made.id)
        _forewarn(made.warning)
        end = groups.follow(client, made.id, progress)
        if home:
            from gridhypervisor.cli import elsewhere

            for job in elsewhere.members(client, made.id):
                detail = client.job(job)
                place = elsewhere.home_of_task(request.spec, home, made.id, detail.job)
                elsewhere.fetch_results(client, detail, place, quiet=quiet)
        interrupts.over()
    if output != "table":
        emit(end, output)
    groups.tell_end(end, quiet=quiet)
    return groups.exit_code(end)


def _forewarn(warning: str) -> None:
    """Say, before anything of it has begun, what the service thinks that its user did not mean."""
    if warning:
        say_warning(warning)


def follow(client: Client, job: str, progress: Progress, *, interrupts: _Interrupts | None = None) -> JobView:
    """Show a job's changes and output until it has ended; returns how it ended."""
    warned = False
    furthest = JobState.PENDING
    deaf: set[str] = set()
    for item in client.follow(job):
        if item.kind is FollowKind.OUTPUT and item.stream not in deaf:
            try:
                progress.write(item.stream, item.data)
            except BrokenPipeError:
                deaf.add(item.stream)  # nobody reads it; how the program ends still matters
                _silence(item.stream)
        elif item.job is not None:
            if _STEPS.index(item.job.state) < _STEPS.index(furthest):
                _tell_retry(client, job, progress)
            furthest = item.job.state
            progress.show(item.job)
            if not warned and (_in_guest(item.job) or item.kind is FollowKind.END):
                warned = _warn_of_emulation(client, job, progress)
            if item.kind is FollowKind.END:
                return item.job
    raise AssertionError("a follow stream ends with END")


_STEPS = list(JobState)  # in the order in which a job goes through them


def _tell_retry(client: Client, job: str, progress: Progress) -> None:
    """The job goes back to an earlier state: say what became of the attempt before."""
    failed = [attempt for attempt in client.job(job).attempts if attempt.reason is not None]
    if failed:
        last = failed[-1]
        progress.say(f"attempt {last.epoch} at {last.site} failed, trying again: {plain(last.message)}")


def _in_guest(job: JobView) -> bool:
    return job.state is JobState.RUNNING and job.phase not in (None, Phase.PREPARE)


def _warn_of_emulation(client: Client, job: str, progress: Progress) -> bool:
    """Say once if the guest runs without KVM. Returns whether it is known by now how the guest runs."""
    attempts = client.job(job).attempts
    used = attempts[-1].hypervisor if attempts else ""
    kind, _, why = used.partition(":")
    if "tcg" in kind:
        where = attempts[-1].node or attempts[-1].site
        text = f"{paint('EMULATED', YELLOW)}: at {where} the guest's CPU is emulated, many times slower than with KVM"
        progress.say(f"{text} ({plain(why)})" if why.strip() else text)
    return bool(used)


def _silence(stream: str) -> None:
    """Nothing more can be written there: keep Python from trying at its exit."""
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), getattr(sys, stream).fileno())


def tell_end(detail: JobDetail, *, quiet: bool) -> None:
    """The last word about a job, on stderr."""
    job = detail.job
    took = f" after {age(job.ended - job.created)}" if job.ended is not None else ""
    if job.state is JobState.DONE:
        if not quiet:
            ending = "done" if not job.exit_code else paint(f"ended with code {job.exit_code}", YELLOW)
            results = f", {_results(detail)}" if detail.outputs else ""
            echo(f"{dim('ghv:')} {job.id} {ending}{took}{results}", err=True)
        return
    echo(f"{dim('ghv:')} {job.id} {paint(bold(str(job.state)), RED)}{took}: {job.reason or 'unknown'}", err=True)
    for line in job.message.splitlines():
        echo(f"  {plain(line)}", err=True)
    if detail.outputs:
        echo(f"  what it left: {_results(detail)}", err=True)
    echo(f"  {dim('next:')} {job.hint or f'ghv show {job.id}'}", err=True)


def _results(detail: JobDetail) -> str:
    count = len(detail.outputs)
    return f"{count} result{'' if count == 1 else 's'} in {detail.job.destination}"


class _Interrupts:
    """What Ctrl-C means while a job runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0
        self._job = ""
        self._cancelling: Callable[[], object] | None = None
        self._over = False
        self._asking: threading.Thread | None = None

    def cancels(self, cancel: Callable[[], object], job: str) -> None:
        """From now on the first Ctrl-C cancels this job; one that came before does so now."""
        self._cancelling, self._job = cancel, job
        if self._count:
            self._cancel()

    def over(self) -> None:
        """The job has ended: there is nothing to interrupt."""
        self._over = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        self._count += 1
        if self._count > 1:
            if self._asking is not None:
                self._asking.join(1.0)  # its request is on its way: it takes milliseconds, or nobody answers
            told = f"; {self._job} is being cancelled: ghv show {self._job}" if self._job else ""
            self._progress.say(f"left{told}")
            raise KeyboardInterrupt
        if self._job:
            self._cancel()
        self._progress.say("cancelling; Ctrl-C again leaves at once")

    def _cancel(self) -> None:
        # A thread: the handler runs in the middle of whatever the main thread does, and must not wait.
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()

    def _ask(self) -> None:
        assert self._cancelling is not None
        try:
            self._cancelling()
        except ServiceError as error:
            self._progress.say(f"cannot cancel {self._job}: {error}")


@contextmanager
def _interruptible(progress: Progress) -> Iterator[_Interrupts]:
    interrupts = _Interrupts(progress)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
