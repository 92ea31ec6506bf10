"""Figure 7: an array of VM jobs on a real Slurm, against the same guests in a plain `sbatch --array`.

The bare array's script is what a careful user would write: it makes the disks of its task, starts the same QEMU with
the same flags on the same kernel, initrd and image, has the guest run the program, and takes what that printed out.
It finds QEMU, image and initrd on the node. The VM jobs do all that theirs do: they are asked for one by one, and over
when their results are home.

Both run at the same time, each on a node of its own with half of this machine's cores, and change nodes from pair to
pair: an hour's arrays one after the other differ by more than what is asked here, for what else the machine has to do.
All that is ours (service, SSH, relay, whoever asks) keeps to the cores of the VM jobs' node. Slurm's own controller,
which serves both, does not.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import cores
from benchmarks.cluster import NODE, client, join
from benchmarks.lab import LONGEST, Lab, open_lab
from benchmarks.report import Report, figure
from gridhypervisor.agent import channel
from gridhypervisor.agent.hypervisor import Descriptors
from gridhypervisor.agent.machine import compose
from gridhypervisor.agent.qemu import Qemu
from gridhypervisor.agent.scratchdisk import OPTIONS, OUT_MARGIN
from gridhypervisor.agent.world import World
from gridhypervisor.images.repository import Repository
from gridhypervisor.model import wire
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.states import JobState
from gridhypervisor.model.views import JobRequest
from testsites import SlurmSite
from testsites.site import UID

IMAGE, JOBS, RUNS = "tiny", 100, 6
"""Six pairs are the fewest of which an interval can be stated; emulated, they take three quarters of an hour."""
MEMORY, SCRATCH = 256 << 20, 256 << 20
LOOK = 0.2
"""Seconds between two looks at the results, which cost the machine next to nothing."""
ASKERS = 16
"""Threads that ask for jobs."""
PROGRAM = "i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done; echo this is task {}"
ENDS = {
    "monitor": "null", "console": "file,path=console",
    "ctl": "pipe,path=ctl", "out": "file,path=stdout", "err": "file,path=stderr",
}  # fmt: skip
"""Where the guest's ports end in a bare task; in the order of `Descriptors`."""
BARE = """\
#!/bin/sh
set -eu
here=/tmp/bare-$SLURM_ARRAY_TASK_ID
mkdir "$here"
trap 'cd /; rm -rf "$here"' EXIT
cd "$here"
mkdir tree tree/upper tree/work tree/scratch tree/scratch/job
cat >tree/job <<JOB
{job}
JOB
{busybox} truncate -s {scratch} scratch
{busybox} truncate -s {out} out
{mke2fs} -d tree scratch
{busybox} mkfifo ctl.in ctl.out
exec 3<>ctl.in 4<>ctl.out
{qemu} >qemu.log 2>&1 3>&- 4>&- &
while read -r word code _ <&4; do
    case $word in
    READY) echo STAGE >&3 ;;
    STAGED) echo RUN end >&3 ;;
    EXIT) echo POWEROFF >&3; break ;;
    esac
done
wait
[ "$code" = 0 ]
mv stdout {results}/$SLURM_ARRAY_TASK_ID
"""


def bare_script(lab: Lab, site: SlurmSite, kind: wire.HypervisorKind) -> str:
    """The batch script, with what it finds on the node made: one initrd, and a folder for results."""
    root, node = site.root, site.root / NODE
    [bundle] = (site.home / ".ghv/bundle").iterdir()
    world = World(node / f"world-{bundle.name}", bundle / "guest.cpio")
    image = Repository(lab.data / "images").show(IMAGE)
    program = wire.Program(("sh", "-c", PROGRAM.format("$SLURM_ARRAY_TASK_ID")))
    manifest = wire.Manifest(
        protocol=wire.PROTOCOL, installation="bench", entry="bare", vm="v", epoch=1, allocation="a", job="j",
        image=image.manifest, image_digest=image.digest, program=program,
        resources=wire.Resources(memory=MEMORY, scratch=SCRATCH),
    )  # fmt: skip
    made, results = site.home / "bare", site.home / "results"
    for folder in (made, results):
        folder.mkdir()
        os.chown(folder, UID, UID)
    machine = compose(manifest, {x.digest: node / "cache" / x.digest for x in image.manifest.layers}, made, world)
    (made / "initrd").chmod(0o644)
    command = Qemu(world, kind).command(machine, Descriptors())
    numbers = Descriptors()
    ends = dict(zip((numbers.monitor, numbers.console, *numbers.channels), ENDS.items(), strict=True))
    chardevs = {f"socket,id={name},fd={number}": f"{end},id={name}" for number, (name, end) in ends.items()}

    def there(word: str) -> str:
        """As the node sees it; the task's own disks lie where it runs."""
        word = chardevs.get(word, word)
        for disk in ("scratch", "out"):
            word = word.replace(str(made / disk), disk)
        return shlex.quote(word.replace(str(root), ""))

    settings = [f"{name}={there(value)}" for name, value in command.environment.items()]
    quoted = channel.job_file(program, user=image.manifest.user, path=image.manifest.path)
    # The shell that writes it fills in the task's number, and nothing else.
    job = quoted.replace("\\", "\\\\").replace("`", "\\`").replace("$", "\\$").replace("\\$SLURM", "$SLURM")
    return BARE.format(
        job=job, busybox=str(bundle / "busybox").replace(str(root), ""), scratch=SCRATCH, out=SCRATCH + OUT_MARGIN,
        mke2fs=" ".join(map(there, [*world.argv("mke2fs"), *OPTIONS])),
        qemu=" ".join([*settings, *map(there, command.argv)]),
        results=str(results).replace(str(root), ""),
    )  # fmt: skip


def bare(site: SlurmSite, node: str, script: str, jobs: int) -> float:
    """Seconds from `sbatch` until the last task's result is there."""
    results = site.home / "results"
    for old in results.iterdir():
        old.unlink()
    began = time.perf_counter()
    number = site.admin(
        "sbatch", "--parsable", f"--array=1-{jobs}", "--ntasks=1", "--cpus-per-task=1", f"--mem={_megabytes()}M",
        f"--nodelist={node}", "--time=30", "--chdir=/tmp", "--output=/tmp/bare-%a.log", as_user=True, stdin=script,
    ).strip()  # fmt: skip

    deadline = time.monotonic() + LONGEST
    while len(os.listdir(results)) < jobs:
        said = [log for log in (site.root / "tmp").glob("bare-*.log") if log.stat().st_size]
        if said or time.monotonic() > deadline:
            words = said[0].read_text() if said else f"{LONGEST:.0f} s are over"
            raise RuntimeError(f"the bare array {number} has {len(os.listdir(results))} of {jobs} results: {words}")
        time.sleep(LOOK)
    took = time.perf_counter() - began
    for task in results.iterdir():
        if f"this is task {task.name}\n" not in task.read_text():
            raise RuntimeError(f"bare task {task.name} printed {task.read_text()!r}")
    return took


def _megabytes() -> int:
    """What the VM jobs ask of Slurm for one."""
    return (MEMORY >> 20) + 384


def through_ghv(lab: Lab, site: SlurmSite, kind: wire.HypervisorKind, jobs: int) -> tuple[float, list[float]]:
    """Seconds from the first request until all results are home; and the CPU seconds of ours for each job."""
    asking = client(lab)
    resources = ResourcesSpec(memory=str(MEMORY), scratch=str(SCRATCH))

    def ask(number: int) -> str:
        command = ("sh", "-c", PROGRAM.format(number))
        spec = JobSpec(IMAGE, command, resources=resources, hypervisor=kind.value, instant="never", site=site.kind)
        return asking.submit(JobRequest(spec, str(lab.home), str(lab.home / f"task-{number}"))).id

    last = 0
    while page := asking.events(after=last):
        last = page[-1].sequence
    began = time.perf_counter()
    with ThreadPoolExecutor(ASKERS) as askers:
        wanted = set(askers.map(ask, range(1, jobs + 1)))
    left = set(wanted)
    for event in asking.watch_events(after=last):
        if event.kind == "job" and event.after in list(JobState) and JobState(event.after).final:
            left.discard(event.job)
        if not left:
            break
    took = time.perf_counter() - began
    cpu = []
    for job in sorted(wanted):
        found = asking.job(job)
        if found.job.state is not JobState.DONE or found.ledger is None:
            raise RuntimeError(f"{job} ended as {found.job.state}: {found.job.message}")
        cpu.append(sum(found.ledger.cpu[name] for name in ("pilot", "relay", "controller")))
    return took, cpu


def side_by_side(
    lab: Lab, site: SlurmSite, kind: wire.HypervisorKind, script: str, nodes: tuple[str, str]
) -> tuple[float, float, list[float]]:
    """Both arrays at once, the VM jobs at the first node and the bare tasks at the second: the seconds of either, and
    the CPU seconds of ours for each job."""
    lab.ghv("site", "edit", site.kind, "--option", f"native=--nodelist={nodes[0]}")
    halves = dict(zip(site.nodes, _halves(), strict=True))
    lab.warm_up(IMAGE, kind, site.kind)  # the site answers again, and that node has all that the guests need
    site.wait_idle()
    service = cores.family(cores.find("gridhypervisor.app", str(lab.data)))
    slurm = set[int]()
    for node in site.nodes:
        daemons = cores.family(cores.find("slurmd", "-N", node))
        cores.bind(daemons, halves[node])
        slurm |= daemons
    slurm |= {cores.find("slurmctld", "-D"), cores.find("munged", "--foreground")}
    cores.bind(service | cores.family(cores.find("keeper.py", str(site.root))) - slurm, halves[nodes[0]])

    def on(node: str) -> None:
        os.sched_setaffinity(0, halves[node])  # of this thread, and those that it starts

    with (
        ThreadPoolExecutor(1, initializer=on, initargs=(nodes[0],)) as here,
        ThreadPoolExecutor(1, initializer=on, initargs=(nodes[1],)) as there,
    ):
        ours = here.submit(through_ghv, lab, site, kind, JOBS)
        theirs = there.submit(bare, site, nodes[1], script, JOBS)
        took, cpu = ours.result()
        return took, theirs.result(), cpu


def _halves() -> tuple[set[int], set[int]]:
    """This machine's cores.

    Raises:
        RuntimeError: there is but one.
    """
    there = sorted(os.sched_getaffinity(0))
    half = len(there) // 2
    if not half:
        raise RuntimeError("compare two arrays at the same time: this machine has one core; it takes two")
    return set(there[:half]), set(there[half : 2 * half])


def measure(runs: int | None) -> Report:
    ours: list[float] = []
    theirs: list[float] = []
    cpu: list[float] = []
    half = len(_halves()[0])
    with open_lab() as lab, SlurmSite("slurm-bench", nodes=2, cpus=half, memory=2 * half * _megabytes()) as site:
        kind = lab.qemu(IMAGE)
        used = join(lab, site, IMAGE, kind)
        script = bare_script(lab, site, kind)
        first, second = site.nodes
        for run in range(runs or RUNS):
            took, bare_took, spent = side_by_side(
                lab, site, kind, script, (second, first) if run % 2 else (first, second)
            )
            ours.append(took)
            theirs.append(bare_took)
            cpu += spent
            words = f"pair {run + 1} of {runs or RUNS}: {took:.1f} s, bare {bare_took:.1f} s"
            print(words, file=sys.stderr, flush=True)
    return Report(
        f"An array of {JOBS} VM jobs on Slurm, against a bare QEMU in each task of `sbatch --array`",
        (
            figure("VM jobs, all results home", "s", ours),
            figure("bare array", "s", theirs),
            figure("ratio, pair by pair", "", [a / b for a, b in zip(ours, theirs, strict=True)],
                   "the interval's end at most 1.05"),
            figure("pilot, relay, controller", "CPU s a VM", cpu),
        ),
        hypervisor=used,
        enough=RUNS,
        notes=(
            f"Of either array {half} run at once, one a core; both arrays at the same time, each on cores of its own, "
            "which they change from pair to pair. Bundle and image are on the node; no guest serves two jobs.",
        ),
    )  # fmt: skip
